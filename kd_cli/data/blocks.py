"""Memory that worker processes write batches into, block by block, and that is used again and again.

Otherwise each batch is a new file of shared memory: the system clears its pages, and two processes map them.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Sequence
from math import prod
from multiprocessing import get_start_method

import numpy as np
import torch
from torch import Tensor


class Blocks:
    """To be made before the workers are forked, of which each then has the same memory.

    Args:
        count: blocks.
        num_bytes: of a block, bytes.
    """

    def __init__(self, count: int, num_bytes: int) -> None:
        self._memory = np.frombuffer(mmap.mmap(-1, count * num_bytes), dtype=np.uint8).reshape(count, num_bytes)
        self._free = list(range(count))

    def lend(self) -> int | None:
        """One that nobody uses. The one that came back last, as its pages are mapped most likely."""
        return self._free.pop() if self._free else None

    def give_back(self, block: int) -> None:
        """Nothing was written to it."""
        self._free.append(block)

    def write(self, block: int, images: Sequence[Tensor]) -> tuple[int, ...]:
        """Stacks images, uint8 and of one shape, in a block, and gives the shape of all."""
        shape = (len(images), *images[0].shape)
        torch.stack(list(images), out=torch.from_numpy(self._view(block, shape)))
        return shape

    def take(self, block: int, shape: Sequence[int]) -> Tensor:
        """What was written: the block is lent until nothing uses this tensor's memory any more."""
        array = self._view(block, shape)  # which the tensor's storage keeps
        weakref.finalize(array, self.give_back, block).atexit = False
        return torch.from_numpy(array)

    def _view(self, block: int, shape: Sequence[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        return self._memory[block, : prod(shape)].reshape(shape)


def blocks_for(workers: int, num_bytes: int) -> Blocks | None:
    """As many as `workers` and who takes their batches use at a time; None where workers are no forks of this process.

    Args:
        num_bytes: of the largest batch.
    """
    if not workers or not num_bytes or get_start_method() != "fork":
        return None
    return Blocks(2 * workers + 2, num_bytes)
