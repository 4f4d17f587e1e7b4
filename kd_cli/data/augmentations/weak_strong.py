"""Two kinds of views: FixMatch (Sohn et al. 2020, arXiv:2001.07685) made them usual."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_cli.data.augment import AUGMENTATIONS
from kd_cli.data.augmentations.operations import IDENTITY_ROW
from kd_cli.data.augmentations.strong import FIRST, NUM_OPERATIONS, Strong


@AUGMENTATIONS.register("weak_strong")
class WeakStrong:
    """`crop_flip` in the views 0, 2, …, `strong` in the views 1, 3, …

    With `dataset.repeats=2` a batch has one view of each kind of every image, the weak one first.
    """

    def __init__(self) -> None:
        self._strong = Strong()

    def draw(self, size: int, shape: tuple[int, int, int], random: torch.Generator) -> Tensor:
        return self._strong.draw(size, shape, random)

    def of_view(self, table: Tensor, view: int) -> Tensor:
        if view % 2 == 0:
            table[:, FIRST:] = IDENTITY_ROW.repeat(NUM_OPERATIONS)
        return table

    def apply(self, pixels: Tensor, table: Tensor) -> Tensor:
        return self._strong.apply(pixels, table)
