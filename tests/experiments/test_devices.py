"""`devices=N`: one run that several processes train, as one would."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_cli.errors import ConfigError, KDError
from kd_cli.launch.copies import first_node
from kd_cli.runs.checkpoint import Checkpoint
from kd_cli.runs.metrics import read_metrics
from kd_cli.runs.records import sound_record
from tests.conftest import ROOT, SMALL, Outcome
from tests.support.forked import Forked, fork
from tests.support.forked_ranks import ended_within, fork_ranks, ranks_of
from tests.support.images import make_photographs
from tests.support.interrupted import everything
from tests.support.sample import times

QUICK = (*SMALL, "dataset.augment=crop_flip")


@pytest.fixture
def _forked_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    fork_ranks(monkeypatch)


def numbers(run: Path) -> list[dict[str, Any]]:
    left_out = ("seconds", "images_per_second")
    return [{key: value for key, value in row.items() if key not in left_out} for row in read_metrics(run)]


def check_like(one: Path, other: Path) -> None:
    """The same up to the order of sums."""
    for row, same in zip(numbers(one), numbers(other), strict=True):
        assert row == pytest.approx(same, rel=1e-4)
    first, second = (Checkpoint(max((run / "checkpoints").iterdir())).tensors("model") for run in (one, other))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-5, atol=1e-5, msg=name)


def typed(page: str, section: str, program: str) -> list[list[str]]:
    """The lines of a section that begin with a program, without it."""
    text = (ROOT / "docs" / page).read_text().partition(f"## {section}\n")[2].partition("\n## ")[0]
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)).splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith(f"{program} ")]


@pytest.mark.slow
def test_a_comparison_on_two_devices_is_that_of_one(kd: Any) -> None:
    train, go_on = typed("scaling.md", "One network on several devices", "kd")
    kd("run", *QUICK, "hydra.run.dir=one")
    outcome: Outcome = kd(*train, *QUICK, "--json")
    assert outcome.json["distilled"]["run"].endswith("two/distilled")
    for part in ("teacher", "baseline", "distilled"):
        check_like(Path("one") / part, Path("two") / part)
    assert {path.name for path in Path("two").iterdir()} == {path.name for path in Path("one").iterdir()}
    assert "complete already" in kd(*go_on).out  # on whatever devices


@pytest.mark.slow
@pytest.mark.usefixtures("_forked_ranks")
def test_specialists_are_trained_together_too(kd: Any) -> None:
    words = ("run", *QUICK, "dataset.num_train=150", "specialists.groups=1", "specialists.classes=4")
    words = (*words, "dataset.val_fraction=0.3", "trainer.swa_epochs=1")
    kd(*words, "hydra.run.dir=one")
    kd(*words, "devices=2", "hydra.run.dir=two")
    for part in ("teacher", "specialist-1", "baseline", "distilled"):
        check_like(Path("one") / part, Path("two") / part)


@pytest.mark.slow
@pytest.mark.usefixtures("_forked_ranks")
def test_a_run_whose_teacher_was_asked_live_is_extended_by_all(kd: Any) -> None:
    kd("train-teacher", *SMALL, "hydra.run.dir=taught")
    words = ("distill", *SMALL, "teacher.checkpoint=taught", "trainer.schedule=constant", "teacher_cache_gb=0.000001")
    kd(*words, "devices=2", "hydra.run.dir=there")
    assert sound_record(Path("there"))["teacher_asked_from_epoch"] == 0  # type: ignore[index]
    kd("resume", "there", "trainer.epochs=3", "devices=2")
    assert sound_record(Path("there-3-epochs"))["status"] == "completed"  # type: ignore[index]


@pytest.mark.slow
@pytest.mark.usefixtures("_forked_ranks")
def test_points_of_a_sweep_can_have_several_devices(kd: Any) -> None:
    kd("train-baseline", *QUICK, "-m", "seed=0,1", "devices=2", "hydra.sweep.dir=swept")
    for seed in (0, 1):
        kd("train-baseline", *QUICK, f"seed={seed}", f"hydra.run.dir=alone-{seed}")
        check_like(Path(f"alone-{seed}"), Path(f"swept/seed={seed}"))


@pytest.mark.slow
@pytest.mark.usefixtures("_forked_ranks")
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
    places = [{name: value.format(rank=rank) for name, value in place.items()} for rank in (0, 1)]
    both = [fork(*words, before=partial(os.environ.update, each)) for each in places]
    return [(said.code, said.out + said.err) for said in (each.ended() for each in both)]


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


@pytest.mark.slow
def test_torchrun_itself_starts_them(kd: Any) -> None:
    (words,) = typed("scaling.md", "One network on several devices", "torchrun")
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--master-port={free_port()}", *words]
    options = (*QUICK, "hydra.run.dir=both", "--json")
    said = subprocess.run([*torchrun, *options], capture_output=True, text=True, timeout=100)
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["distilled"]["run"].endswith("both/distilled")
    kd("run", *QUICK, "hydra.run.dir=one")
    for part in ("teacher", "baseline", "distilled"):
        check_like(Path("one") / part, Path("both") / part)


@pytest.mark.slow
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


KILLS = times(20, 3)


@pytest.mark.slow
@pytest.mark.usefixtures("_forked_ranks")
def test_any_process_killed_at_a_random_moment_ends_all_and_the_run_goes_on_on_any_number(kd: Any) -> None:
    """With as many devices again it ends with the same bits, otherwise with the same numbers."""
    words = ("run", *QUICK, "trainer.checkpoint_minutes=0")
    start = time.monotonic()
    kd(*words, "devices=2", "hydra.run.dir=whole")
    lasts, moment = time.monotonic() - start, random.Random(0)
    for number in range(KILLS):
        folder, devices = f"killed-{number}", moment.choice([1, 2, 2, 3])
        printed, victim = killed((*words, "devices=2", f"hydra.run.dir={folder}"), moment, lasts)
        if victim != "parent" and not (Path(folder) / "result.json").exists():
            assert f"process {victim} of this training was killed by signal 9" in printed
            assert f"kd resume {folder}" in printed or f'hydra.run.dir="{folder}"' in printed
        kd(*words, f"devices={devices}", f"hydra.run.dir={folder}")
        for part in ("teacher", "baseline", "distilled"):
            check_like(Path("whole") / part, Path(folder) / part)
            assert devices != 2 or everything(Path("whole") / part) == everything(Path(folder) / part)


def killed(words: tuple[str, ...], moment: random.Random, lasts: float) -> tuple[str, str]:
    """What a command printed, one of whose processes was killed, and which; all of them have ended."""
    process = fork(*words)
    there = {"parent": process.pid}
    if not ended_within(process.pid, moment.uniform(0.2, 1.0) * lasts):
        there |= {str(rank): pid for rank, pid in ranks_of(process.pid).items()}
    victim = moment.choice(sorted(there))
    os.kill(there[victim], signal.SIGKILL)
    assert ended_within(process.pid, 90)
    printed = process.ended().message
    wait_for_the_end_of(there.values())
    return printed, victim


def wait_for_the_end_of(processes: Iterable[int]) -> None:
    end = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in processes):
        assert time.monotonic() < end


@pytest.mark.slow
@pytest.mark.usefixtures("_forked_ranks")
def test_processes_whose_starter_is_killed_do_not_train_on() -> None:
    process = training_for_long("left")
    ranks = ranks_of(process.pid)
    assert sorted(ranks) == [0, 1]
    process.signal(signal.SIGKILL)
    wait_for_the_end_of(ranks.values())
    assert (sound_record(Path("left")) or {})["status"] in ("running", "interrupted")


def training_for_long(folder: str) -> Forked:
    """On two devices; its third epoch is over."""
    process = fork("train-baseline", *QUICK, "trainer.epochs=2000", "devices=2", f"hydra.run.dir={folder}")
    while not list(Path(folder).glob("checkpoints/epoch-0003*")):
        assert not ended_within(process.pid, 0.01)
    return process


@pytest.mark.slow
@pytest.mark.usefixtures("_forked_ranks")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_request_to_end_leaves_a_checkpoint_of_that_step(kd: Any, number: signal.Signals, code: int) -> None:
    process = training_for_long("stopped")
    process.signal(number)
    assert ended_within(process.pid, 90)
    assert process.ended().code == code
    assert (sound_record(Path("stopped")) or {})["status"] == "interrupted"
    assert len(read_metrics(Path("stopped"))) >= 3


def test_what_one_process_said_is_told_where_its_end_ended_the_others(tmp_path, monkeypatch) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
    from torch.distributed.launcher import api

    from kd_cli.launch.train_on import _start

    said = {"title": "ConfigError", "text": "type devices=1", "time": 1.0}
    (tmp_path / "error-1.json").write_text(json.dumps(said))
    (tmp_path / "go-on").write_text("kd resume there")
    codes = {0: -signal.SIGTERM, 1: 2}

    def agent(*_: object) -> Callable[..., None]:
        def start(*_: object) -> None:
            failures = {rank: ProcessFailure(rank, 0, code, "none") for rank, code in codes.items()}
            raise ChildFailedError("kd", failures)

        return start

    monkeypatch.setattr(api, "elastic_launch", agent)
    with pytest.raises(ConfigError, match="type devices=1"):
        _start(2, tmp_path)
    codes[0] = -signal.SIGKILL
    with pytest.raises(KDError, match="process 0 of this training was killed by signal 9"):
        _start(2, tmp_path)
