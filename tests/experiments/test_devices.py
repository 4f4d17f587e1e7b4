"""`devices=N`: one run that several processes train, as one would."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kd_cli.launch.copies import first_node
from kd_cli.runs.checkpoint import Checkpoint
from kd_cli.runs.metrics import read_metrics
from kd_cli.runs.records import sound_record
from tests.conftest import SMALL, Outcome, started, wait_for
from tests.support.images import make_photographs

QUICK = (*SMALL, "dataset.augment=crop_flip")


def ranks_of(parent: int) -> dict[int, int]:
    """Rank → process, of those that a `kd` has started."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            child = int((process / "stat").read_text().rpartition(")")[2].split()[1]) == parent
            names = dict(each.partition("=")[::2] for each in (process / "environ").read_text().split("\0"))
        except OSError:
            continue
        if child and "RANK" in names:
            found[int(names["RANK"])] = int(process.name)
    return found


def numbers(run: Path) -> list[dict[str, Any]]:
    left_out = ("seconds", "images_per_second")
    return [{key: value for key, value in row.items() if key not in left_out} for row in read_metrics(run)]


def check_like(one: Path, other: Path) -> None:
    """The same up to the order of sums."""
    for row, same in zip(numbers(one), numbers(other), strict=True):
        assert row == pytest.approx(same, rel=1e-4)
    first, second = (Checkpoint(max((run / "checkpoints").iterdir())).tensors("model") for run in (one, other))
    assert all((first[name] - second[name]).abs().max() < 1e-5 for name in first)


def test_a_comparison_on_two_devices_is_that_of_one(kd: Any) -> None:
    kd("run", *QUICK, "hydra.run.dir=one")
    outcome: Outcome = kd("run", *QUICK, "devices=2", "hydra.run.dir=two", "--json")
    assert outcome.json["distilled"]["run"].endswith("two/distilled")
    for part in ("teacher", "baseline", "distilled"):
        check_like(Path("one") / part, Path("two") / part)
    assert {path.name for path in Path("two").iterdir()} == {path.name for path in Path("one").iterdir()}
    kd("run", *QUICK, "devices=3", "hydra.run.dir=two")  # complete already, on whatever devices


@pytest.mark.slow
def test_streamed_photographs_and_a_teacher_that_is_asked_live_are_shared_too(kd: Any) -> None:
    make_photographs(Path("tree"), per_class=12)  # 33 for training: the last batch leaves each rank one
    words = ("run", "dataset=image_folder", "dataset.root=tree", "dataset.in_memory=false", "dataset.image_size=32")
    words += ("dataset.augment=[random_resized_crop,flip]", "teacher=resnet8", "student=resnet8", "teacher_cache=false")
    words += ("trainer.epochs=1", "trainer.batch_size=10", "trainer.optimizer=sgd", "dataset.val_fraction=0.1")
    kd(*words, "hydra.run.dir=one")
    kd(*words, "devices=3", "hydra.run.dir=three")
    for part in ("teacher", "baseline", "distilled"):
        check_like(Path("one") / part, Path("three") / part)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("devices=0",), "devices: 0 is not possible; type devices=N"),
        (("devices=some",), "devices: 'some' is not possible; type devices=N"),
        (("devices=51",), "devices: 51 are more than a batch has images (trainer.batch_size=50); type devices=50"),
        (("devices=2", "trainer.compile=true"), "type trainer.compile=false"),
        (("devices=2", "dataset.augment=mixup"), "leave them out, or type devices=1"),
    ],
)
def test_what_several_devices_cannot_do_is_refused_before_anything_is_written(
    kd: Any, words: tuple[str, ...], said: str
) -> None:
    outcome: Outcome = kd("train-baseline", *SMALL, *words, "--dry-run", code=2)
    assert said in outcome.message
    assert not list(Path().rglob("run.json"))


def copies(place: dict[str, str], words: tuple[str, ...]) -> list[tuple[int, str]]:
    """What two copies of `kd` printed, and their exit codes."""
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "kd_cli", *words],
            env={**os.environ, **{name: value.format(rank=rank) for name, value in place.items()}},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (1, 0)
    ]
    said = [(each.communicate()[0], each.wait()) for each in both]
    return [(code, text) for text, code in reversed(said)]


def free_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return str(taken.getsockname()[1])


TORCHRUN = {"RANK": "{rank}", "LOCAL_RANK": "{rank}", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
SRUN = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "{rank}", "SLURM_LOCALID": "{rank}", "SLURM_JOB_ID": "7"}


@pytest.mark.parametrize("starter", [TORCHRUN, SRUN], ids=["torchrun", "srun"])
def test_copies_that_are_there_already_train_one_network(kd: Any, starter: dict[str, str]) -> None:
    words = ("train-baseline", *QUICK, "devices=auto", "hydra.run.dir=both")
    (code, said), (other_code, other_said) = copies({**starter, "MASTER_PORT": free_port()}, words)
    assert (code, other_code, other_said) == (0, 0, ""), said + other_said
    assert "of the test images" in said
    kd("train-baseline", *QUICK, "hydra.run.dir=one")
    check_like(Path("one"), Path("both"))


def test_copies_of_another_number_than_typed_all_end_with_one_message() -> None:
    words = ("train-baseline", *QUICK, "devices=3", "hydra.run.dir=none")
    (code, said), (other_code, other_said) = copies({**TORCHRUN, "MASTER_PORT": free_port()}, words)
    assert (code, other_code, other_said) == (2, 2, "")
    assert "type devices=2" in " ".join(said.split())
    assert not list(Path().rglob("run.json"))


@pytest.mark.parametrize(
    ("nodes", "first"), [("gpu[03-07,12]", "gpu03"), ("login,gpu[1-2]", "login"), ("n-1", "n-1"), ("a[7]", "a7")]
)
def test_the_first_of_slurms_nodes_is_where_they_meet(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1, "parent"])
def test_a_killed_process_ends_all_and_the_run_goes_on_on_other_devices(kd: Any, victim: int | str) -> None:
    words = ("train-baseline", *QUICK, "trainer.epochs=20", "trainer.checkpoint_minutes=0")
    with started(*words, "devices=2", "hydra.run.dir=killed") as process:
        wait_for(process, "killed/checkpoints/epoch-0003*")
        os.kill(process.pid if victim == "parent" else ranks_of(process.pid)[int(victim)], signal.SIGKILL)
        process.wait(timeout=30)
    if victim != "parent":
        assert (sound_record(Path("killed")) or {})["status"] in ("interrupted", "running")
    kd("resume", "killed", "devices=3")
    kd(*words, "hydra.run.dir=whole")
    check_like(Path("killed"), Path("whole"))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_request_to_end_leaves_a_checkpoint_of_that_step(kd: Any, number: signal.Signals, code: int) -> None:
    with started("train-baseline", *QUICK, "trainer.epochs=2000", "devices=2", "hydra.run.dir=stopped") as process:
        wait_for(process, "stopped/checkpoints/epoch-0003*")
        os.kill(process.pid, number)
        assert process.wait(timeout=30) == code
    assert (sound_record(Path("stopped")) or {})["status"] == "interrupted"
    assert len(read_metrics(Path("stopped"))) >= 3
