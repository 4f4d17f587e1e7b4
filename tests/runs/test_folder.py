"""A run's folder loses nothing and is never shared."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kd_cli.errors import ConfigError, DataError, DivergedError, KDError
from kd_cli.runs.checkpoint import Checkpoint
from kd_cli.runs.folder import RunDir, find_records, status_of
from kd_cli.runs.metrics import read_metrics

CONFIG = {"seed": 0, "loss": {"temperature": 4.0}}


def open_run(path: Path, config: dict = CONFIG, *, exact: bool = True) -> RunDir:
    return RunDir.open(path, {"command": "distill", "arguments": []}, config, exact=exact)


def save(run: RunDir, epoch: int, best: int | None = None) -> None:
    weight = torch.full((3,), float(epoch))
    run.checkpoints.save((epoch, 0), {"model": {"w": weight}}, {"note": epoch})
    run.checkpoints.prune((epoch, 0), best or epoch)


def test_a_new_run_is_running_and_ends_completed(tmp_path: Path) -> None:
    with open_run(tmp_path / "a") as run:
        assert run.record["status"] == "running"
        assert status_of(run.path) == "running"
    assert status_of(tmp_path / "a") == "completed"
    assert run.record["ended"] > run.record["started"]


@pytest.mark.parametrize(
    ("error", "status"),
    [(DivergedError("x"), "diverged"), (KeyboardInterrupt(), "interrupted"), (ValueError("x"), "failed")],
)
def test_the_way_a_run_ended_is_recorded(tmp_path: Path, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), open_run(tmp_path / "a"):
        raise error
    assert status_of(tmp_path / "a") == status


def test_a_killed_run_is_interrupted_not_running(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from kd_cli.runs.folder import RunDir\n"
        "run = RunDir.open(Path(sys.argv[1]), {'command': 'x', 'arguments': []}, {}, exact=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")])
    assert done.returncode == -signal.SIGKILL
    assert json.loads((tmp_path / "a" / "run.json").read_text())["status"] == "running"
    assert status_of(tmp_path / "a") == "interrupted"


def test_two_runs_of_one_second_get_two_folders(tmp_path: Path) -> None:
    with open_run(tmp_path / "a", exact=False) as first, open_run(tmp_path / "a", exact=False) as second:
        assert first.path.name == "a"
        assert second.path.name == "a-2"
    with open_run(tmp_path / "a", exact=False) as third:
        assert third.path.name == "a-3"


def test_a_named_folder_in_use_is_refused(tmp_path: Path) -> None:
    with open_run(tmp_path / "a"), pytest.raises(ConfigError, match="in use"):
        open_run(tmp_path / "a")


def test_a_named_folder_of_another_run_is_refused_with_the_difference(tmp_path: Path) -> None:
    with open_run(tmp_path / "a"):
        pass
    with pytest.raises(ConfigError, match=r"loss\.temperature: 4\.0 there, 9\.0 here"):
        open_run(tmp_path / "a", {"seed": 0, "loss": {"temperature": 9.0}})


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"hydra\.run\.dir"):
        open_run(tmp_path / "file" / "a")


def test_checkpoints_keep_the_two_newest_and_the_best(tmp_path: Path) -> None:
    with open_run(tmp_path / "a") as run:
        for epoch in range(1, 6):
            save(run, epoch, best=2 if epoch >= 2 else 1)
        assert sorted(p.name for p in (run.path / "checkpoints").iterdir()) == [
            "epoch-0002",
            "epoch-0004",
            "epoch-0005",
        ]
        latest = run.checkpoints.latest()
        assert latest is not None
        assert (latest.plain["note"], latest.place) == (5, (5, 0))
        assert torch.equal(latest.tensors("model")["w"], torch.full((3,), 5.0))


@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
def test_a_flipped_bit_is_noticed_and_the_previous_checkpoint_used(tmp_path: Path, name: str) -> None:
    with open_run(tmp_path / "a") as run:
        save(run, 1)
        save(run, 2)
        damaged = run.path / "checkpoints" / "epoch-0002" / name
        data = bytearray(damaged.read_bytes())
        data[-1] ^= 1
        damaged.write_bytes(data)
        with pytest.raises(DataError, match="SHA-256"):
            Checkpoint(damaged.parent)
        latest = run.checkpoints.latest()
        assert latest is not None
        assert latest.plain["epoch"] == 1


def test_a_checkpoint_without_a_manifest_is_passed_over(tmp_path: Path) -> None:
    with open_run(tmp_path / "a") as run:
        save(run, 1)
        (run.path / "checkpoints" / "epoch-0002").mkdir()
        latest = run.checkpoints.latest()
        assert latest is not None
        assert latest.plain["epoch"] == 1


def test_a_full_disk_says_so_and_loses_nothing(tmp_path: Path) -> None:
    with open_run(tmp_path / "a") as run:
        save(run, 1)
        before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, old[1]))  # every larger file meets the error of a full disk
        try:
            with pytest.raises(KDError, match="cannot be written"):
                run.checkpoints.save((2, 0), {"model": {"w": torch.zeros(10_000)}}, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_metrics_are_written_for_programs_and_for_spreadsheets(tmp_path: Path) -> None:
    with open_run(tmp_path / "a") as run:
        run.log([{"epoch": epoch, "train_loss": 1 / epoch} for epoch in (1, 2)])
        assert [row["epoch"] for row in read_metrics(run.path)] == [1, 2]
        assert (run.path / "metrics.csv").read_text().splitlines() == ["epoch,train_loss", "1,1.0", "2,0.5"]


def test_find_runs_lists_the_newest_first(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        with open_run(tmp_path / name):
            pass
    assert [path.name for path, _ in find_records(tmp_path)] == ["c", "b", "a"]
