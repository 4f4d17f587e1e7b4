"""Requests to end, Ctrl-C and SIGTERM, as exceptions that are neither lost nor mistaken."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from kd_cli.errors import Terminated

_AGAIN_SECONDS = 0.05  # after a request that was dropped
_PATIENCE_SECONDS = 3.0  # for what is under way, before it is broken off

_patient = False  # something is under way that a request to end must not break
_asked: list[int] = []  # the request that waits for its end


class CtrlC(KeyboardInterrupt):
    """Ctrl-C. Where the class itself, and no subclass, is raised in the middle of an `exec`, which importing torch and
    making a dataclass call, Python forgets the exit code later on and dies of the signal, however well it was caught.
    """


@contextmanager
def heeding() -> Iterator[None]:
    """Ctrl-C raises CtrlC, unless it is ignored (`nohup`), and SIGTERM raises Terminated."""
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    heeded = [signal.SIGTERM] if ignored else [signal.SIGTERM, signal.SIGINT]
    old = {number: signal.signal(number, request) for number in heeded}
    hook, sys.unraisablehook = sys.unraisablehook, ask_again
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, before in old.items():
            signal.signal(number, before)


def request(number: int, _frame: FrameType | None) -> None:
    """The handler of a request to end: raises its exception now, or when what is under way is done."""
    if not _patient or _asked:  # asked twice
        raise _exception(number)
    _asked.append(number)
    signal.signal(signal.SIGALRM, _lose_patience)
    signal.setitimer(signal.ITIMER_REAL, _PATIENCE_SECONDS)


@contextmanager
def patiently() -> Iterator[None]:
    """A request to end that comes meanwhile is raised afterwards: what happens here is done whole.

    It is broken off after a second request, and where it takes longer than a few seconds. Sections do not nest.
    """
    global _patient
    _asked.clear()
    _patient = True
    try:
        yield
    finally:
        _patient = False
        if _asked:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise _exception(_asked[0])


def ask_again(dropped: sys.UnraisableHookArgs) -> None:
    """Python drops what is raised in a destructor or a callback; a request to end must not be lost with it."""
    if isinstance(dropped.exc_value, CtrlC | Terminated):
        number = signal.SIGINT if isinstance(dropped.exc_value, CtrlC) else signal.SIGTERM
        threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), number)).start()
    else:
        sys.__unraisablehook__(dropped)


def _lose_patience(_number: int, _frame: FrameType | None) -> None:
    if _patient:
        raise _exception(_asked[0])


def _exception(number: int) -> CtrlC | Terminated:
    return CtrlC() if number == signal.SIGINT else Terminated("the process was asked to end (SIGTERM)")
