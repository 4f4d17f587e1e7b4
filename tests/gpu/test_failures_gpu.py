"""What ends a training on a GPU: a loss that is not finite, too little memory, Ctrl-C, a kill."""

from __future__ import annotations

import json
import os
import re
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.lab import SMALL, Lab, bits
from kd_cli import console
from kd_cli.errors import DivergedError, OutOfMemory
from kd_cli.runs.checkpoint import Checkpoints
from tests.conftest import started, wait_for

pytestmark = pytest.mark.gpu

# A convolution's 100,000 maps of 1,800 images are 184 GB, of two images a thousandth of that.
WIDE = (
    *("dataset=synthetic", "dataset.num_train=1800", "dataset.val_fraction=0", "teacher=cnn_tiny", "student=cnn_tiny"),
    *("student.blocks=[[100000],[2]]", "student.kernel_size=1", "student.hidden=[]"),
    *("trainer.batch_size=1800", "trainer.epochs=1"),
)


def newest(run: Path) -> tuple[int, int] | None:
    """The place of the last checkpoint: epochs done, updates of the next one."""
    return Checkpoints(run / "checkpoints", run="").newest()


def diverge(lab: Lab, folder: Path, **edits: Any) -> str:
    """The message of a training whose weights are huge after the first step."""
    with pytest.raises(DivergedError) as diverged:
        lab.train("distill", {"trainer.lr": 1e30, "trainer.checkpoint_minutes": 0.0, **edits}, to=folder)
    return str(diverged.value)


def test_a_loss_that_is_not_finite_is_found_in_its_epoch_with_step_and_images(lab: Lab, tmp_path: Path) -> None:
    said = diverge(lab, tmp_path / "auto")
    place = re.search(r"in epoch 1, step (\d) of 6\b.*training images (\d+, )+", said)
    assert place, said
    assert not (tmp_path / "auto" / "metrics.jsonl").read_text()
    assert json.loads((tmp_path / "auto" / "run.json").read_text())["status"] == "diverged"
    assert newest(tmp_path / "auto") in (None, *((0, step) for step in range(1, int(place[1]))))
    assert diverge(lab, tmp_path / "eager", **{"trainer.cuda_graphs": False}) == said


def test_too_little_memory_is_told_and_costs_nothing_else(lab: Lab, device: str, tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory, match=r"batch_size=1800 does not fit .*batch_size=900 .*accumulate=2"):
        Lab(tmp_path, device, WIDE).train("train-baseline", to=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"
    assert not (tmp_path / "run" / "result.json").exists()
    assert not list((tmp_path / "run").rglob(".kd*"))
    assert bits(lab.train("distill")) == lab.bits("kd")  # the device goes on


def words(lab: Lab, device: str, run: Path) -> tuple[str, ...]:
    """What `lab` trains with the loss kd, as a command line."""
    fixed = (f"teacher.checkpoint={lab.teacher}", f"device={device}", f"hydra.run.dir={run}")
    return "distill", *SMALL, "loss=kd", *fixed


def test_ctrl_c_leaves_a_checkpoint_of_the_step_at_which_it_came(
    kd, lab: Lab, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = console.Watcher.batch

    def press(watcher: console.Watcher, progress: Any) -> None:
        watch(watcher, progress)
        if (progress.epoch, progress.batch) == (2, 4):
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(console.Watcher, "batch", press)
        stopped = kd(*words(lab, device, tmp_path / "run"), code=130)
    assert "kd resume" in stopped.message
    assert newest(tmp_path / "run") == (1, 4)
    kd(*words(lab, device, tmp_path / "run"))
    assert bits(tmp_path / "run") == lab.bits("kd")


def test_a_killed_process_is_gone_on_with_and_ends_with_the_same_bits(
    kd, lab: Lab, device: str, tmp_path: Path
) -> None:
    typed = (*words(lab, device, tmp_path / "run"), "trainer.epochs=20")
    with started(*typed) as process, suppress(ProcessLookupError):
        wait_for(process, f"{(tmp_path / 'run').relative_to(Path.cwd())}/checkpoints/epoch-0001*")
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "run" / "result.json").exists()
    kd(*typed)
    assert bits(tmp_path / "run") == lab.bits("kd", {"trainer.epochs": 20})
