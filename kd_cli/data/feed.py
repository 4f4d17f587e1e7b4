"""The training batches of one epoch after another, made from tensors that stay where they are on the device.

So a step can be recorded as a CUDA graph with all that makes its batch: where the batch number is a tensor, a replay
finds its images by itself. N training images, B per batch, M that an epoch uses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from kd_cli.data import sampling
from kd_cli.data.preprocess import Prepare
from kd_cli.data.store import Store
from kd_cli.types import Batch


@dataclass(frozen=True)
class Rows:
    """One part of a data set: the rows [N] of a store that belong to it, and their labels [N].

    Args:
        balanced: an epoch shows each class equally often.
    """

    store: Store
    rows: Tensor
    labels: Tensor
    balanced: bool = False

    def order(self, seed: int, epoch: int) -> Tensor:
        """The positions that an epoch shows: [N], int64."""
        if self.balanced:
            return sampling.balanced(self.labels, seed, epoch)
        return sampling.permutation(len(self.rows), seed, epoch)


class Feed:
    """Shuffled and augmented as (seed, epoch) say, whatever the device, the workers and the processes.

    Args:
        part: the images that train.
        prepare: augments and normalises.
        seed: of order and augmentation.
        batch_size: B of the global batch.
        steps: global batches of an epoch.
        device: of the batches.
        shard: (rank, world): of each global batch the rows rank, rank + world, …
    """

    def __init__(
        self,
        part: Rows,
        prepare: Prepare,
        *,
        seed: int,
        batch_size: int,
        steps: int,
        device: torch.device,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        self._part, self._store, self._prepare = part, part.store, prepare
        self._seed, self._batch_size, self.steps, self._shard = seed, batch_size, steps, shard
        self._device = device
        self._epoch = 0
        self._buffers: dict[str, Tensor] = {}
        self._streamed: Iterator[Tensor] = iter(())
        self._fetched: deque[Tensor] = deque()
        self._staged: list[Tensor] = []
        self._bounds: list[tuple[int, int]] = []

    def begin(self, epoch: int, first: int = 0) -> None:
        """Makes ready what an epoch needs.

        Args:
            first: how many of its batches are left out.
        """
        order = self._part.order(self._seed, epoch)
        ids = sampling.cut(order, self._batch_size, range(self.steps), self._shard)
        flat = torch.cat(ids) if ids else order[:0]
        self._epoch = epoch
        self._bounds = list(pairwise(accumulate(map(len, ids), initial=0)))
        self._hold("ids", flat)
        self._hold("rows", self._part.rows[flat])
        self._hold("labels", self._part.labels[flat])
        self._hold("table", self._prepare.table(len(order), self._seed, epoch, self._device))
        if not self._store.resident:
            rows = self._buffers["rows"]
            self._fetched.clear()
            self._streamed = self._store.batches([rows[slice(*each)] for each in self._bounds[first:]], self._device)

    def fetch(self, count: int) -> None:
        """Reads the pixels of the next `count` batches, where images are read one by one: who waits can wait here.

        Raises:
            DataError: an image cannot be read.
        """
        while not self._store.resident and len(self._fetched) < count:
            self._fetched.append(next(self._streamed))

    def batch(self, number: int) -> Batch:
        """A batch of the epoch. Where images are read one by one, batches come in their order, each once.

        Raises:
            DataError: an image cannot be read.
        """
        place = slice(*self._bounds[number])
        rows, labels, ids = (self._buffers[name][place] for name in ("rows", "labels", "ids"))
        pixels = self._store.take(rows, self._device) if self._store.resident else self._next()
        return Batch(*self._made(pixels, labels, ids), self._epoch)

    def size(self, number: int) -> int:
        """Images of a batch."""
        first, last = self._bounds[number]
        return last - first

    def is_whole(self, number: int) -> bool:
        """Whether a batch has as many images as the first one."""
        return self.size(number) == self.size(0)

    def stage(self, count: int) -> None:
        """Puts the next `count` whole batches where `at` finds them, if images are read one by one.

        Raises:
            DataError: an image cannot be read.
        """
        for place in range(0 if self._store.resident else count):
            pixels = self._next()
            if place == len(self._staged):
                self._staged.append(torch.empty_like(pixels))
            self._staged[place].copy_(pixels, non_blocking=True)

    def at(self, number: Tensor, place: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels and ids of a whole batch, found on the device.

        Args:
            number: [1], int64: which batch of the epoch.
            place: which of the batches that were staged together.
        """
        size = self._bounds[0][1]
        places = number * size + torch.arange(size, device=self._device)
        rows, labels, ids = (self._buffers[name].index_select(0, places) for name in ("rows", "labels", "ids"))
        pixels = self._store.take(rows, self._device) if self._store.resident else self._staged[place]
        return self._made(pixels, labels, ids)

    def _next(self) -> Tensor:
        self.fetch(1)
        return self._fetched.popleft()

    def _made(self, pixels: Tensor, labels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen = self._prepare.augment(pixels, self._buffers["table"].index_select(0, ids))
        return self._prepare.normalise(seen), labels, ids

    def _hold(self, name: str, values: Tensor) -> None:
        """One copy to the device per epoch, not one per batch."""
        if name in self._buffers:
            self._buffers[name].copy_(values)
        else:
            self._buffers[name] = values.to(self._device, copy=True)
