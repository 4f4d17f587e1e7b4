"""Processes that start at once, because torch is imported already in the server that they are forked from."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

# All that training needs.
_PRELOAD = ["kd_cli.cli", "kd_cli.launch.hydra_app", "kd_cli.experiments.check", "kd_cli.experiments.experiment"]
_PRELOAD += ["kd_cli.runs.predictions", "hydra", "rich.console", "kd_cli.sweeps.warm"]

STOP = {signal.SIGINT, signal.SIGTERM}  # blocked in every process of the server, until it can deal with them
# Some clusters tell every process of a job that its time is over; one of them has to know, and the others would die.
_WARN = {signal.SIGUSR1, signal.SIGUSR2}


def fork(target: Callable[..., None], *arguments: Any) -> tuple[ForkServerProcess, Connection]:
    """Starts `target(sender, *arguments)` in a process of its own.

    Returns:
        The process, and the end of a pipe that gives what it sends; EOFError once it has ended without sending.
    """
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(sender, *arguments))
    start_server()
    with sender, no_main_module():
        process.start()
    return process, receiver


def start_server() -> None:
    """Starts the server, if there is none; it imports torch while the caller does something else."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(_PRELOAD)
    with no_main_module(), _server_surroundings():
        forkserver.ensure_running()


@contextmanager
def _server_surroundings() -> Iterator[None]:
    """For the server's start: signals are blocked, numpy makes no threads that a fork would lose, imports are ours."""
    environment = dict(os.environ)
    os.environ.update(OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(str(Path(path).absolute()) for path in sys.path))
    try:
        with _blocked(_WARN):
            resource_tracker.ensure_running()  # it would unblock the others
            with stop_blocked():
                yield
    finally:
        os.environ.clear()
        os.environ.update(environment)


@contextmanager
def stop_blocked() -> Iterator[None]:
    """Blocks Ctrl-C and SIGTERM here, and for good in every process that is started meanwhile."""
    with _blocked(STOP):
        yield


@contextmanager
def _blocked(signals: set[signal.Signals]) -> Iterator[None]:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def heeding(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Has Ctrl-C and SIGTERM call the handler; `nohup` ignores one of them, and so it stays."""
    heeded = [number for number in STOP if signal.getsignal(number) is not signal.SIG_IGN]
    old = {number: signal.signal(number, handler) for number in heeded}
    try:
        yield
    finally:
        for number, before in old.items():
            signal.signal(number, before)


@contextmanager
def no_main_module() -> Iterator[None]:
    """Python would import the main module again in each process: `kd`, pytest or whatever called us."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
