"""README's commands are real."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
METHODS = (ROOT / "docs" / "methods.md").read_text()
PAGES = [
    README,
    METHODS,
    *(
        (ROOT / "docs" / f"{name}.md").read_text()
        for name in ("studies", "sweeping", "scaling", "searching", "training", "teacher_cache")
    ),
]
BLOCKS = re.findall(r"```(?:sh|bash)\n(.*?)```", "".join(PAGES).replace("\\\n", " "), flags=re.DOTALL)
TRAINING = ("kd run", "kd distill", "kd train", "kd check", "kd study")
LINES = [line.partition("#")[0].strip() for block in BLOCKS for line in block.splitlines()]
COMMANDS = sorted({line for line in LINES if line.startswith(TRAINING)})


def test_it_opens_with_one_line_for_users_and_one_for_developers() -> None:
    lines = [line for line in README.splitlines() if line.startswith("python3 -m venv")]
    assert len(lines) == 2
    assert lines[0].endswith("kd run")
    assert lines[1].endswith("pytest")
    assert README.index(lines[1]) < 800


def test_it_holds_no_gaps() -> None:
    assert "<!--" not in README


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_documents_composes(kd, command: str) -> None:
    """Composed and checked, not run: with --cfg nothing is trained."""
    flags = ("-m", "--dry-run", "--cfg", "job", "hydra", "-p", "hydra.launcher", "--resolve", "--json", "--detach")
    words = [word for word in shlex.split(command)[1:] if word not in flags]
    if words[0] == "study":
        words = ["run", f"study={words[1]}", *words[2:]]
    first_values = [word.split(",")[0] if "=" in word and "[" not in word else word for word in words]
    yaml.safe_load(kd(*first_values, "--cfg", "job", "--resolve").out)


def test_the_commands_it_lists_are_those_that_exist(kd) -> None:
    listed = set(re.findall(r"`kd ([a-z][a-z-]+)", README.partition("## The configuration")[0]))
    assert listed == {
        path.stem.rstrip("_").replace("_", "-") for path in (ROOT / "kd_cli" / "commands").glob("[a-z]*.py")
    }


def test_the_page_of_methods_names_every_loss() -> None:
    table = METHODS.partition("## What a method reads")[0]
    named = set(re.findall(r"`(\w+)`", table))
    presets = {"cifar10_kl", "mnist_cnn", "mnist_mlp", "none"}
    assert {path.stem for path in (ROOT / "conf" / "loss").glob("*.yaml")} - presets <= named


def test_the_configuration_tree_is_the_one_that_is_there() -> None:
    tree = README.partition("conf/\n")[2].partition("```")[0]
    assert set(re.findall(r"[├└]── (\w+)/", tree)) == {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()}
    for group in ("dataset", "loss", "experiment"):
        named = set(re.search(rf"── {group}/\s+(.*)", tree).group(1).replace("presets:", "").split())
        assert named <= {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}


def test_its_lines_of_python_run() -> None:
    code = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL).group(1)
    for name in ("a.png", "b.png"):
        Image.new("L", (28, 28)).save(name)
    scope: dict = {}
    exec(code.replace("trainer.epochs=5", "trainer.epochs=1"), scope)
    assert scope["probabilities"].shape == (2, 10)
    assert Path(scope["result"].run, "result.json").exists()
