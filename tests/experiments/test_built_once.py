"""What a command needs is built once: preflight hands it on. Counted by Python's own profiler, in this process."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests.conftest import SMALL

COUNTED = {
    "experiments/setup.py:make_setup",
    "experiments/build.py:build_network",
    "data/base.py:Data.__init__",
    "losses/base.py:build_loss",
    "teachers/load.py:load_teacher",
    "storage/tensors.py:network_digest",
    "training/task.py:Distillation.__init__",
    "runs/provenance.py:provenance",
}


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """How often each of the functions is called while this is open."""
    counts: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _: Any) -> None:
        module, _, file = frame.f_code.co_filename.partition("kd_cli/")
        name = f"{file}:{name_of(frame)}"
        if event == "call" and module and name in COUNTED:
            counts[name] += 1

    sys.setprofile(count)
    try:
        yield counts
    finally:
        sys.setprofile(None)


def name_of(frame: FrameType) -> str:
    """As co_qualname has it from Python 3.11 on."""
    name = frame.f_code.co_name
    return f"{type(frame.f_locals['self']).__name__}.{name}" if name == "__init__" else name


def test_distilling_builds_everything_once(kd: Callable[..., Any]) -> None:
    kd("train-teacher", *SMALL, "hydra.run.dir=teacher")
    with counting() as counts:
        kd("distill", *SMALL, "teacher.checkpoint=teacher", "hydra.run.dir=student")
    assert counts == {
        **dict.fromkeys(COUNTED, 1),
        "losses/base.py:build_loss": 2,  # once for what it asks of a teacher, before the data are read
    }


@pytest.mark.parametrize("command", ["train-teacher", "train-baseline"])
def test_training_builds_one_network(kd: Callable[..., Any], command: str) -> None:
    with counting() as counts:
        kd(command, *SMALL, "hydra.run.dir=run")
    assert counts["experiments/build.py:build_network"] == 1
    assert counts["experiments/setup.py:make_setup"] == counts["data/base.py:Data.__init__"] == 1


def test_a_comparison_with_a_given_teacher_loads_it_once(kd: Callable[..., Any]) -> None:
    kd("train-teacher", *SMALL, "hydra.run.dir=teacher")
    with counting() as counts:
        kd("run", *SMALL, "teacher.checkpoint=teacher", "hydra.run.dir=run")
    assert counts["teachers/load.py:load_teacher"] == counts["training/task.py:Distillation.__init__"] == 1
    assert counts["experiments/build.py:build_network"] == 2  # the baseline and the student
    assert Path("run/distilled/result.json").exists()
