"""docs/extending.md does what it says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT, SMALL

PAGE = (ROOT / "docs" / "extending.md").read_text()


def write_files() -> str:
    """Writes the page's files below the working directory and returns its command."""
    for language, name, text in re.findall(r"```(python|yaml)\n# (\S+)\n(.*?)```", PAGE, flags=re.DOTALL):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(text + "\n")
        assert language in ("python", "yaml")
    command = re.search(r"```console\n(kd .*)\n```", PAGE)
    assert command is not None
    return command.group(1)


def test_the_pages_loss_model_and_data_set_work_together(kd) -> None:
    command = write_files()
    result = kd(*command.split()[1:], "--json").json
    assert result["baseline"]["test_top1"] > 60  # two classes: 50 is a guess
    losses = kd("list", "losses", "--config-dir", "mine", "--json").json["losses"]
    assert {"cosine", "kd"} <= {row["name"] for row in losses}


def test_options_of_a_plugin_are_checked_like_our_own(kd) -> None:
    command = write_files().split()[1:]
    assert "did you mean 'loss.cosine_weight'" in kd(*command, "loss.cosin_weight=1", code=2).message
    assert "loss.cosine_weight: -1" in kd(*command, "loss.cosine_weight=-1", code=2).message


def test_the_pages_augmentation_is_done_recorded_and_checked(kd) -> None:
    command = write_files().split()[1:]
    run = Path(kd(*command, "trainer.epochs=1", "--json").json["distilled"]["run"])
    record = json.loads((run / "run.json").read_text())
    assert record["data"]["preprocessing"]["augment"] == ["flip", {"name": "gamma", "strength": 0.5}]
    message = kd(*command, "dataset.augment=[{name:gamma,strenth:0.5}]", code=2).message
    assert "dataset.augment[0].strenth" in message
    assert "did you mean 'strength'" in message
    message = kd(*command, "dataset.augment=[flip,{name:gama}]", code=2).message
    assert "dataset.augment[1]: there is no augmentation 'gama'; did you mean 'gamma'" in message


def test_layers_of_a_loss_are_in_the_checkpoint(kd) -> None:
    from safetensors.torch import load_file

    run = Path(kd(*write_files().split()[1:], "--json").json["distilled"]["run"])
    names = load_file(run / "checkpoints" / "epoch-0003" / "training.safetensors")
    assert "task.method.project.weight" in names
    assert "optimizer.0.0.exp_avg" in names


def test_an_installed_package_needs_no_flags(tmp_path: Path) -> None:
    write_files()
    package = tmp_path / "site" / "kd_mine"
    (package / "conf" / "loss").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "components.py").write_text(Path("mine/mine.py").read_text())
    (package / "conf" / "loss" / "cosine.yaml").write_text(Path("mine/loss/cosine.yaml").read_text())
    facts = tmp_path / "site" / "kd_mine-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: kd-mine\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[kd_cli.plugins]\nmine = kd_mine.components\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(ROOT)])}
    command = [sys.executable, "-m", "kd_cli", "run", *SMALL, "loss=cosine", "student.hidden=[8]", "trainer.epochs=1"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "distilled" in done.stdout


def test_a_plugin_that_fails_says_which_and_why(kd) -> None:
    Path("broken.py").write_text("1 / 0\n")
    failed = kd("run", *SMALL, "plugins=[broken.py]", code=2)
    assert "plugins: broken.py cannot be imported: ZeroDivisionError" in failed.message
