"""What is done to images where they are decoded: windows are cut out, and their views made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kd_cli.data.sampling import generator


class Crop(Protocol):
    """Draws windows of images."""

    def box(self, height: int, width: int, random: torch.Generator) -> tuple[int, int, int, int]: ...


@dataclass(frozen=True)
class Windows:
    """Which windows of images are cut out where these are decoded: a function of (seed, view, id).

    Args:
        crop: draws one.
        seed: of the training.
        views: a window for each.
    """

    crop: Crop
    seed: int
    views: Sequence[int]

    def boxes(self, number: int, height: int, width: int) -> list[tuple[int, int, int, int]]:
        """Top, left, height and width, pixels, of the windows of image `number` (0 … N-1), which has this size."""
        streams = (generator(self.seed, "window", view, number) for view in self.views)
        return [self.crop.box(height, width, stream) for stream in streams]


@dataclass(frozen=True)
class Finish:
    """What is done to images where they are decoded.

    Args:
        augment: pixels [views, H, W, C] and their rows of the table → pixels.
        table: [M × views, columns], of the images in the order in which they are read.
        views: of each image.
    """

    augment: Callable[[Tensor, Tensor], Tensor]
    table: Tensor
    views: int

    def __call__(self, pixels: Sequence[Tensor], place: int) -> list[Tensor]:
        """The views, each [H, W, C], of the image that is read as number `place`; of one such, or of as many.

        One by one: whatever is done to an image, its pixels stay in the processor's cache meanwhile.
        """
        rows = self.table[place * self.views : (place + 1) * self.views, None]
        return [self.augment(pixels[view % len(pixels)][None], row)[0] for view, row in enumerate(rows)]
