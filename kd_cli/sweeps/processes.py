"""The points of a sweep at the same time, in processes of this machine, which Ctrl-C and SIGTERM end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from kd_cli import console
from kd_cli.sweeps.crew import Crew
from kd_cli.sweeps.fork_server import heeding
from kd_cli.sweeps.point import Point, point_names
from kd_cli.sweeps.share import Share, Task
from kd_cli.sweeps.worker import Work, logs_of

_WATCH_SECONDS = 0.2


def run_points(
    works: Sequence[Work], share: Share, first: int = 0, *, unwanted: Callable[[], bool] | None = None
) -> list[Point]:
    """Runs every point in a process of its own, or several in one where they share a device.

    A point that fails, or whose process dies, does not stop the others. Ctrl-C and SIGTERM stop all of them: the
    running ones are asked to end; asked a second time, or after a while, they are killed.

    Args:
        first: how many points earlier batches of the sweep had.
        unwanted: asked now and then, in a thread; once it says so, the points are stopped as by SIGTERM.

    Returns:
        What came of each, in the order of `works`.
    """
    console.say(f"{_division(len(works), share)}; what they say is in {logs_of(works)}")
    crew = Crew(list(map(Task, point_names(first, len(works)), works)), share)
    with _requests(unwanted) as requests, console.live_line("the points start"):
        try:
            while crew.start():
                console.live(f"running: {', '.join(crew.labels)}")
                crew.follow(requests)
        finally:
            crew.kill()
    if crew.stopped:
        console.notice("the same command goes on with what is not done")
    return [crew.points[name] for name in point_names(first, len(works))]


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


def _division(points: int, share: Share) -> str:
    threads = "1 thread" if share.threads == 1 else f"{share.threads} threads"
    if not share.joins:
        return f"{share.processes} points at a time, {threads} each"
    shared = "one process" if share.processes == 1 else f"{share.processes} processes, one for each GPU"
    most = "as many at a time as its memory takes" if share.at_once is None else f"{share.at_once} at a time"
    return f"{points} points in {shared}, {most}, {threads}"
