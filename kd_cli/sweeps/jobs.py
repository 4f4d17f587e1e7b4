"""The points of a sweep as jobs of submitit: it says where and when, and there each runs as it always does."""

from __future__ import annotations

import fcntl
import io
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, replace
from functools import partial
from os.path import relpath
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from kd_cli import console
from kd_cli.errors import ConfigError, KDError, offer
from kd_cli.machine import available_cores, given_threads
from kd_cli.runs.records import sound_result
from kd_cli.storage.files import read_json
from kd_cli.sweeps.crew import show_point
from kd_cli.sweeps.fork_server import STOP, heeding
from kd_cli.sweeps.point import KEPT, Point, failed, not_started, outcome_file, point_names, record_point
from kd_cli.sweeps.processes import run_points
from kd_cli.sweeps.queue import elsewhere
from kd_cli.sweeps.share import Share
from kd_cli.sweeps.worker import Work, logs_of

if TYPE_CHECKING:
    from kd_cli.runs.sweep_folder import SweepDir
    from kd_cli.sweeps.submitit import Submitit


@dataclass(frozen=True)
class Job:
    """A point that runs wherever submitit starts it: in a process of its own there, which may die without harm.

    Args:
        threads: None: as many as there are cores where it runs.
        lease: a file that the sweep keeps locked for as long as it wants points; None: nobody has to want them.
        minutes: that submitit gives it.
    """

    work: Work
    threads: int | None
    lease: Path | None
    minutes: int

    def __call__(self) -> None:
        from submitit import JobEnvironment

        record_point(self._point(), outcome_file(JobEnvironment().paths))

    def _point(self) -> Point:
        if self._unwanted():
            return not_started(self.work.label)
        with _warned() as warnings:
            point = self._run(lambda: bool(warnings) or self._unwanted() or bool(signal.sigpending() & STOP))
        if point["status"] != "interrupted" or not warnings:
            return point
        try:
            warnings[0]()  # starts the job again, by an exit code, where that is wanted
        except Exception:  # of submitit; its words are for programmers
            return failed(self.work.label, _out_of_time(self.minutes))
        return point

    def _run(self, unwanted: Callable[[], bool]) -> Point:
        for number in STOP if self.lease else ():  # a terminal's Ctrl-C reaches this process, too; the sweep decides
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP)  # a cluster asks twice, and not because it is impatient
        share = Share(1, self.threads or given_threads() or available_cores())
        work = replace(self.work, environment=dict(os.environ))  # of this machine
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # the sweep says what there is to say
            (point,) = run_points([work], share, unwanted=unwanted)
        return point

    def checkpoint(self) -> Any:
        """What submitit is to start again after it took the machine away: the same, it goes on where it was."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _unwanted(self) -> bool:
        if self.lease is None:
            return False
        try:
            with self.lease.open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # the file is gone, too
            return True
        return True


def _out_of_time(minutes: int) -> KDError:
    limit, more = (offer("hydra.launcher.timeout_min", length) for length in (minutes, 2 * minutes))
    return KDError(
        f"its job was stopped at its time limit ({limit}); what was trained is kept. Type the same command to go on "
        f"with it, and {more} behind it for more time"
    )


@contextmanager
def _warned() -> Iterator[list[Callable[[], object]]]:
    """Fills a list when submitit is told that the machine will be taken away, with what it would do at once.

    The point has its time to save what it has first.
    """
    warnings: list[Callable[[], object]] = []
    there = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    handlers = {number: handler for number, handler in there.items() if callable(handler)}
    for number, handler in handlers.items():
        signal.signal(number, lambda *given, handler=handler: warnings.append(partial(handler, *given)))
    try:
        yield warnings
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def run_jobs(
    submitit: Submitit, folder: SweepDir, works: Sequence[Work], first: int = 0, *, detach: bool = False
) -> list[Point]:
    """Has submitit run points, on this machine or elsewhere; of those that it has already it only says what came.

    Ctrl-C and SIGTERM end jobs on this machine, unless they were detached; of others only the waiting ends.

    Args:
        first: how many points earlier batches of the sweep had.
        detach: submit, say what is known by now, and leave.

    Returns:
        What came of each, in the order of `works`.
    """
    had, lasting = _submitted_before(submitit, folder, works), detach or not submitit.local
    # What is complete needs no job. Who waits has each looked at again: its configuration may be another one by now.
    done = {number for number, work in enumerate(works) if detach and sound_result(work.folder) is not None}
    new = [number for number in range(len(works)) if number not in {*had, *done}]
    at_once, threads = submitit.divide(len(works))
    console.say(_division(submitit.name, works, len(had), at_once, threads))
    outcomes = _Outcomes(works, first, set(had), leased=not (lasting or had))
    with _lease() as lease, outcomes.heeding(lease):
        jobs = [Job(works[number], threads, None if lasting else Path(lease.name), submitit.minutes) for number in new]
        try:
            names, refused = submitit.submit(jobs, partial(outcomes.note, folder, new), lasting=lasting)
            if refused is not None:
                outcomes.reason = KDError(f"{submitit.name} does not take it: {_text(refused)}")
            handed = had | dict(zip(new, names, strict=False))
            for number, point in submitit.outcomes(works, handed, wait=not detach):
                outcomes.receive(number, point)
        except (_NotWaited, KeyboardInterrupt):
            pass
        except Exception as error:
            outcomes.reason = KDError(f"{submitit.name} ended before the point did: {_text(error)}")
    if outcomes.stopped:
        console.notice("the same command goes on with what is not done")
    return [outcomes.points.get(number) or outcomes.missing(number) for number in range(len(works))]


def _text(error: Exception) -> str:
    return str(error).strip() or type(error).__name__


def _division(launcher: str, works: Sequence[Work], had: int, at_once: int, threads: int | None) -> str:
    of_each = "" if threads is None else ", 1 thread each" if threads == 1 else f", {threads} threads each"
    count = "1 point" if len(works) == 1 else f"{len(works)} points"
    before = f", {had} of them submitted before" if had else ""
    return f"{count} by {launcher}{before}, {at_once} at a time{of_each}; what they say is in {logs_of(works)}"


def _submitted_before(submitit: Submitit, folder: SweepDir, works: Sequence[Work]) -> dict[int, str]:
    """The jobs of an earlier command of which nobody has heard since."""
    names = [folder.jobs.get(relpath(work.folder, folder.path), "") for work in works]
    had = {number: name for number, name in enumerate(names) if submitit.has(name)}
    host = next(filter(None, map(elsewhere, had.values())), None)
    if host is not None:
        raise ConfigError(f"{folder.path}: points of this sweep were submitted on {host}; type the command there")
    return had


class _NotWaited(Exception):
    """The user does not want to wait for what runs."""


@contextmanager
def _lease() -> Iterator[Any]:
    """A file that is locked until it is closed, however that comes about."""
    with tempfile.NamedTemporaryFile(prefix="kd-sweep-") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


class _Outcomes:
    """What came of the points so far.

    Args:
        first: how many points earlier batches of the sweep had.
        lasting: those whose jobs go on when nobody waits for them.
        leased: all end when the sweep does.
    """

    def __init__(self, works: Sequence[Work], first: int, lasting: set[int], *, leased: bool) -> None:
        self.points: dict[int, Point] = {}
        self.reason: KDError | None = None  # why submitit has no more to say
        self._works, self._lasting, self._leased = works, lasting, leased
        self._names = point_names(first, len(works))
        self._already = [(work.folder / "result.json").exists() for work in works]
        self._exit_code: int | None = None  # of the request to stop

    @contextmanager
    def heeding(self, lease: Any) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the lease, so that what comes in is complete; a second time nothing is waited for."""

        def stop(number: int, _frame: FrameType | None) -> None:
            again, self._exit_code = self.stopped, 128 + number
            if again or not self._leased:
                raise _NotWaited
            lease.close()
            with suppress(RuntimeError):  # it may have come in the middle of another line
                console.notice("stopping; once more leaves without waiting for the points that run")

        with heeding(stop):
            yield

    @property
    def stopped(self) -> bool:
        return self._exit_code is not None

    def note(self, folder: SweepDir, numbers: Sequence[int], names: Sequence[str]) -> None:
        """Jobs of the first points of these numbers were submitted; they go on when nobody waits for them."""
        numbers = numbers[: len(names)]
        works = [self._works[number] for number in numbers]
        self._lasting.update(numbers)
        folder.submitted({relpath(work.folder, folder.path): name for work, name in zip(works, names, strict=True)})

    def receive(self, number: int, point: Point) -> None:
        if self.stopped and point["status"] != "completed":
            point = self._stopped(number, started=point["status"] != "not started")
        self.points[number] = point
        show_point(self._names[number], self._works[number], point, already=self._already[number])

    def missing(self, number: int) -> Point:
        """What is known of a point that was not heard of."""
        work = self._works[number]
        result = read_json(work.folder / "result.json")
        if result is not None:
            return {"point": work.label, "status": "completed", **result}
        if self.reason is not None and not self.stopped:
            return failed(work.label, self.reason)
        return self._stopped(number, started=(work.folder / "run.json").exists())

    def _stopped(self, number: int, *, started: bool) -> Point:
        label = self._works[number].label
        if number in self._lasting:
            error = "its job goes on (kd list runs); the same command says what comes of it"
            return {"point": label, "status": "running", "error": error, "exit_code": self._exit_code}
        if not started:
            return {**not_started(label), "exit_code": self._exit_code}
        return {"point": label, "status": "interrupted", "error": KEPT, "exit_code": self._exit_code}
