"""One update of a training as a CUDA graph: recorded once, replayed for every update like it.

A replay does what was recorded, at the same addresses, without a line of Python. What changes from update to update is
therefore found on the device (the number of the batch, the learning rate) or set before a replay (the seed of dropout);
what a loss reads of the epoch is noted while it is recorded, and where it has changed the update is recorded anew.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, Union

import torch
from torch import nn

from kd_cli.seeds import seed_dropout
from kd_cli.training.host_reads import host_reads
from kd_cli.types import Batch

T = TypeVar("T")
Replay = Callable[[Union[int, None]], None]  # noqa: UP007 - takes the seed of dropout, where there is any

_WARM = 2  # updates without a graph before one is recorded: the first makes what is made once, the second is looked at
_KNOWN = {"torch", "torchvision", "timm", "kd_cli"}  # packages whose layers decide nothing anew in Python at each step


@dataclass
class Notes:
    """What a recorded update has read of the epoch: it is the same in another one where all schedules say the same."""

    read: list[tuple[Callable[[int], Any], Any]] = field(default_factory=list)

    def hold(self, epoch: int) -> bool:
        return all(schedule(epoch) == value for schedule, value in self.read)


@dataclass(frozen=True)
class NotedBatch(Batch):
    """A batch that notes what is read of its epoch."""

    notes: Notes = field(default_factory=Notes)

    def at(self, schedule: Callable[[int], T]) -> T:
        value = schedule(object.__getattribute__(self, "epoch"))
        self.notes.read.append((schedule, value))
        return value

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name == "epoch":
            self.notes.read.append((_itself, value))
        return value


def _itself(epoch: int) -> int:
    return epoch


class Update(Protocol):
    """What is done at each update, in two ways that give the same bits."""

    def plainly(self) -> None: ...  # now

    def stage(self) -> None: ...  # what of `recorded` is the host's: images that it reads

    def recorded(self, notes: Notes) -> None: ...  # from tensors that stay where they are

    def count(self) -> None: ...  # what a replay leaves to the host

    def seed(self) -> int: ...  # of dropout

    def forget(self) -> None: ...  # what a recording that failed has left


class Recorder(Protocol):
    """Records what is done on a device."""

    def record(self, action: Callable[[], None]) -> Replay: ...  # it is not done; RuntimeError: it cannot be recorded

    def seed(self, seed: int) -> None: ...  # of what is done without being recorded

    def drawn(self) -> Hashable: ...  # changes when random numbers are drawn

    def waits(self) -> AbstractContextManager[list[str]]: ...  # fills it with what makes the program wait


class Graphs:
    """Does updates, from the third on by replaying one.

    Args:
        recorder: of the device.
        update: in both ways.

    Attributes:
        reason: why nothing is recorded; None as long as nothing speaks against it.
    """

    def __init__(self, recorder: Recorder, update: Update) -> None:
        self.reason: str | None = None
        self._recorder, self._update = recorder, update
        self._replay: Replay | None = None
        self._notes, self._epoch = Notes(), -1
        self._warm, self._draws = 0, False

    def do(self, epoch: int) -> None:
        """One update, in epoch 0, 1, …"""
        if epoch != self._epoch and (self._replay is None or not self._notes.hold(epoch)):
            self._replay, self._warm = None, 0
        self._epoch = epoch
        if self._replay is None and self.reason is None and self._warm == _WARM:
            self._record()
        if self._replay is not None:
            self._update.stage()
            self._replay(self._update.seed() if self._draws else None)
            self._update.count()
        elif self.reason is not None:
            self._update.plainly()
        else:
            self._warm_up()

    def _warm_up(self) -> None:
        self._warm += 1
        if self._warm < _WARM:
            self._update.plainly()
            return
        self._update.stage()
        self._recorder.seed(self._update.seed())
        before = self._recorder.drawn()
        with self._recorder.waits() as found:
            self._update.recorded(Notes())
        self._draws = self._recorder.drawn() != before
        if found:
            self.reason = f"{found[0]} makes the program wait for the device"

    def _record(self) -> None:
        self._notes = Notes()
        try:
            self._replay = self._recorder.record(lambda: self._update.recorded(self._notes))
        except RuntimeError as error:
            self._update.forget()
            self.reason = str(error).splitlines()[0]


class CudaRecorder:
    """Records on the stream that is current, which must not be the default one.

    Args:
        device: whose.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Replays on several streams must not share the tensors that a graph takes its seed from.
        self._random = self._default.clone_state()

    @property
    def _index(self) -> int:
        return self._device.index if self._device.index is not None else torch.cuda.current_device()

    @property
    def _default(self) -> torch.Generator:
        return torch.cuda.default_generators[self._index]

    def seed(self, seed: int) -> None:
        seed_dropout(seed, self._device)

    def drawn(self) -> int:
        return self._default.get_offset()

    @contextmanager
    def waits(self) -> Iterator[list[str]]:
        """Of what happens in kernels PyTorch itself tells."""
        with host_reads() as found, warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield found
            finally:
                torch.cuda.set_sync_debug_mode("default")
        for warning in told:
            if "synchronizing CUDA operation" in str(warning.message):
                found.append("an operation inside of PyTorch")
            else:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)

    def record(self, action: Callable[[], None]) -> Replay:
        torch.cuda.empty_cache()  # what was freed is of no use to a graph, whose memory is its own
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        with self._own_numbers(), _no_garbage():
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                action()
                graph.capture_end()
            except BaseException:
                with suppress(RuntimeError):  # the first error says more
                    graph.capture_end()
                with suppress(RuntimeError):  # PyTorch before 2.12 would go on taking memory for it
                    torch._C._cuda_endAllocateToPool(self._index, pool)
                raise

        def replay(seed: int | None) -> None:
            if seed is not None:
                self._random.manual_seed(seed)
            graph.replay()

        return replay

    @contextmanager
    def _own_numbers(self) -> Iterator[None]:
        shared = self._default.graphsafe_get_state()
        self._default.graphsafe_set_state(self._random)
        try:
            yield
        finally:
            self._default.graphsafe_set_state(shared)


@contextmanager
def _no_garbage() -> Iterator[None]:
    """What is collected meanwhile may free another graph, which is not allowed while one is recorded."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def foreign_layer(task: nn.Module) -> str | None:
    """The first layer that is neither kd's nor of a library that kd knows: it may decide in Python at each step."""
    kinds = (type(module) for module in task.modules())
    return next((each.__qualname__ for each in kinds if each.__module__.partition(".")[0] not in _KNOWN), None)
