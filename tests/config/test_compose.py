"""Composing outside of a job: what is shared, and what never is."""

from __future__ import annotations

import gc
import re
from pathlib import Path
from weakref import WeakValueDictionary

import pytest

from kd_cli.config import compose as module
from kd_cli.config.compose import VARIABLES, compose, conf_dir


@pytest.fixture(autouse=True)
def _as_in_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_there", WeakValueDictionary())


def test_who_asks_for_what_somebody_has_is_given_that() -> None:
    first = compose(["student=mlp"])
    assert compose(["student=mlp"]) is first
    assert compose(["student=cnn"]) is not first
    assert compose(["student=mlp"], config_name="distill") is not first
    del first
    gc.collect()
    assert not module._there


def test_what_may_have_changed_is_composed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    held = [compose(["dataset=mnist"])]
    monkeypatch.setenv("KD_DATA", "elsewhere")
    assert compose(["dataset=mnist"])["dataset"]["root"] == "elsewhere"
    monkeypatch.setenv("MINE", "1")
    words = ["outputs=${oc.env:MINE}"]
    held.append(compose(words))
    monkeypatch.setenv("MINE", "2")
    assert (held[-1]["outputs"], compose(words)["outputs"]) == ("1", "2")
    Path("mine/student").mkdir(parents=True)
    for size in (8, 16):  # edited in between
        Path("mine/student/own.yaml").write_text(f"name: mlp\nhidden: [{size}]\n")
        held.append(compose(["student=own"], config_dirs=["mine"]))
        assert held[-1]["student"]["hidden"] == [size]


def test_our_files_ask_the_environment_for_nothing_else() -> None:
    texts = (path.read_text() for path in conf_dir().rglob("*.yaml"))
    assert {name for text in texts for name in re.findall(r"oc\.env:\s*(\w+)", text)} == set(VARIABLES)
