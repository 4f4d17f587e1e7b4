"""Decoded images that need not be read again."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor


class Kept:
    """Decoded images that stay in memory, the first that were read, as many as fit.

    Args:
        count: how many images there are.
        shape: (H, W, C) of each.
        num_bytes: that they may take.
    """

    def __init__(self, count: int, shape: tuple[int, int, int], num_bytes: int) -> None:
        self._room = min(count, num_bytes // prod(shape))
        self._pixels = torch.empty((self._room, *shape), dtype=torch.uint8)  # touched, and taken, as it is filled
        self._place = torch.full((count if self._room else 0,), -1)
        self._used = 0

    def missing(self, rows: Tensor) -> Tensor:
        """Those of the rows [B] that are to be read."""
        return rows[self._place[rows] < 0] if self._room else rows

    def whole(self, rows: Tensor, absent: Tensor, read: Tensor) -> Tensor:
        """The pixels of the rows [B], of which those `absent` were read now; they are kept if there is room."""
        if not self._room:
            return read
        pixels = torch.empty((len(rows), *read.shape[1:]), dtype=torch.uint8)
        were = self._place[rows] >= 0
        was_absent = torch.isin(rows, absent)
        pixels[was_absent] = read
        pixels[~was_absent] = self._pixels[self._place[rows[~was_absent]]]
        self._keep(rows[was_absent & ~were], pixels[was_absent & ~were])
        return pixels

    def _keep(self, rows: Tensor, pixels: Tensor) -> None:
        count = min(len(rows), self._room - self._used)
        if count:
            places = torch.arange(self._used, self._used + count)
            self._pixels[places] = pixels[:count]
            self._place[rows[:count]] = places
            self._used += count
