"""What happens in a process that several points share, with a device: each has a thread, and they take turns."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue
from types import FrameType
from typing import Any

from kd_cli import console
from kd_cli.arithmetic import EXACT, Switches, current, start_cuda, switch
from kd_cli.config.base import TRIAL
from kd_cli.errors import KDError, OutOfMemory, missing_memory
from kd_cli.machine import keep_freed_memory
from kd_cli.signals import request
from kd_cli.sweeps.fork_server import STOP
from kd_cli.sweeps.point import Point, attempt, failed
from kd_cli.sweeps.share import Share
from kd_cli.sweeps.worker import Environment, Work, begin, buffer_lines, open_log, send, told, write_to
from kd_cli.turns import Turns

_MEASURED = 20  # updates, after which a point has what it needs: its graphs, its kernels' workspaces
_MARGIN = 1.2  # the next point may be a larger one, and validation takes other memory than updates


def run(sender: Connection, works: Sequence[Work], share: Share, slot: Environment) -> None:
    """The life of the process.

    Args:
        sender: is told, by `send`, of every point that starts, waits for memory, or has ended.
        slot: variables that choose a device.
    """
    turns, own = Turns(), os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != own:  # a process that decodes images for a point
            request(number, frame)
        turns.asked = True

    begin(works[0].environment, share.threads, slot, end)
    write_to(os.open(os.devnull, os.O_WRONLY))  # until it is a point's turn
    buffer_lines()
    console.setup(as_json=False)
    keep_freed_memory()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)
    import torch  # noqa: F401 - once, and not in the turn of a point

    if share.device != "cpu":
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")  # or eight streams at a time are one behind another
        start_cuda()
    gc.freeze()  # what is there stays; to look for what a point has left behind is quick
    Company(sender, works, share, turns).run()


class Memory:
    """Whether the memory of the device suffices for another point, by what those before it took.

    Args:
        free: bytes that are free now.
    """

    def __init__(self, free: Callable[[], int]) -> None:
        self._free, self._before, self._most = free, 0, 0

    def begin(self) -> None:
        """A point begins."""
        self._before = self._free()

    def measure(self) -> None:
        """It has what it needs."""
        self._most = max(self._most, self._before - self._free())

    def suffices(self) -> bool:
        return self._free() > _MARGIN * self._most


class Company:
    """The points of a process: those that wait, those that run, those that were out of memory beside others.

    Everything happens in the main thread, but for the points themselves; it touches the device in turns of its own.
    """

    def __init__(self, sender: Connection, works: Sequence[Work], share: Share, turns: Turns) -> None:
        self._sender, self._works, self._share, self._turns = sender, works, share, turns
        self._waiting, self._again = deque(range(len(works))), deque[int]()
        self._running: set[int] = set()
        self._crowded: set[int] = set()  # have run beside others
        self._alone: int | None = None  # runs once more, by itself
        self._unmeasured: int | None = None  # the last that began, until its memory is known
        self._memory = Memory(_free_memory(share.device))
        self._short: set[int] = set()  # were out of memory
        self._events: SimpleQueue[tuple[int, Point | None]] = SimpleQueue()

    def run(self) -> None:
        """Until all points have ended."""
        while True:
            with self._turns.turn():
                while not self._turns.asked and (number := self._next()) is not None:
                    self._begin(number)
            if not self._running:
                return
            event = self._events.get()
            with self._turns.turn():
                self._hear(*event)

    def _next(self) -> int | None:
        """The point that can begin now."""
        if self._again:
            if self._running:
                return None
            self._alone = self._again.popleft()
            return self._alone
        if not self._waiting or (self._running and not self._room()):
            return None
        return self._waiting.popleft()

    def _room(self) -> bool:
        if self._alone in self._running:
            return False
        if self._share.at_once is not None:
            return len(self._running) < self._share.at_once
        return self._unmeasured is None and self._memory.suffices()

    def _begin(self, number: int) -> None:
        self._unmeasured = number
        self._memory.begin()
        self._running.add(number)
        if len(self._running) > 1:
            self._crowded |= self._running
        send(self._sender, number=number, event="starts")
        threading.Thread(target=self._live, args=(number,), daemon=True).start()

    def _hear(self, number: int, point: Point | None) -> None:
        """What a point says: its memory can be measured (None), or it has ended."""
        if number == self._unmeasured:
            self._memory.measure()
            self._unmeasured = None
        if point is None:
            return
        self._running.remove(number)
        if number in self._short & self._crowded and not self._turns.asked:
            self._short.remove(number)
            self._crowded.remove(number)
            self._again.append(number)
            send(self._sender, number=number, event="waits")
        else:
            send(self._sender, number=number, point=point)

    def _live(self, number: int) -> None:
        """The thread of a point."""
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
        work, surroundings = self._works[number], _Surroundings()
        with self._turns.seat(surroundings) as seat:
            seat.watch = lambda updates: self._events.put((number, None)) if updates == _MEASURED else None
            try:
                point = attempt(work.label, lambda: self._logged(number, surroundings))
            except BaseException as error:  # SystemExit of a component of the user
                point = failed(work.label, KDError(f"it ended by itself ({type(error).__name__}); the log may say why"))
            gc.collect()
            _settle(self._share.device)
        surroundings.close()
        self._events.put((number, point))

    def _logged(self, number: int, surroundings: _Surroundings) -> Point:
        """Runs a point with its output in its log, and its own stream of the device."""
        import torch

        work = self._works[number]
        surroundings.write_to(open_log(work.log))
        with warnings.catch_warnings():  # what Python warned others of is said again
            pass
        os.environ.pop(TRIAL, None)
        os.environ.update({name: value for name, value in work.environment.items() if name == TRIAL})
        torch.set_num_threads(self._share.threads)  # is a thread's own
        if self._share.device != "cpu":
            torch.cuda.set_stream(torch.cuda.Stream(self._share.device))
        try:
            return told(work.start)
        except Exception as error:
            _settle(self._share.device)
            if isinstance(error, OutOfMemory) or missing_memory(error) is not None:
                self._short.add(number)
            raise


class _Surroundings:
    """What a point has of the process in its turns: its log, what it was told, what is logged, how PyTorch computes."""

    def __init__(self) -> None:
        self._log: int | None = None
        self._own: list[Any] = [{}, warnings.filters, logging.root.handlers, logging.root.level]
        self._switches: Switches | None = EXACT

    def write_to(self, log: int) -> None:
        self._log = log
        write_to(log)

    def enter(self) -> None:
        if self._log is not None:
            write_to(self._log)
        console._noticed, warnings.filters, logging.root.handlers, logging.root.level = self._own
        switch(self._switches)

    def leave(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # a full disk
                stream.flush()
        self._own = [console._noticed, warnings.filters, logging.root.handlers, logging.root.level]
        self._switches = current()

    def close(self) -> None:
        if self._log is not None:
            os.close(self._log)


def _free_memory(device: str) -> Callable[[], int]:
    """What gives the free bytes of a device; the memory of the processor is not looked at."""
    if device == "cpu":
        return lambda: sys.maxsize
    import torch

    return lambda: torch.cuda.mem_get_info(device)[0]


def _settle(device: str) -> None:
    """Memory that nobody uses is free. Where CUDA is broken, the process ends: it is for all of its points."""
    if device == "cpu":
        return
    import torch

    try:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    except RuntimeError:
        sys.stderr.flush()
        os._exit(1)
