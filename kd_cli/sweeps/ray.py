"""The points of a sweep as tasks of Ray Core."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from kd_cli import console
from kd_cli.errors import KDError, offer
from kd_cli.sweeps.crew import show_point
from kd_cli.sweeps.fork_server import heeding
from kd_cli.sweeps.point import KEPT, Point, failed, not_started, point_names
from kd_cli.sweeps.ray_cluster import Cluster, reason_of
from kd_cli.sweeps.ray_node import RayPoint
from kd_cli.sweeps.worker import Work, logs_of

_LOOK = 0.2  # seconds between two looks at a request to stop


class _NotWaited(Exception):
    """The user does not want to wait for what runs."""


def run_on_ray(cluster: Cluster, works: Sequence[Work], first: int = 0) -> list[Point]:
    """Has Ray run points.

    A worker or a node that is lost costs a point one of its attempts; the next goes on from its last checkpoint.
    Ctrl-C and SIGTERM end all of them, wherever they run, with what they have trained.

    Args:
        cluster: open.
        first: how many points earlier batches of the sweep had.

    Returns:
        What came of each, in the order of `works`.
    """
    threads = "1 thread" if cluster.threads == 1 else f"{cluster.threads} threads"
    count = "1 point" if len(works) == 1 else f"{len(works)} points"
    at_once = min(len(works), cluster.at_once)
    console.say(f"{count} by {cluster.name}, {at_once} at a time, {threads} each; what they say is in {logs_of(works)}")
    run = _Run(cluster, works, first)
    with run.heeding(), suppress(_NotWaited):
        run.follow()
    if run.stopped:
        console.notice("the same command goes on with what is not done")
    return [run.points.get(number) or run.unheard(number) for number in range(len(works))]


class _Run:
    """The points of a batch: those that Ray has, and what came of the others."""

    def __init__(self, cluster: Cluster, works: Sequence[Work], first: int) -> None:
        self.points: dict[int, Point] = {}
        self._cluster, self._works = cluster, works
        self._names = point_names(first, len(works))
        self._already = [(work.folder / "result.json").exists() for work in works]
        self._attempts = [0] * len(works)
        self._running: dict[Any, int] = {}
        self._exit_code: int | None = None  # of the request to stop
        self._canceled = False

    @property
    def stopped(self) -> bool:
        return self._exit_code is not None

    @contextmanager
    def heeding(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the points; a second time nothing is waited for."""

        def stop(number: int, _frame: FrameType | None) -> None:
            again, self._exit_code = self.stopped, 128 + number
            if again:
                raise _NotWaited
            with suppress(RuntimeError):  # it may have come in the middle of another line
                console.notice("stopping; once more leaves without waiting for the points that run")

        with heeding(stop):
            yield

    def follow(self) -> None:
        """Until all points have ended."""
        import ray

        for number in range(len(self._works)):
            self._start(number)
        while self._running:
            if self.stopped and not self._canceled:
                self._canceled = True
                for reference in self._running:
                    ray.cancel(reference, recursive=False)
            done, _ = ray.wait(list(self._running), timeout=_LOOK)
            for reference in done:
                self._hear(self._running.pop(reference), reference)

    def _start(self, number: int) -> None:
        work, again = self._works[number], self._attempts[number] > 0
        self._attempts[number] += 1
        task = RayPoint(self._cluster.place, work, self._cluster.threads, self._variables(work), again)
        self._running[self._cluster.start(task)] = number

    def _variables(self, work: Work) -> dict[str, str]:
        """Those that are kd's or the point's own: the others are the node's."""
        own = {name: value for name, value in work.environment.items() if _is_carried(name, value)}
        return own if self._cluster.gpus else {**own, "CUDA_VISIBLE_DEVICES": ""}

    def _hear(self, number: int, reference: Any) -> None:
        """What came of a task."""
        import ray

        label = self._works[number].label
        try:
            point: Point = ray.get(reference)
        except ray.exceptions.TaskCancelledError:
            self._end(number, not_started(label))
        except ray.exceptions.RayTaskError as error:
            self._end(number, failed(label, KDError(f"its worker cannot run it: {reason_of(error)}")))
        except ray.exceptions.RayError as error:
            self._lose(number, reason_of(error).partition(". ")[0].partition(" (")[0])
        else:
            if point["status"] == "interrupted" and not self.stopped:
                self._lose(number, "its node was stopped")
            else:
                self._end(number, point)

    def _lose(self, number: int, reason: str) -> None:
        """The worker of a point is gone."""
        tries, most = self._attempts[number], self._cluster.attempts
        if self.stopped:
            self._end(number, self.unheard(number))
        elif tries < most:
            console.notice(
                f"{self._names[number]} lost its worker ({reason}) and goes on: attempt {tries + 1} of {most}"
            )
            self._start(number)
        else:
            more = offer("hydra.launcher.attempts", most + 1)
            text = f"it lost its worker in each of its {most} attempts ({reason}); what was trained is kept; {more}"
            self._end(number, failed(self._works[number].label, KDError(text)))

    def _end(self, number: int, point: Point) -> None:
        if self.stopped and point["status"] in ("interrupted", "not started"):
            point = self._stopped(number, started=point["status"] == "interrupted")
        self.points[number] = point
        show_point(self._names[number], self._works[number], point, already=self._already[number])

    def unheard(self, number: int) -> Point:
        """What is known of a point that was not waited for."""
        return self._stopped(number, started=(self._works[number].folder / "run.json").exists())

    def _stopped(self, number: int, *, started: bool) -> Point:
        point = not_started(self._works[number].label)
        if started:
            point = {**point, "status": "interrupted", "error": KEPT}
        return {**point, "exit_code": self._exit_code}


def _is_carried(name: str, value: str) -> bool:
    return name.startswith("KD_") or os.environ.get(name, value) != value
