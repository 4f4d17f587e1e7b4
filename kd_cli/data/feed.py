"""The training batches of one epoch after another, made from tensors that stay where they are on the device.

So a step can be recorded as a CUDA graph with all that makes its batch: where the batch number is a tensor, a replay
finds its images by itself. N training images, B per batch, M that an epoch uses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kd_cli.data import sampling
from kd_cli.data.preprocess import Prepare
from kd_cli.data.store import Store
from kd_cli.types import Batch, Mixed

if TYPE_CHECKING:
    from kd_cli.data.windows import Crop


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


@dataclass(frozen=True)
class Order:
    """Which images, and which of their views, an epoch shows.

    Args:
        seed: of order and augmentation.
        batch_size: B of the global batch, a multiple of `repeats`.
        steps: global batches of an epoch.
        repeats: views of an image in one batch.
        cycle: different views that an image has; None: no end of them.
        crop: cuts windows out of images where they are decoded.
    """

    seed: int
    batch_size: int
    steps: int
    repeats: int = 1
    cycle: int | None = None
    crop: Crop | None = None

    def views(self, epoch: int) -> tuple[int, ...]:
        """The views that it shows, in the order of `Batch.repeat`."""
        return sampling.views_in(epoch, self.repeats, self.cycle)

    def images(self, part: Rows, epoch: int, shard: tuple[int, int] = (0, 1)) -> list[Tensor]:
        """The images of each batch, each once; of R epochs each takes an R-th of one order."""
        place, count = epoch % self.repeats, len(part.rows) // self.repeats
        order = part.order(self.seed, epoch - place)[place * count : (place + 1) * count]
        return sampling.cut(order, self.batch_size // self.repeats, range(self.steps), shard)


class Feed:
    """Shuffled and augmented as (seed, epoch) say, whatever the device, the workers and the processes.

    Args:
        part: the images that train.
        prepare: augments and normalises.
        order: of the images.
        device: of the batches.
        shard: (rank, world): of each global batch the images rank, rank + world, …

    Raises:
        ValueError: images are mixed, and some of their partners would be another process'.
    """

    def __init__(
        self,
        part: Rows,
        prepare: Prepare,
        order: Order,
        *,
        device: torch.device,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        self._part, self._store, self._prepare = part, part.store, prepare
        self._order, self._shard, self._device = order, shard, device
        self._mixes = prepare.augmentation.mixes
        # A device augments whole batches at once; a processor, each image where it was decoded, many at a time.
        self._finished = device.type == "cpu" and not self._store.resident and not self._store.keeps
        if self._mixes and shard[1] > 1:
            raise ValueError("mixup and cutmix pair images of a whole batch, which one process must have")
        self.steps = order.steps
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
        size, views = len(self._part.rows), self._order.views(epoch)
        images = self._order.images(self._part, epoch, self._shard)
        once = torch.cat(images) if images else torch.empty(0, dtype=torch.int64)
        ids = once.repeat_interleave(len(views))
        repeat = torch.arange(len(views)).repeat(len(once))
        self._epoch = epoch
        self._bounds = [(one * len(views), other * len(views)) for one, other in _bounds(images)]
        self._hold("ids", ids)
        self._hold("rows", self._part.rows[ids])
        self._hold("labels", self._part.labels[ids])
        if len(views) > 1:
            self._hold("repeat", repeat)
        self._hold("drawn", repeat * size + ids)  # rows of the table
        self._hold("table", self._prepare.table(size, self._order.seed, views, self._device))
        if not self._store.resident:
            self._fetched.clear()
            drawn = self._buffers["drawn"][self._bounds[first][0] if first < len(self._bounds) else 0 :]
            self._streamed = self._stream(images[first:], views, drawn)

    def _stream(self, images: list[Tensor], views: tuple[int, ...], drawn: Tensor) -> Iterator[Tensor]:
        """The pixels of one batch after another; each image is decoded once.

        Args:
            drawn: the rows of the table of all views of these images.
        """
        from kd_cli.data.windows import Finish, Windows

        rows, crop, finish = [self._part.rows[each] for each in images], self._order.crop, None
        if self._finished:
            finish = Finish(self._prepare.augmentation.apply, self._buffers["table"][drawn], len(views))
        if crop is not None:
            windows = Windows(crop, self._order.seed, views)
            yield from self._store.windows(rows, images, windows, self._device, finish)
            return
        for pixels in self._store.batches(rows, self._device, finish):
            yield pixels.repeat_interleave(len(views), dim=0) if len(views) > 1 and finish is None else pixels

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
        taken = {name: values[place] for name, values in self._buffers.items() if name != "table"}
        pixels = self._store.take(taken["rows"], self._device) if self._store.resident else self._next()
        return self._made(pixels, taken)

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

    def at(self, number: Tensor, place: int) -> Batch:
        """A whole batch, found on the device.

        Args:
            number: [1], int64: which batch of the epoch.
            place: which of the batches that were staged together.
        """
        size = self._bounds[0][1]
        places = number * size + torch.arange(size, device=self._device)
        taken = {name: values.index_select(0, places) for name, values in self._buffers.items() if name != "table"}
        pixels = self._store.take(taken["rows"], self._device) if self._store.resident else self._staged[place]
        return self._made(pixels, taken)

    def _next(self) -> Tensor:
        self.fetch(1)
        return self._fetched.popleft()

    def _made(self, pixels: Tensor, taken: Mapping[str, Tensor]) -> Batch:
        table, labels = self._buffers["table"].index_select(0, taken["drawn"]), taken["labels"]
        seen = pixels if self._finished else self._prepare.augmentation.apply(pixels, table)
        images, mixed = self._prepare.normalise(seen), None
        if self._mixes:
            images, share = self._prepare.augmentation.mix(images, sampling.partners(images), table)
            mixed = Mixed(sampling.partners(labels), share)
        return Batch(images, labels, taken["ids"], self._epoch, taken.get("repeat"), mixed)

    def _hold(self, name: str, values: Tensor) -> None:
        """One copy to the device per epoch, not one per batch."""
        if name in self._buffers:
            self._buffers[name].copy_(values)
        else:
            self._buffers[name] = values.to(self._device, copy=True)


def _bounds(batches: list[Tensor]) -> list[tuple[int, int]]:
    return list(pairwise(accumulate(map(len, batches), initial=0)))


def in_view(
    part: Rows, prepare: Prepare, order: Order, ids: Sequence[Tensor], view: int, device: torch.device
) -> Iterator[Batch]:
    """Training images by their ids, a batch for each item [B], as they are augmented in one view.

    Args:
        order: of the training; mixed images are paired in its batches, and view and epoch are then the same.
    """
    table = prepare.table(len(part.rows), order.seed, (view,), device)
    seen = _augmented(part, prepare, order, ids, table, view, device)
    pairs = None
    if prepare.augmentation.mixes:
        pairs = sampling.partner_ids(order.images(part, view), len(part.rows))
        others = _augmented(part, prepare, order, [pairs[each.cpu()] for each in ids], table, view, device)
    for each, images in zip(ids, seen, strict=True):
        there = each.to(device)
        if pairs is not None:
            images, _ = prepare.augmentation.mix(images, next(others), table[there])
        yield Batch(images, part.labels[each.cpu()].to(device), there)


def _augmented(
    part: Rows,
    prepare: Prepare,
    order: Order,
    ids: Sequence[Tensor],
    table: Tensor,
    view: int,
    device: torch.device,
) -> Iterator[Tensor]:
    """As `in_view`, not yet mixed: [B, C, H, W] for each item [B]."""
    rows = [part.rows[each.cpu()] for each in ids]
    if order.crop is not None:
        from kd_cli.data.windows import Windows

        read = part.store.windows(rows, ids, Windows(order.crop, order.seed, (view,)), device)
    else:
        read = part.store.batches([each.to(device) for each in rows], device)
    for each, pixels in zip(ids, read, strict=True):
        yield prepare.made(pixels, table[each.to(device)])
