"""Runs that start at the same time: no folder is shared, whoever comes second is told who has it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kd_cli.storage.cache import folder_size
from kd_cli.storage.files import matching, write_text
from kd_cli.storage.locks import holder, is_held, take
from tests.conftest import SMALL
from tests.support.forked import Forked, fork, run
from tests.support.images import make_tree
from tests.support.sample import times

TINY = (
    *("dataset=synthetic", "dataset.num_train=60", "dataset.num_test=20", "dataset.image_size=8"),
    *("teacher=linear", "student=linear", "trainer.epochs=2", "trainer.batch_size=20"),
)


def weights(folder: str | Path) -> str:
    return json.loads(Path(folder, "result.json").read_text())["weights_sha256"]


def all_end(started: list[Forked], *codes: int) -> None:
    for each in started:
        assert each.ended().code in codes, f"{each.ended().out}\n{each.ended().err}"


def wait_until(there: Callable[[], object]) -> None:
    while not there():
        os.sched_yield()


# --- folders


def test_a_lock_is_not_inherited_and_ends_with_close(tmp_path: Path) -> None:
    lock = take(tmp_path / "a", "kd run")
    assert lock is not None
    pid = os.fork()
    if pid == 0:
        signal.pause()
    assert take(tmp_path / "a", "kd distill") is None
    assert holder(tmp_path / "a").startswith(f"process {os.getpid()} on ")
    assert holder(tmp_path / "a").endswith(" UTC (kd run)")
    lock.close()
    assert is_held(tmp_path / "a") is False
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert holder(tmp_path / "a") == "another process"  # nobody says who


def test_a_folder_that_was_removed_and_made_again_is_another_one(tmp_path: Path) -> None:
    first = take(tmp_path / "a", "kd run")
    assert first is not None
    first.check()
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        first.check()
    second = take(tmp_path / "a", "kd run")
    assert second is not None
    second.check()
    with pytest.raises(FileNotFoundError):
        first.check()
    for lock in (first, second):
        lock.close()


def test_where_there_are_no_locks_the_process_that_is_named_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(_file: object, _how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    pid = os.fork()
    if pid == 0:
        take(tmp_path / "a", "kd run")
        signal.pause()
    wait_until(lambda: (tmp_path / "a" / ".lock").exists() and holder(tmp_path / "a") != "another process")
    assert take(tmp_path / "a", "kd run") is None
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    lock = take(tmp_path / "a", "kd run")
    assert lock is not None
    lock.close()
    assert "is on a file system without locks" in caplog.text


STARTS = times(64, 12)


@pytest.mark.slow
def test_64_starts_with_one_name_get_64_folders() -> None:
    """All are given the name that a second gives; the preset, not the command line, fixes it."""
    Path("presets/experiment").mkdir(parents=True)
    preset = "# @package _global_\nhydra:\n  run:\n    dir: outputs/now\n"
    Path("presets/experiment/now.yaml").write_text(preset)
    words = ("train-baseline", *TINY, "--config-dir", "presets", "experiment=now", "--json")
    started = [fork(*words) for _ in range(STARTS)]
    all_end(started, 0)
    folders = {each.ended().json["run"] for each in started}
    assert len(folders) == STARTS
    assert sorted(Path("outputs").iterdir()) == sorted(Path(folder).relative_to(Path.cwd()) for folder in folders)
    assert {json.dumps(weights(folder)) for folder in folders} == {json.dumps(weights("outputs/now"))}


RIVALS = times(16, 6)


@pytest.mark.slow
def test_of_sixteen_starts_in_a_named_folder_one_wins_and_the_others_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "3000")
    words = ("train-baseline", *TINY, "trainer.epochs=100000", "hydra.run.dir=one")
    started = [fork(*words) for _ in range(RIVALS)]
    wait_until(lambda: Path("one/.lock").exists() and "process" in holder(Path("one"))[:7])
    pid = json.loads(Path("one/.lock").read_text())["pid"]
    losers = [each for each in started if each.pid != pid]
    assert len(losers) == RIVALS - 1
    all_end(losers, 2)
    told = (
        rf"one is in use by process {pid} on \S+ since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC \(kd train-baseline .*\); "
    )
    assert all(re.search(told, each.ended().message) for each in losers)
    (winner,) = [each for each in started if each.pid == pid]
    winner.signal(signal.SIGTERM)
    assert winner.ended().code == 143


@pytest.mark.slow
def test_a_dead_holder_is_taken_over_at_once_although_its_workers_still_live() -> None:
    tree = make_tree(Path("tree"), per_class=8)
    words = ("train-baseline", "dataset=image_folder", f"dataset.root={tree}", "dataset.image_size=8")
    words = (
        *words,
        "dataset.in_memory=false",
        "dataset.workers=2",
        "student=linear",
        "trainer.epochs=6",
        "trainer.batch_size=4",
    )
    run(*words, "hydra.run.dir=whole")
    begun = fork(*words, "hydra.run.dir=mine")
    wait_until(lambda: list(Path("mine").glob("checkpoints/epoch-*")))
    begun.signal(signal.SIGKILL)
    assert begun.ended().code == -signal.SIGKILL
    run("resume", "mine")
    assert weights("mine") == weights("whole")


# --- sweeps


@pytest.mark.slow
def test_of_two_starts_of_a_sweep_one_wins_and_points_share_their_parts() -> None:
    sweep = ("run", "-m", *TINY, "loss.temperature=1,2", "hydra/launcher=basic", "hydra.sweep.dir=sweep")
    started = [fork(*sweep) for _ in range(4)]
    assert sorted(each.ended().code for each in started) == [0, 2, 2, 2]
    lost = [each.ended().message for each in started if each.ended().code]
    assert all("this sweep runs already, in process " in message for message in lost), lost


@pytest.mark.slow
def test_points_of_a_sweep_in_two_processes_train_their_common_parts_once() -> None:
    run("run", *TINY, "loss.temperature=2", "hydra.run.dir=alone")
    Path("sweep").mkdir()
    for name in ("sweep.json", ".lock"):  # as a sweep has them
        Path("sweep", name).write_text("{}")
    points = [("run", *TINY, f"loss.temperature={t}", f"hydra.run.dir=sweep/{t}") for t in (1, 2, 3, 4)]
    all_end([fork(*point) for point in points], 0)
    assert len(list(Path("sweep/parts").iterdir())) == 2
    for part in ("teacher", "baseline"):
        assert len({Path(f"sweep/{t}/{part}").resolve() for t in (1, 2, 3, 4)}) == 1
    for part in ("teacher", "baseline", "distilled"):
        assert weights(f"sweep/2/{part}") == weights(f"alone/{part}")


# --- the teacher's answers


def distil(*words: str) -> tuple[str, ...]:
    return ("distill", *SMALL, "dataset.augment=crop_flip", "teacher.checkpoint=teacher", *words)


ASKING = times(8, 4)


@pytest.mark.slow
def test_of_eight_processes_one_asks_the_teacher_and_all_get_the_same_student() -> None:
    run("train-teacher", *SMALL, "hydra.run.dir=teacher")
    run(*distil("trainer.epochs=1", "teacher_cache=false", "hydra.run.dir=alone"))
    started = [fork(*distil("trainer.epochs=1", f"hydra.run.dir=run-{number}")) for number in range(ASKING)]
    all_end(started, 0)
    said = [each.ended().out for each in started]
    assert sum("teacher    is asked about all" in text for text in said) == 1
    assert {json.dumps(weights(f"run-{number}")) for number in range(ASKING)} == {json.dumps(weights("alone"))}


@pytest.mark.slow
def test_killed_writers_and_a_cache_that_is_cleared_meanwhile_change_no_student() -> None:
    run("train-teacher", *SMALL, "hydra.run.dir=teacher")
    run(*distil("teacher_cache=false", "hydra.run.dir=alone"))
    killed = [fork(*distil(f"hydra.run.dir=killed-{number}"), before=dies_before_a_rename) for number in range(2)]
    started = [fork(*distil(f"hydra.run.dir=run-{number}")) for number in range(times(6, 3))]
    cleared = []
    while any(os.waitid(os.P_PID, each.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None for each in started):
        cleared.append(fork("cache", "clear"))
        all_end(cleared, 0)
    all_end(started, 0)
    all_end(killed, 0, -signal.SIGKILL)
    assert len(cleared) >= 2
    assert {json.dumps(weights(f"run-{number}")) for number in range(len(started))} == {json.dumps(weights("alone"))}
    run("cache", "verify")
    for number in range(2):
        run("resume", f"killed-{number}")
        assert weights(f"killed-{number}") == weights("alone")


def test_what_is_removed_while_it_is_looked_at_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "entry" / "view").mkdir(parents=True)
    (tmp_path / "entry" / "view" / "a.rows").write_text("four")
    (tmp_path / "entry" / "about.json").write_text("three")
    assert folder_size(tmp_path / "entry") == 9
    list_folder = os.scandir

    def late(path: str | Path | int) -> Any:
        if str(path).endswith("view"):
            shutil.rmtree(path, ignore_errors=True)
        return list_folder(path)

    monkeypatch.setattr(os, "scandir", late)
    assert folder_size(tmp_path / "entry") == 5
    (tmp_path / "entry" / "view").mkdir()
    assert matching(tmp_path / "entry" / "view", "*.rows") == []


def dies_before_a_rename() -> None:
    """This process is killed when an answer of the teacher is on the disk and has not got its name yet."""
    rename = os.replace

    def replace(old: str | Path, new: str | Path, **options: int) -> None:
        if "/teacher/" in str(new) and str(new).endswith(".rows") and "seed-" in str(new):
            os.kill(os.getpid(), signal.SIGKILL)
        rename(old, new, **options)

    os.replace = replace


def test_threads_that_write_one_file_leave_it_whole(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()

    def write(number: int) -> None:
        for _ in range(30):
            write_text(folder / "one.json", str(number))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert [path.name for path in folder.iterdir()] == ["one.json"]
