"""Bad input: one panel that says what, why and what to type; the documented exit code; nothing left behind."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kd_cli.errors import offer, suggest
from tests.conftest import HERE, ROOT, SMALL
from tests.support.advice import offered, unreadable

# what is typed → what the message must hold. All of these are found before torch is imported.
BEFORE_TORCH = {
    "loss=kdd": ["there is no loss 'kdd'", "did you mean 'kd'"],
    "teacher=resnet21": ["there is no teacher 'resnet21'", "resnet20"],
    "experiment=mnist": ["there is no experiment 'mnist'", "mnist_cnn"],
    "loss.temprature=3": ["loss.temprature", "did you mean 'loss.temperature'"],
    "+loss.temprature=3": ["loss.temprature", "did you mean 'temperature'"],
    "+trainer.epoch=3": ["trainer.epoch", "did you mean 'epochs'"],
    "+student.widht=3": ["student.widht", "student 'mlp' has no option"],
    "+colour=red": ["colour: the configuration has no option"],
    "loss.temperature=warm": ["loss.temperature: 'warm' is not a number"],
    "loss.temperature=": ["loss.temperature: '' is not a number"],
    "trainer.epochs=2.5": ["trainer.epochs: 2.5 is not a whole number"],
    "trainer.epochs=0": ["trainer.epochs: 0 is not possible; it must be ≥ 1"],
    "teacher_trainer.epochs=0": ["teacher_trainer.epochs: 0 is not possible"],
    "trainer.lr=-1": ["trainer.lr: -1", "> 0"],
    "trainer.optimizer=adan": ["trainer.optimizer: 'adan'", "did you mean 'adam'"],
    "trainer.precision=fp64": ["trainer.precision: 'fp64'", "bf16"],
    "trainer.nesterov=1": ["trainer.nesterov: 1 is not true or false"],
    "seed=-1": ["seed: -1 is not possible"],
    "seed=null": ["seed: None is not a whole number"],
    "~seed": ["seed is missing"],
    "device=0": ["device: 0 is not text"],
    "outputs=5": ["outputs: 5 is not text"],
    "plugins=mine.py": ["plugins: 'mine.py' is not a list"],
    "plugins=null": ["plugins: None is not a list"],
    "teacher.checkpoint=a=b": ["needs quotes of its own"],
    "hydra.job.chdir=true": ["hydra.job.chdir: true is not possible"],
    "hydra/launcher=proces": ["hydra/launcher", "did you mean 'process'"],
    "hydra/launcher=joblib": ["hydra/launcher=process hydra.launcher.n_jobs=2"],
    "seed=one": ["seed: 'one' is not a whole number"],
    "loss.temperature=[1": ["[1"],
    "plugins=[nothing_of_the_kind]": ["plugins: nothing_of_the_kind cannot be imported"],
    "plugins=[./nothing.py]": ["there is no file nothing.py"],
}
BEFORE_DATA = {
    "loss.temperature=-1": ["loss.temperature: -1", "must be > 0"],
    "loss.ce_weight=-1": ["loss.ce_weight: -1", "must be ≥ 0"],
    "loss.kl_weight=inf": ["loss.kl_weight: inf"],
    "dataset.val_fraction=2": ["val_fraction=2", "0.9"],
    "dataset.augment=flop": ["dataset.augment: there is no augmentation 'flop'", "did you mean 'flip'"],
    "teacher.checkpoint=5": ["teacher.checkpoint: there is no 5"],
    "device=cuda:9": ["device: 'cuda:9' is not on this machine"],
    "device=tpu": ["device: 'tpu' is not on this machine", "cpu"],
    "teacher.checkpoint=nowhere": ["teacher.checkpoint: there is no nowhere", "kd list runs"],
}


@pytest.mark.parametrize("override", [*BEFORE_TORCH, *BEFORE_DATA])
def test_a_mistake_is_named_with_what_to_type_and_leaves_nothing(kd, override: str) -> None:
    failed = kd("distill", *SMALL, override, code=2)
    for part in {**BEFORE_TORCH, **BEFORE_DATA}[override]:
        assert part in failed.message
    assert "Traceback" not in failed.err
    assert failed.out == ""
    assert not list(Path("outputs").rglob("*") if Path("outputs").exists() else []) or not list(
        Path("outputs").rglob("*.*")
    )


@pytest.mark.slow
def test_mistakes_in_the_configuration_are_found_without_torch(tmp_path: Path) -> None:
    overrides = [override for override in BEFORE_TORCH if "[1" not in override]
    code = (
        "import sys\nfrom kd_cli.cli import main\n"
        "for override in sys.argv[1:]:\n"
        "    sys.argv = ['kd', 'distill', override.replace('widht', 'widht')]\n"
        "    try: main()\n"
        "    except SystemExit as left: assert left.code == 2, override\n"
        "    assert 'torch' not in sys.modules, override\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *overrides], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_all_mistakes_are_shown_at_once(kd) -> None:
    failed = kd("distill", "+loss.temprature=3", "trainer.lr=fast", code=2)
    assert "loss.temprature" in failed.message
    assert "trainer.lr: 'fast'" in failed.message


def test_an_unknown_command_and_an_unknown_flag_are_usage_errors(kd) -> None:
    assert "distill" in kd("distil", code=2).message
    assert "--multirun" in kd("distill", "--mutirun", code=2).message
    assert "hydra" in kd("distill", "--cfg", "jobb", code=2).message


def test_missing_data_are_a_data_error(kd, tmp_path: Path) -> None:
    failed = kd("run", "dataset=image_folder", f"dataset.root={tmp_path / 'nothing'}", code=3)
    assert str(tmp_path / "nothing").split("/")[-1] in failed.message
    assert "dataset.root" in failed.message


def test_a_missing_teacher_names_the_command_that_makes_one(kd) -> None:
    failed = kd("distill", *SMALL, "loss.temperature=2", code=2)
    made = "kd train-teacher dataset=synthetic dataset.num_train=300 dataset.num_test=100 teacher=mlp"
    assert made in failed.message
    assert "loss.temperature" not in failed.message


def test_a_folder_that_cannot_be_written_is_refused(kd, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    failed = kd("train-teacher", *SMALL, f"hydra.run.dir={tmp_path / 'file' / 'run'}", code=2)
    assert "hydra.run.dir" in failed.message


def test_errors_are_one_json_object_on_request(kd) -> None:
    error = kd("distill", "--json", "loss=kdd", code=2).json["error"]
    assert error["exit_code"] == 2
    assert "did you mean 'kd'" in error["message"]


def test_usage_errors_and_ctrl_c_are_json_too(kd) -> None:
    assert kd("run", "--json", "--bogus", code=2).json["error"]["exit_code"] == 2
    assert kd("run", "--json", "--cfg", "job", code=2).json["error"]["type"] == "ConfigError"


def test_the_traceback_is_there_for_those_who_ask(tmp_path: Path) -> None:
    environment = {**os.environ, "HYDRA_FULL_ERROR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "kd_cli", "distill", "loss=kdd"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert "Traceback" in done.stderr


def test_a_diverging_run_stops_with_its_own_code_and_is_recorded(kd) -> None:
    failed = kd("train-baseline", *SMALL, "trainer.optimizer=sgd", "trainer.lr=1e30", code=4)
    assert "not finite" in failed.message
    assert "trainer.lr=1e+29" in failed.message
    assert kd("list", "runs", "--json").json["runs"][0]["status"] == "diverged"


def test_a_bad_point_of_a_sweep_is_reported_and_the_others_run(kd) -> None:
    kd("train-teacher", *SMALL)
    swept = kd("distill", "-m", HERE, *SMALL, "loss=kd,nope", "trainer.lr=0.001,-1", "--json", code=1)
    points = {point["point"]: point for point in swept.json["points"]}
    assert {label: point["status"] for label, point in points.items()} == {
        "loss=nope": "failed",
        "loss=kd trainer.lr=0.001": "completed",
        "loss=kd trainer.lr=-1": "failed",
    }
    assert "did you mean" in points["loss=nope"]["error"] or "Known" in points["loss=nope"]["error"]
    assert "trainer.lr: -1" in points["loss=kd trainer.lr=-1"]["error"]


def test_every_override_that_a_message_in_the_code_offers_can_be_typed() -> None:
    texts = {text: path for path in (ROOT / "kd_cli").rglob("*.py") for text in texts_of(path)}
    assert sum(len(offered(text)) for text in texts) > 50
    assert not {text: texts[text] for text in texts if unreadable(text.replace("\0", "1"))}
    by_hand = {text: texts[text] for text in texts if re.search(r"\b[Tt]ype '?\0=", text)}
    assert not by_hand, "errors.offer makes what is offered of a key that is known only at run time"


def texts_of(path: Path) -> list[str]:
    """The texts in a file that are no docstrings; what an f-string fills in is `\\0`, the result of `offer` too."""
    tree = ast.parse(path.read_text())
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    inner |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [_text(node) for node in ast.walk(tree) if id(node) not in inner]


def _text(node: ast.AST) -> str:
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    constant = [part.value if isinstance(part, ast.Constant) else "\0" for part in parts]
    return "".join(part for part in constant if isinstance(part, str))


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("trainer.epochs", 10, "trainer.epochs=10"),
        ("trainer.milestones[0]", 10, "trainer.milestones=[10]"),
        ("student.blocks[0][1]", 16, "student.blocks=[[16]]"),
        ("assistants[0].hidden[1]", 8, "'assistants=[{name: NAME, hidden: [8]}]'"),
        ("loss", "choice(kd,dkd)", "'loss=choice(kd,dkd)'"),
    ],
)
def test_what_is_inside_a_list_is_offered_with_the_list(key: str, value: object, word: str) -> None:
    assert offer(key, value) == word
    assert offered(f"x; type {word}") == [word]
    assert not unreadable(f"x; type {word}")


def test_what_hydra_cannot_read_is_seen() -> None:
    said = "trainer.x[0]: a=b; type trainer.x[0]=1, loss.y=a=b or 'hydra.z=f(1' (not seed=2, seed=…)."
    assert offered(said) == ["trainer.x[0]=1", "loss.y=a=b", "'hydra.z=f(1'", "seed=2", "seed=…"]
    assert unreadable(said) == offered(said)[:3]


@pytest.mark.parametrize(
    ("word", "known", "near"),
    [
        ("temprature", "temperature weight", "temperature"),
        ("mpl", "mlp cnn", "mlp"),
        ("kdd", "dkd kd", "kd"),
        ("ResNet18", "resnet18 resnet34", "resnet18"),
        ("loss.wieght", "loss.weight loss.name", "loss.weight"),
        ("width", "dropout hidden", None),
        ("at", "kd ft", "ft"),
        ("at", "kd", None),
        ("depth", "path", None),
        ("anything", "", None),
    ],
)
def test_what_is_suggested_is_within_two_edits(word: str, known: str, near: str | None) -> None:
    said = suggest(word, known.split())
    assert said.startswith(f"; did you mean {near!r}? Known: " if near else ". Known: ")
