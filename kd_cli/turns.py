"""Trainings that share a process, each in a thread: one runs at a time, and says between two updates that another may.

So whatever belongs to the process as a whole is one training's at a time. What a training has given to a GPU goes on
while the others have their turns.
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from kd_cli import console
from kd_cli.errors import Terminated

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

# Seconds of a turn. Handing over takes some 50 µs: a hundredth. A captured update takes less than half a millisecond of
# the processor, so a turn gives the device about ten, which keep it busy while the next training begins its turn.
_TURN = 0.004
_MOST_KEPT = 2  # things that nobody has any more: a point's reference and its data, which the next one may want

_own = threading.local()


class Surroundings(Protocol):
    """What a training has of the process while it is its turn."""

    def enter(self) -> None: ...

    def leave(self) -> None: ...


class Shared:
    """What was made for all: kept as long as somebody has it, and the last ones longer."""

    def __init__(self) -> None:
        self._there: dict[Hashable, tuple[Callable[[], Any], list[str]]] = {}
        self._last: dict[Hashable, Any] = {}  # in the order in which they were asked for

    def find(self, what: Hashable) -> Any:
        """What is there, or None; what was noticed while it was made is noticed again."""
        get, notices = self._there.get(what, (lambda: None, []))
        if (made := get()) is not None:
            self._hold(what, made)
            for text in notices:
                console.notice(text)
        return made

    def keep(self, what: Hashable, made: Any, notices: list[str]) -> None:
        """Keeps what was just made."""
        self._there[what] = weakref.ref(made), notices
        self._hold(what, made)

    def _hold(self, what: Hashable, made: Any) -> None:
        self._last.pop(what, None)
        self._last[what] = made
        if len(self._last) > _MOST_KEPT:
            del self._last[next(iter(self._last))]


class Turns:
    """Whose turn it is, first come, first served.

    Attributes:
        asked: all are to end: each gets Terminated between two of its updates, once.
    """

    def __init__(self) -> None:
        self.asked = False
        self.shared = Shared()
        self._guard = threading.Lock()
        self._taken = False
        self._line: deque[threading.Lock] = deque()

    def take(self) -> None:
        """Waits for the turn."""
        gate = threading.Lock()
        gate.acquire()
        with self._guard:
            if self._taken:
                self._line.append(gate)
            else:
                self._taken = True
                gate.release()
        gate.acquire()

    def hand_on(self) -> None:
        """Ends the turn: it is the next one's."""
        with self._guard:
            if self._line:
                self._line.popleft().release()
            else:
                self._taken = False

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Has a turn while this is open."""
        self.take()
        try:
            yield
        finally:
            self.hand_on()

    @contextmanager
    def seat(self, surroundings: Surroundings) -> Iterator[Seat]:
        """Makes this thread one of those that take turns; it is its turn while this is open."""
        seat = Seat(self, surroundings)
        seat.begin()
        _own.seat = seat
        try:
            yield seat
        finally:
            _own.seat = None
            seat.end()


class Seat:
    """A thread among those that take turns.

    Attributes:
        updates: that it has made.
        watch: called after each of them, while it is its turn.
    """

    def __init__(self, turns: Turns, surroundings: Surroundings) -> None:
        self.turns, self.updates = turns, 0
        self.watch: Callable[[int], None] = lambda _: None
        self._surroundings = surroundings
        self._told = False

    @contextmanager
    def aside(self) -> Iterator[None]:
        """The others have their turns while this is open; nothing of the process may be touched in it."""
        self.end()
        try:
            yield
        finally:
            self.begin()

    def over(self) -> bool:
        """Whether the turn has been long enough."""
        return time.perf_counter() - self._since >= _TURN

    def check(self) -> None:
        """Raises Terminated if all are to end and this one was not told."""
        if self.turns.asked and not self._told:
            self._told = True
            raise Terminated("the process was asked to end (SIGTERM)")

    def begin(self) -> None:
        """Waits for the turn."""
        self.turns.take()
        self._surroundings.enter()
        self._since = time.perf_counter()

    def end(self) -> None:
        """Ends the turn."""
        self._surroundings.leave()
        self.turns.hand_on()


def give_way() -> None:
    """Called between two updates: where trainings share this process, another one may have its turn.

    Raises:
        Terminated: they are all to end.
    """
    seat: Seat | None = getattr(_own, "seat", None)
    if seat is None:
        return
    seat.updates += 1
    seat.watch(seat.updates)
    if seat.over():
        with seat.aside():
            pass
    seat.check()


def rest(seconds: float) -> None:
    """Sleeps, while others have their turns: one of them may have what this one waits for.

    Raises:
        Terminated: all are to end.
    """
    seat: Seat | None = getattr(_own, "seat", None)
    if seat is None:
        time.sleep(seconds)
        return
    seat.check()
    with seat.aside():
        time.sleep(seconds)
    seat.check()


def let_finish(device: torch.device) -> None:
    """Waits for what the current stream was given, while others have their turns; alone, the next read waits for it."""
    seat: Seat | None = getattr(_own, "seat", None)
    if seat is None or device.type != "cuda":
        return
    import torch

    done = torch.cuda.Event(blocking=True)
    done.record()
    with seat.aside():
        done.synchronize()


def once(what: Hashable, make: Callable[[], T]) -> T:
    """What `make` gives; trainings that share this process share that, too, and change nothing of it.

    Args:
        what: all that it depends on.
        make: gives something that weak references can be made of (no dict).
    """
    seat: Seat | None = getattr(_own, "seat", None)
    if seat is None:
        return make()
    made: T | None = seat.turns.shared.find(what)
    if made is None:
        before, made = len(console.noticed()), make()
        seat.turns.shared.keep(what, made, console.noticed()[before:])
        _wait_for_device()  # the others read it on streams of their own
    return made


def _wait_for_device() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.current_stream().synchronize()
