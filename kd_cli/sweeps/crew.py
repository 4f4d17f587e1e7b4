"""The processes of a sweep's points: which run, what each of them says, and what becomes of one that dies."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from kd_cli import console
from kd_cli.errors import KDError
from kd_cli.sweeps import together, worker
from kd_cli.sweeps.fork_server import fork
from kd_cli.sweeps.point import KEPT, Point, failed, not_started, numbers
from kd_cli.sweeps.share import Share, Task, group
from kd_cli.sweeps.worker import GRACE, Work


class Crew:
    """The points of a sweep: those that wait, those that run, those that are done."""

    def __init__(self, tasks: Sequence[Task], share: Share) -> None:
        self.waiting = group(tasks, share)
        self.running: list[_Child] = []
        self.points: dict[str, Point] = {}
        self._share = share
        self._exit_code: int | None = None  # of the request to stop
        self._kill_at = math.inf

    @property
    def stopped(self) -> bool:
        return self._exit_code is not None

    @property
    def labels(self) -> list[str]:
        """Of the points that run."""
        return [child.tasks[number].work.label for child in self.running for number in child.started]

    def start(self) -> bool:
        """Starts as many processes as there is room for; whether any is running."""
        free = set(range(self._share.processes)) - {child.slot for child in self.running}
        for slot in sorted(free)[: len(self.waiting)]:
            self.running.append(_Child(self.waiting.pop(0), self._share, slot))
        return bool(self.running)

    def follow(self, requests: Connection) -> None:
        """Waits until there is news of a point, or the user wants to stop."""
        left = max(0.0, self._kill_at - time.monotonic()) if self.stopped else None
        ready = wait([requests, *(child.receiver for child in self.running)], left)
        for child in [child for child in self.running if child.receiver in ready]:
            self._hear(child)
        if requests in ready:
            self._stop(requests.recv())
        if time.monotonic() >= self._kill_at:
            self.kill()

    def kill(self) -> None:
        for child in self.running:
            child.process.kill()
        for child in list(self.running):
            while child in self.running:  # what it has said before
                self._hear(child)

    def _hear(self, child: _Child) -> None:
        """Takes one message of a process, or its end."""
        message = child.receive()
        if message is not None and "point" in message:
            self._end(child, **message)
        elif message is not None:
            child.note(**message)
        if message is None or not child.left:
            self.running.remove(child)
            child.close()
            self._bury(child)

    def _end(self, child: _Child, number: int, point: Point) -> None:
        if self.stopped and point["status"] == "interrupted":
            point = {**point, "error": KEPT, "exit_code": self._exit_code}
        self.points[child.tasks[number].name] = point
        child.show(number, point)

    def _bury(self, child: _Child) -> None:
        """What becomes of the points of which a process has not said how they ended."""
        begun, others = list(child.started), [number for number in child.left if number not in child.started]
        if not self.stopped and len(child.tasks) > 1 and child.left:
            console.notice(f"of {len(child.left)} points: {_obituary(child)}; each that ran goes on in one of its own")
            again = [[number] for number in begun] + ([others] if begun and others else [[each] for each in others])
            self.waiting[:0] = [[child.tasks[number] for number in part] for part in again]
            return
        for number in begun:
            point = failed(child.tasks[number].work.label, KDError(_obituary(child)))
            self._end(child, number, {**point, "status": "interrupted"} if self.stopped else point)
        self._leave_out([child.tasks[number] for number in others])

    def _stop(self, number: int) -> None:
        again, self._exit_code = self.stopped, 128 + number
        self._kill_at = time.monotonic() + (0 if again else GRACE)
        for child in self.running:
            child.process.terminate()
        for tasks in self.waiting:
            self._leave_out(tasks)
        self.waiting.clear()
        if not again:
            console.notice("stopping; once more kills the points that run")

    def _leave_out(self, tasks: Sequence[Task]) -> None:
        for name, work in tasks:
            self.points[name] = {**not_started(work.label), "exit_code": self._exit_code}


class _Child:
    """A process of one point, or of several.

    Args:
        slot: which of the processes that run at the same time it is.

    Attributes:
        started: the points that run, by their places among `tasks`, and since when.
        left: those that have not ended.
    """

    def __init__(self, tasks: Sequence[Task], share: Share, slot: int) -> None:
        self.tasks, self.slot, self.fewer = tasks, slot, share.fewer
        self.started: dict[int, float] = {}
        self.left = list(range(len(tasks)))
        self._complete: set[int] = set()  # before they were started
        environment = share.slots[slot % len(share.slots)]
        if len(tasks) > 1:
            works = [task.work for task in tasks]
            self.process, self.receiver = fork(together.run, works, share.of(slot), environment)
            return
        self.note(0, "starts")
        self.process, self.receiver = fork(worker.run, tasks[0].work, share.threads, environment)

    def receive(self) -> Any:
        """What the process says next; None: it has ended."""
        try:
            return json.loads(self.receiver.recv_bytes())
        except (EOFError, OSError):
            self.process.join()
            return None

    def note(self, number: int, event: str) -> None:
        """A point starts, or waits until it can be started again."""
        name, work = self.tasks[number]
        if event == "waits":
            del self.started[number]
            console.say(f"{name} was out of memory beside others; it is started again alone: {work.label}")
            return
        if (work.folder / "result.json").exists():
            self._complete.add(number)
        self.started[number] = time.monotonic()
        console.say(f"{name} starts: {work.label}")

    def show(self, number: int, point: Point) -> None:
        """A point has ended."""
        took = f"  ({time.monotonic() - self.started.pop(number):.0f} s)"
        self.left.remove(number)
        name, work = self.tasks[number]
        show_point(name, work, point, already=number in self._complete, took=took)

    def close(self) -> None:
        self.receiver.close()
        self.process.join(GRACE)
        self.process.kill()  # where something still keeps it; it has said that it is done


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


def _obituary(child: _Child) -> str:
    code = child.process.exitcode
    if code == -signal.SIGKILL:
        return f"its process was killed (signal 9: perhaps out of memory); fewer at once: {child.fewer}"
    if code is not None and code < 0:
        return f"its process crashed (signal {-code}: {signal.strsignal(-code)}); the log may say where"
    return f"its process ended without a result (exit code {code}); the log may say why"
