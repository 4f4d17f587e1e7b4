"""A training that is killed at any moment goes on with the same command and ends with the same bits."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kd_cli.runs import checkpoint as checkpoints
from kd_cli.training.trainer import Trainer
from tests.support.forked import fork, run
from tests.support.interrupted import COMMANDS, HARD, STEPS, everything, write_network
from tests.support.sample import ALL, times

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the network, and a teacher that is trained."""
    folder = tmp_path_factory.mktemp("killed")
    write_network(folder)
    (folder / "work").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "work")
        run("train-teacher", *HARD, "hydra.run.dir=../teacher")
    return folder


@pytest.fixture
def work(place: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Path:
    monkeypatch.chdir(place / "work")
    return place


def cache_in(folder: Path, *calls: Callable[[], object]) -> Callable[[], None]:
    """What a process does first: it takes a cache of its own, and makes these calls."""

    def prepare() -> None:
        os.environ["KD_CACHE"] = str(folder / "cache")
        for call in calls:
            call()

    return prepare


SHORT = ("trainer.epochs=2", "trainer.batch_size=32")  # a checkpoint after each of fourteen steps


# Of each command: 50 are what docs/reliability.md counts, fewer what every run of the tests has time for.
KILLS = times(50, 5)
SAVING = times(10, 1)  # at least, while a checkpoint is written: chance misses more of few


@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_random_moments_it_ends_with_the_same_bits(command: str, work: Path, tmp_path: Path) -> None:
    """Three of five at any time, and two of five inside the writing of a checkpoint."""
    words = (command, *HARD, *COMMANDS[command], *SHORT)
    whole = tmp_path / "whole"
    start = time.monotonic()
    run(*words, f"hydra.run.dir={whole}", before=cache_in(whole))
    lasts, expected = time.monotonic() - start, everything(whole)
    moment, same, saving = random.Random(command), 0, 0
    for number in range(KILLS):
        folder = tmp_path / str(number)
        aimed, mark = number % 5 < 2, tmp_path / f"{number}-saving"
        save = partial(watch_saves, mark, moment.randrange(1, 14) if aimed else None, moment.uniform(0, 0.8))
        process = fork(*words, f"hydra.run.dir={folder}", before=cache_in(folder, save))
        if not aimed:
            time.sleep(moment.uniform(0.2, 1.0) * lasts)
            process.signal(signal.SIGKILL)
        process.ended()
        saving += mark.exists()
        run(*words, f"hydra.run.dir={folder}", before=cache_in(folder))
        same += everything(folder) == expected
        assert not leftovers(folder)
    print(f"{command}: {same} of {KILLS} ended as an undisturbed run, {saving} killed while a checkpoint was written")
    assert same == KILLS
    assert saving >= SAVING


def watch_saves(mark: Path, kill_at: int | None, share: float) -> None:
    """A file is there while this process writes a checkpoint; it kills itself in the middle of one of them.

    Args:
        kill_at: the first checkpoint has the number 0.
        share: of the time that the one before it took, from its beginning.
    """
    write, took = checkpoints.write_checkpoint, [0.0]

    def watched_write(*arguments: Any) -> None:
        start = time.monotonic()
        mark.touch()
        if len(took) - 1 == kill_at:
            threading.Timer(share * took[-1], os.kill, (os.getpid(), signal.SIGKILL)).start()
        write(*arguments)
        mark.unlink()
        took.append(time.monotonic() - start)

    checkpoints.write_checkpoint = watched_write


def leftovers(folder: Path) -> list[Path]:
    """What a process that was killed has left half written."""
    return [path for path in folder.rglob(".*") if path.name != ".lock" and "cache" not in path.parts]


def test_killed_before_and_after_every_rename_it_ends_with_the_same_bits(work: Path, tmp_path: Path) -> None:
    """Renames are what make a file or a folder whole: the process kills itself there.

    By default before the first of each name, and after the last of all.
    """
    words = ("distill", *HARD, *COMMANDS["distill"], *SHORT, "trainer.checkpoint_minutes=10")
    whole = tmp_path / "whole"
    run(*words, f"hydra.run.dir={whole}", before=cache_in(whole, partial(watch_renames, tmp_path / "renames")))
    points, expected, same = (tmp_path / "renames").read_text().splitlines(), everything(whole), []
    firsts = {points.index(name) for name in points}  # what comes after the others is what comes before the next ones
    every = [(number, False) for number in range(len(points))] + [(number, True) for number in firsts]
    for number, after in every if ALL else [*((number, False) for number in sorted(firsts)), (len(points) - 1, True)]:
        folder, here = tmp_path / f"{number}-{after}", tmp_path / f"{number}-{after}-renames"
        killed = fork(
            *(*words, f"hydra.run.dir={folder}"),
            before=cache_in(folder, partial(watch_renames, here, number, after)),
        ).ended()
        assert killed.code == -signal.SIGKILL, (points[number], killed.err)
        run(*words, f"hydra.run.dir={folder}", before=cache_in(folder))
        same.append(everything(folder) == expected and not leftovers(folder))
    print(f"{sum(same)} of {len(same)} ended with the same bits; the renames: {', '.join(points)}")
    assert all(same)
    named = "run.json config.yaml metrics.jsonl metrics.csv epoch-0001 epoch-0002 predictions.safetensors result.json"
    assert set(named.split()) <= set(points)


def watch_renames(names: Path, kill_at: int = -1, after: bool = False) -> None:
    """Writes down what is renamed in this process; kills it before or after one of them."""
    seen: list[str] = []
    plain = os.rename

    def rename(source: Any, destination: Any, **options: Any) -> None:
        seen.append(Path(destination).name)
        with names.open("a") as file:
            file.write(f"{seen[-1]}\n")
        if len(seen) - 1 != kill_at:
            plain(source, destination, **options)
            return
        if after:
            plain(source, destination, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    os.rename = os.replace = rename


TRIALS = times(10, 3)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_request_to_end_leaves_a_checkpoint_of_that_step(
    number: signal.Signals, code: int, work: Path, tmp_path: Path
) -> None:
    """Ten times each (three by default), at random moments of random steps: no step is lost and none is done twice."""
    words = ("distill", *HARD, *COMMANDS["distill"], "trainer.checkpoint_minutes=10")
    whole, moment, longest = tmp_path / "whole", random.Random(code), 0.0
    run(*words, f"hydra.run.dir={whole}", before=cache_in(whole, partial(count_steps, tmp_path / "all")))
    assert len((tmp_path / "all").read_text()) == STEPS
    for trial in range(TRIALS):
        folder, steps = tmp_path / str(trial), tmp_path / f"{trial}-steps"
        step, late = moment.randrange(1, STEPS), moment.uniform(0, 0.01)
        stopped = fork(
            *(*words, f"hydra.run.dir={folder}"),
            before=cache_in(folder, partial(count_steps, steps, step, late, number)),
        ).ended()
        longest = max(longest, time.time() - float((tmp_path / f"{trial}-steps.asked").read_text()))
        assert stopped.code == code, stopped.err
        assert "kd resume" in stopped.err
        assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
        run(*words, f"hydra.run.dir={folder}", before=cache_in(folder, partial(count_steps, steps)))
        assert len(steps.read_text()) == STEPS
        assert everything(folder) == everything(whole)
    print(f"{number.name}: {TRIALS} of {TRIALS}; the longest took {longest:.2f} s")
    assert longest < 5


def count_steps(file: Path, ask_at: int = 0, late: float = 0.0, number: signal.Signals = signal.SIGTERM) -> None:
    """Adds a letter for every step that is done; asks this process to end some time after one of them has begun."""
    learn = Trainer._learn

    def ask() -> None:
        Path(f"{file}.asked").write_text(str(time.time()))
        os.kill(os.getpid(), number)

    def learn_and_count(self: Trainer) -> None:
        if self.epoch * self.updates + self.step + 1 == ask_at:
            threading.Timer(late, ask).start()
        learn(self)
        with file.open("a") as letters:
            letters.write("x")

    Trainer._learn = learn_and_count  # type: ignore[method-assign]
