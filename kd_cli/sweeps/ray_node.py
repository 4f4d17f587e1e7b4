"""What happens on the nodes of a Ray cluster: whether they see what the sweep needs, and the life of a point there."""

from __future__ import annotations

import io
import os
import platform
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kd_cli import __version__
from kd_cli.config.alike import Pattern
from kd_cli.errors import ConfigError
from kd_cli.storage.locks import is_held
from kd_cli.sweeps.point import Point, failed
from kd_cli.sweeps.processes import run_points
from kd_cli.sweeps.share import Share
from kd_cli.sweeps.worker import Environment, Work

_PATIENCE = 120.0  # seconds that a process of a lost worker has to leave its folder
_LOOK_AGAIN = 0.1
_WAKE = 0.5  # seconds


@dataclass(frozen=True)
class Place:
    """What a node must have as the machine has it where kd was started.

    Args:
        directory: in which kd was started; relative paths are meant from it.
        token: a file in the sweep's folder.
        text: what is in it.
        version: of kd.
    """

    directory: Path
    token: Path
    text: str
    version: str = __version__

    def problem(self) -> str | None:
        """What is missing on this node, and what to do; None: nothing."""
        node = platform.node()
        if self.version != __version__:
            return f"node {node} has kd {__version__} and not {self.version}: install the same there (pip install)"
        if not self.directory.is_dir():
            return (
                f"there is no folder {self.directory} on node {node}, and relative paths are meant from it: start kd "
                "in a folder that all nodes share, or that is on each of them"
            )
        try:
            shared = self.token.read_text() == self.text
        except OSError:
            shared = False
        if shared:
            return None
        return (
            f"node {node} does not see {self.token.parent}: the sweep's folder must be on a file system that all nodes "
            "share; type hydra.sweep.dir=DIR with a folder that is"
        )


@dataclass(frozen=True)
class RayPoint:
    """A point as a task of Ray.

    Args:
        variables: of the environment, which is otherwise the node's.
        again: another worker has had it, and was lost.
    """

    place: Place
    work: Work
    threads: int
    variables: Environment
    again: bool = False


def look(place: Place) -> str | None:
    """As `Place.problem`, on the node of a task."""
    return place.problem()


def received(reference: Any) -> Pattern:
    """A Pattern that was sent to the cluster."""
    import ray

    return Pattern(**ray.get(reference))


def run_point(task: RayPoint) -> Point:
    """Runs a point in a process that the worker forks: it has torch imported, and may die without harm."""
    problem = task.place.problem()  # the node may have come after the sweep began
    if problem is not None:
        return failed(task.work.label, ConfigError(problem))
    os.chdir(task.place.directory)
    if task.again:
        _wait_until_left(task.work.folder)
    work = replace(task.work, environment={**os.environ, **task.variables})
    share = Share(1, task.threads, fewer="hydra.launcher.cpus=2")
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), _cancelable():
        (point,) = run_points([work], share)  # the sweep says what there is to say
    return point


@contextmanager
def _cancelable() -> Iterator[None]:
    """Ray cancels a task by a SIGINT that only Python knows of, and that wakes nobody who waits: a timer does."""
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, _WAKE, _WAKE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _wait_until_left(folder: Path) -> None:
    """A process of a worker that is lost saves what it has before it ends."""
    end = time.monotonic() + _PATIENCE
    while any(".lock" in names and is_held(Path(at)) for at, _, names in os.walk(folder)) and time.monotonic() < end:
        time.sleep(_LOOK_AGAIN)
