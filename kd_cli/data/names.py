"""Very many names in one buffer: a list of a million texts takes 100 MB, and each worker that reads it copies it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

CHUNK = 2**16  # names that are made at a time
Places = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Names:
    """N names as the system has them, bytes that need be no text.

    Args:
        buffer: all of them.
        starts, ends: where each is in it [N].
    """

    buffer: bytes
    starts: Places
    ends: Places

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, row: int) -> str:
        return os.fsdecode(self.buffer[self.starts[row] : self.ends[row]])

    def take(self, rows: Tensor) -> Names:
        """Some of them, in the order given."""
        return Names(self.buffer, self.starts[rows.numpy()], self.ends[rows.numpy()])

    def chunks(self) -> Iterator[list[bytes]]:
        """All of them, some at a time."""
        for first in range(0, len(self), CHUNK):
            starts, ends = (each[first : first + CHUNK].tolist() for each in (self.starts, self.ends))
            yield [self.buffer[start:end] for start, end in zip(starts, ends, strict=True)]


def pack(names: Iterable[str]) -> Names:
    """The names in one buffer."""
    encoded = [os.fsencode(name) for name in names]
    return unpack(b"".join(encoded), np.cumsum([len(name) for name in encoded], dtype=np.int64))


def unpack(buffer: bytes, ends: Places) -> Names:
    """The names that stand in a buffer one behind the other."""
    return Names(buffer, np.concatenate([ends[:1] * 0, ends[:-1]]), ends)


def joined(parts: Iterable[Names]) -> Names:
    """All names of all parts, each of them packed, in their order."""
    every = list(parts)
    shifts = np.cumsum([0, *(len(part.buffer) for part in every)])
    ends = [part.ends + shift for part, shift in zip(every, shifts[:-1], strict=True)]
    return unpack(b"".join(part.buffer for part in every), np.concatenate(ends))


def names_kept(key: str, names: Names) -> dict[str, Tensor]:
    """Packed names as tensors of a file."""
    buffer = torch.from_numpy(np.frombuffer(names.buffer, dtype=np.uint8).copy())
    return {key: buffer, f"{key}_ends": torch.from_numpy(names.ends)}


def kept_names(key: str, tensors: Mapping[str, Tensor]) -> Names:
    """The names that such tensors hold."""
    return unpack(tensors[key].numpy().tobytes(), tensors[f"{key}_ends"].numpy())
