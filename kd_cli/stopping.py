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


class CtrlC(KeyboardInterrupt):
    """Ctrl-C. Where the class itself, and no subclass, is raised in the middle of an `exec`, which importing torch and
    making a dataclass call, Python forgets the exit code later on and dies of the signal, however well it was caught.
    """


@contextmanager
def heeding() -> Iterator[None]:
    """Ctrl-C raises CtrlC, unless it is ignored (`nohup`), and SIGTERM raises Terminated."""
    handlers = {signal.SIGTERM: _terminate}
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        handlers[signal.SIGINT] = _interrupt
    old = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    hook, sys.unraisablehook = sys.unraisablehook, ask_again
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, before in old.items():
            signal.signal(number, before)


def ask_again(dropped: sys.UnraisableHookArgs) -> None:
    """Python drops what is raised in a destructor or a callback; a request to end must not be lost with it."""
    if isinstance(dropped.exc_value, CtrlC | Terminated):
        number = signal.SIGINT if isinstance(dropped.exc_value, CtrlC) else signal.SIGTERM
        threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), number)).start()
    else:
        sys.__unraisablehook__(dropped)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise CtrlC


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise Terminated("the process was asked to end (SIGTERM)")
