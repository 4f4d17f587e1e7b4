"""A sweep's points on one GPU, in one process: each has the bits that it has alone, and ends by itself."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_cli.sweeps.processes import run_points
from kd_cli.sweeps.share import Share
from kd_cli.sweeps.worker import Work
from kd_cli.turns import rest
from tests.conftest import started, wait_for
from tests.sweeps.test_together import left_by, point

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

# Batch normalisation, augmentation, dropout's seeds, a last batch that is smaller, and enough updates for a graph.
SMALL = (
    *("dataset=synthetic", "dataset.num_train=600", "dataset.num_test=100", "dataset.augment=crop_flip"),
    *("teacher=resnet14", "student=resnet8", "trainer.epochs=2", "trainer.batch_size=32", "trainer.lr=0.01"),
)
LONG = ("trainer.epochs=300", "trainer.checkpoint_every=1000")


def share(at_once: int | None) -> Share:
    return Share(1, 4, at_once=at_once, device="cuda:0")


def read(*path: str) -> Any:
    return json.loads(Path(*path).read_text())


def of(label: str, start: Callable[[], dict[str, Any]]) -> Work:
    return Work(label, Path("swept", label).resolve(), dict(os.environ), start)


def test_a_sweep_is_one_process_and_its_points_are_the_runs_alone(kd) -> None:
    kd("train-teacher", *SMALL, "trainer.epochs=1", "hydra.run.dir=teacher")
    precise = "tf32" if torch.cuda.get_device_capability() >= (8, 0) else "bf16"
    words = ("distill", *SMALL, "teacher.checkpoint=teacher")
    varied = (f"trainer.precision=fp32,{precise}", "loss.temperature=1,4", "hydra.sweep.dir=joint")
    points = kd(*words, "-m", *varied, "--json").json["points"]
    assert [each["status"] for each in points] == ["completed"] * 4
    assert len({read(each["folder"], "run.json")["pid"] for each in points}) == 1
    for precision in ("fp32", precise):
        for temperature in (1, 4):
            own = (f"trainer.precision={precision}", f"loss.temperature={temperature}")
            kd(*words, *own, f"hydra.run.dir=alone/{precision}-{temperature}")
            swept = Path("joint", f"loss.temperature={temperature},trainer.precision={precision}")
            joint, alone = left_by(swept), left_by(Path("alone", f"{precision}-{temperature}"))
            for each in (joint, alone):
                del each["record"]  # of threads, which the sweep divides
            assert joint == alone


def test_points_of_a_comparison_share_teacher_and_baseline(kd) -> None:
    points = kd("run", "-m", *SMALL, "loss.temperature=1,4,8", "hydra.sweep.dir=swept", "--json").json["points"]
    assert [each["status"] for each in points] == ["completed"] * 3
    kd("run", *SMALL, "loss.temperature=4", "hydra.run.dir=alone")
    for part in ("teacher", "baseline", "distilled"):
        joint = read("swept/loss.temperature=4", part, "result.json")["weights_sha256"]
        assert joint == read("alone", part, "result.json")["weights_sha256"]


@pytest.fixture
def whole_card(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One test at a time takes most of the memory, whatever runs beside it."""
    with (tmp_path_factory.getbasetemp().parent / "whole-card").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def hog(part: float) -> dict[str, Any]:
    """Has so much of the device's memory for a while."""
    taken = torch.empty(int(part * torch.cuda.mem_get_info()[1]), dtype=torch.uint8, device="cuda")
    for _ in range(50):
        rest(0.01)
    return {"bytes": taken.numel()}


def test_what_does_not_fit_beside_others_is_run_again_alone_and_what_never_fits_fails_alone(capsys, whole_card) -> None:
    works = [of("large", partial(hog, 0.6)), of("other", partial(hog, 0.6)), of("huge", partial(hog, 1.5))]
    points = run_points([*works, point("swept/small")], share(4))
    assert [each["status"] for each in points] == ["completed", "completed", "failed", "completed"]
    assert "memory" in points[2]["error"]
    assert "point 2 of 4 was out of memory beside others" in capsys.readouterr().out


def test_as_many_begin_as_the_memory_takes(whole_card) -> None:
    points = run_points([of(name, partial(hog, 0.3)) for name in "abcd"], share(None))
    assert [each["status"] for each in points] == ["completed"] * 4


def break_the_device() -> dict[str, Any]:
    """Reads what is not there."""
    rest(0.1)
    row = torch.tensor([10**6], device="cuda")
    return {"value": float(torch.zeros(3, device="cuda")[row].sum())}


def test_an_error_that_breaks_the_device_is_one_points_and_the_others_go_on(kd, capsys) -> None:
    works = [point("joint/long", *LONG[:1]), of("deadly", break_the_device)]
    points = run_points(works, share(2))
    assert [each["status"] for each in points] == ["completed", "failed"]
    assert "CUDA" in points[1]["error"] or "assert" in points[1]["error"]
    assert "goes on in one of its own" in capsys.readouterr().err


def test_ctrl_c_leaves_checkpoints_of_all_points_and_the_same_sweep_goes_on_with_the_same_bits(kd) -> None:
    command = ("train-baseline", "-m", *SMALL, *LONG, "seed=0,1", "hydra.sweep.dir=swept")
    with started(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_for(process, *(f"swept/seed={seed}/checkpoints/epoch-*" for seed in (0, 1)))
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert [read(f"swept/seed={seed}/run.json")["status"] for seed in (0, 1)] == ["interrupted"] * 2
    kd(*command)
    kd("train-baseline", *SMALL, *LONG, "seed=1", "hydra.run.dir=alone")
    assert read("swept/seed=1/result.json")["weights_sha256"] == read("alone/result.json")["weights_sha256"]
