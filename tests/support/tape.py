"""A CUDA graph's stand-in on the CPU: it keeps the operations of an action and the tensors that they used.

As with a graph a replay runs no Python of the action, reads and writes the same memory, and knows no number that was
Python's while it was recorded but the one it had then. And as there, recording does nothing, and reading a tensor from
Python is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from kd_cli.seeds import seed_dropout
from kd_cli.training.host_reads import host_reads

CPU = torch.device("cpu")


class Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Sequence[Any], Mapping[str, Any], Any]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # what was written to → as it was
        self.made: set[int] = set()  # addresses of memory that the action itself has made

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "equal", "is_nonzero"):
            raise RuntimeError(f"{func} is not permitted while something is recorded")
        self._remember(func, args, kwargs)
        result = func(*args, **kwargs)
        self.operations.append((func, args, kwargs, result))
        given = {tensor.untyped_storage().data_ptr() for tensor in tensors((args, kwargs))}
        self.made |= {tensor.untyped_storage().data_ptr() for tensor in tensors(result)} - given
        return result

    def _remember(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        statistics = func.overloadpacket.__name__ == "native_batch_norm"  # which it writes to without saying so
        for place, argument in enumerate(func._schema.arguments):
            written = argument.alias_info is not None and argument.alias_info.is_write
            if not written and not (statistics and argument.name.startswith("running")):
                continue
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            for tensor in tensors(value):
                if tensor.untyped_storage().data_ptr() not in self.made and id(tensor) not in self.before:
                    self.before[id(tensor)] = (tensor, tensor.detach().clone())

    def undo(self) -> None:
        for tensor, value in reversed(self.before.values()):
            tensor.detach().copy_(value)
        self.before.clear()

    @torch.no_grad()
    def play(self) -> None:
        for func, args, kwargs, kept in self.operations:
            given = {tensor.untyped_storage().data_ptr() for tensor in tensors((args, kwargs))}
            result = func(*args, **kwargs)
            for old, new in zip(tensors(kept), tensors(result), strict=True):
                if old.untyped_storage().data_ptr() not in given:
                    old.copy_(new)


def tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_flatten(values)[0] if isinstance(value, Tensor)]


class TapeRecorder:
    """Records on tapes.

    Attributes:
        recorded: how many.
        replays: how often they were played, together.
    """

    def __init__(self) -> None:
        self.recorded = self.replays = 0

    def record(self, action: Callable[[], None]) -> Callable[[int | None], None]:
        tape, random = Tape(), torch.get_rng_state()
        try:
            with tape:
                action()
        finally:
            tape.undo()
            torch.set_rng_state(random)
        self.recorded += 1

        def replay(seed: int | None) -> None:
            if seed is not None:
                self.seed(seed)
            self.replays += 1
            tape.play()

        return replay

    def seed(self, seed: int) -> None:
        seed_dropout(seed, CPU)

    def waits(self) -> AbstractContextManager[list[str]]:
        return host_reads()

    def drawn(self) -> Hashable:
        return torch.get_rng_state().numpy().tobytes()
