"""Very many names in one buffer: a list of a million texts takes 100 MB, and each worker that reads it copies it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

CHUNK = 2**16  # names that are made at a time


@dataclass(frozen=True)
class Names:
    """N names as the system has them, bytes that need be no text.

    Args:
        buffer: all of them.
        starts, ends: where each is in it [N], int64.
    """

    buffer: bytes
    starts: Tensor
    ends: Tensor

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, row: int) -> str:
        return os.fsdecode(self.buffer[self.starts[row] : self.ends[row]])

    def take(self, rows: Tensor) -> Names:
        """Some of them, in the order given."""
        return Names(self.buffer, self.starts[rows], self.ends[rows])

    def chunks(self) -> Iterator[list[bytes]]:
        """All of them, some at a time."""
        for starts, ends in zip(self.starts.split(CHUNK), self.ends.split(CHUNK), strict=True):
            yield [self.buffer[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


def pack(names: Iterable[str]) -> Names:
    """The names in one buffer."""
    encoded = [os.fsencode(name) for name in names]
    ends = torch.tensor([len(name) for name in encoded], dtype=torch.int64).cumsum(0)
    return Names(b"".join(encoded), torch.cat([ends.new_zeros(1), ends[:-1]]), ends)


def joined(parts: Iterable[Names]) -> Names:
    """All names of all parts, in their order."""
    every = list(parts)
    shifts = chain([0], torch.tensor([len(part.buffer) for part in every]).cumsum(0).tolist())
    moved = [(part.starts + shift, part.ends + shift) for part, shift in zip(every, shifts, strict=False)]
    buffer = b"".join(part.buffer for part in every)
    return Names(buffer, torch.cat([starts for starts, _ in moved]), torch.cat([ends for _, ends in moved]))
