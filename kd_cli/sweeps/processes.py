"""The points of a sweep at the same time, each in a process of its own: how many, when, and what came of them."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from kd_cli import console
from kd_cli.errors import ConfigError, KDError
from kd_cli.sweeps import worker
from kd_cli.sweeps.fork_server import fork, heeding
from kd_cli.sweeps.point import KEPT, Point, failed, not_started, numbers, point_names
from kd_cli.sweeps.worker import GRACE, Environment, Work

_WATCH_SECONDS = 0.2


@dataclass(frozen=True)
class Share:
    """How a machine is divided among the points of a sweep.

    Args:
        processes: at the same time; 1: all points in this process.
        threads: of each of them.
        slots: the environment of each device; the processes take them in turn.
    """

    processes: int
    threads: int
    slots: Sequence[Environment] = ({},)


def check_n_jobs(n_jobs: Any) -> None:
    """Raises a ConfigError if it is neither null nor a whole number ≥ 1."""
    if n_jobs is not None and (not isinstance(n_jobs, int) or isinstance(n_jobs, bool) or n_jobs < 1):
        raise ConfigError(
            f"hydra.launcher.n_jobs: {n_jobs!r} is not possible; type how many points run at the same time, a whole "
            "number ≥ 1 (1: one after the other), or null: as many as there are cores"
        )


def divide(
    points: int, n_jobs: int | None, ask_slots: Callable[[], Sequence[Environment]], *, cores: int, threads: int | None
) -> Share:
    """As many points at once as there are cores and devices for, or as many as were asked for.

    Args:
        n_jobs: asked for; None: one point for each core and each device.
        ask_slots: called only where the answer matters: torch must be imported for it.
        threads: that each point shall have; None: its share of the cores.
    """
    most = n_jobs or cores // (threads or 1)
    if min(points, most) < 2:
        return Share(1, threads or cores)
    slots = ask_slots()
    processes = min(points, n_jobs or min(most, len(slots) or most))
    return Share(processes, threads or max(1, cores // processes), slots or ({},))


def find_slots(device: str) -> Sequence[Environment]:
    """The environment of every device that points can be divided among; none where they run on the processor."""
    process, receiver = fork(worker.device_slots, device)
    with receiver:
        try:
            slots: Sequence[Environment] = receiver.recv()
        except EOFError:  # the points will say what is wrong
            slots = []
    process.join()
    return slots


def run_points(
    works: Sequence[Work], share: Share, first: int = 0, *, unwanted: Callable[[], bool] | None = None
) -> list[Point]:
    """Runs every point in a process of its own.

    A point that fails, or whose process dies, does not stop the others. Ctrl-C and SIGTERM stop all of them: the
    running ones are asked to end; asked a second time, or after a while, they are killed.

    Args:
        first: how many points earlier batches of the sweep had.
        unwanted: asked now and then, in a thread; once it says so, the points are stopped as by SIGTERM.

    Returns:
        What came of each, in the order of `works`.
    """
    threads = "1 thread" if share.threads == 1 else f"{share.threads} threads"
    folder = console.short_path(works[0].folder.parent)
    console.say(
        f"{share.processes} points at a time, {threads} each; what they say is in {folder}/*/{works[0].log.name}"
    )
    crew = _Crew(works, share, first)
    with _requests(unwanted) as requests, console.live_line("the points start"):
        try:
            while crew.start():
                console.live(f"running: {', '.join(child.work.label for child in crew.running)}")
                crew.follow(requests)
        finally:
            crew.kill()
    if crew.stopped:
        console.notice("the same command goes on with what is not done")
    return [crew.points[name] for name in crew.names]


@contextmanager
def _requests(unwanted: Callable[[], bool] | None) -> Iterator[Connection]:
    """Ctrl-C and SIGTERM as messages to be received: none can break what is half done."""
    receiver, sender = Pipe(duplex=False)
    over = threading.Event()
    watchers = [threading.Thread(target=_watch, args=(unwanted, over, sender))] if unwanted else []
    for watcher in watchers:
        watcher.start()
    try:
        with heeding(lambda number, _: sender.send(number)):
            yield receiver
    finally:
        over.set()
        for watcher in watchers:
            watcher.join()
        receiver.close()
        sender.close()


def _watch(unwanted: Callable[[], bool], over: threading.Event, sender: Connection) -> None:
    while not over.wait(_WATCH_SECONDS):
        if unwanted():
            sender.send(signal.SIGTERM)
            return


class _Crew:
    """The points of a sweep: those that wait, those that run, those that are done."""

    def __init__(self, works: Sequence[Work], share: Share, first: int) -> None:
        self.names = point_names(first, len(works))
        self.waiting = list(zip(self.names, works, strict=True))
        self.running: list[_Child] = []
        self.points: dict[str, Point] = {}
        self._share = share
        self._exit_code: int | None = None  # of the request to stop
        self._kill_at = math.inf

    @property
    def stopped(self) -> bool:
        return self._exit_code is not None

    def start(self) -> bool:
        """Starts as many as there is room for; whether any is running."""
        free = set(range(self._share.processes)) - {child.slot for child in self.running}
        for slot in sorted(free)[: len(self.waiting)]:
            self.running.append(_Child(*self.waiting.pop(0), self._share, slot))
        return bool(self.running)

    def follow(self, requests: Connection) -> None:
        """Waits until a point is done or the user wants to stop."""
        left = max(0.0, self._kill_at - time.monotonic()) if self.stopped else None
        ready = wait([requests, *(child.receiver for child in self.running)], left)
        for child in [child for child in self.running if child.receiver in ready]:
            self._end(child)
        if requests in ready:
            self._stop(requests.recv())
        if time.monotonic() >= self._kill_at:
            self.kill()

    def kill(self) -> None:
        for child in self.running:
            child.process.kill()
        for child in list(self.running):
            self._end(child)

    def _end(self, child: _Child) -> None:
        point = child.end(killed=self.stopped)
        if self.stopped and point["status"] == "interrupted":
            point = {**point, "error": KEPT, "exit_code": self._exit_code}
        self.points[child.name] = point
        self.running.remove(child)
        child.show(point)

    def _stop(self, number: int) -> None:
        again, self._exit_code = self.stopped, 128 + number
        self._kill_at = time.monotonic() + (0 if again else GRACE)
        for child in self.running:
            child.process.terminate()
        for name, work in self.waiting:
            self.points[name] = {**not_started(work.label), "exit_code": self._exit_code}
        self.waiting.clear()
        if not again:
            console.notice("stopping; once more kills the points that run")


class _Child:
    """A point in its process.

    Args:
        name: `point 1 of 3`.
        slot: which of the processes that run at the same time it is.
    """

    def __init__(self, name: str, work: Work, share: Share, slot: int) -> None:
        self.name, self.work, self.slot = name, work, slot
        self._complete, self._started = (work.folder / "result.json").exists(), time.monotonic()
        console.say(f"{name} starts: {work.label}")
        self.process, self.receiver = fork(worker.run, work, share.threads, share.slots[slot % len(share.slots)])

    def end(self, *, killed: bool) -> Point:
        """Takes what the process says last. Where it died without a word: as interrupted if we killed it, or failed."""
        try:
            point: Point = json.loads(self.receiver.recv_bytes())
        except (EOFError, OSError):
            self.process.join()
            point = failed(self.work.label, KDError(_obituary(self.process.exitcode)))
            point = {**point, "status": "interrupted"} if killed else point
        self.receiver.close()
        self.process.join(GRACE)
        self.process.kill()  # where something still keeps it; it has said that it is done
        return point

    def show(self, point: Point) -> None:
        took = f"  ({time.monotonic() - self._started:.0f} s)"
        show_point(self.name, self.work, point, already=self._complete, took=took)


def show_point(name: str, work: Work, point: Point, *, already: bool, took: str = "") -> None:
    """What came of a point, for a person.

    Args:
        name: `point 1 of 3`.
        already: it was complete before it was started.
    """
    status = point["status"]
    if status in ("failed", "diverged"):
        console.panel(f"{name} failed: {work.label}", f"{point['error']}\nlog: {console.short_path(work.log)}")
        return
    words = {"completed": "was complete already" if already else "done"}
    top1, _, _ = numbers(point)
    accuracy = "" if top1 is None else f"  {top1:.2f} %"
    console.say(f"{name} {words.get(status, status)}: {work.label}{accuracy}{took}")


def _obituary(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return "its process was killed (signal 9: perhaps out of memory); fewer at once: hydra.launcher.n_jobs=1"
    if code is not None and code < 0:
        return f"its process crashed (signal {-code}: {signal.strsignal(-code)}); the log may say where"
    return f"its process ended without a result (exit code {code}); the log may say why"
