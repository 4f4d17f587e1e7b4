"""Random erasing (Zhong et al. 2017, arXiv:1708.04896): a random rectangle shows one colour."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from kd_cli.data.augment import AUGMENTATIONS
from kd_cli.data.augmentations.random_resized_crop import RandomResizedCrop
from kd_cli.ranges import Rule, Share

_GREYS = Rule("one grey level 0 … 255, or one for each channel", lambda each: all(0 <= one <= 255 for one in each))
_AREAS = Rule("two shares of the area, 0 < least ≤ largest ≤ 1", lambda each: 0 < each[0] <= each[1] <= 1)
_RATIOS = Rule("two ratios, 0 < least ≤ largest", lambda each: 0 < each[0] <= each[1] < math.inf)


@AUGMENTATIONS.register("erasing")
class Erasing:
    """A rectangle of random area, shape and place is filled.

    Args:
        p: probability.
        scale: least and largest area, as shares of the image's.
        ratio: least and largest width / height.
        fill: grey levels, one or one per channel; the default is ImageNet's mean colour, 0 once normalised with it.

    Raises:
        ValueError: as many levels as no image has channels.
    """

    def __init__(
        self,
        p: Share = 0.25,
        scale: Annotated[tuple[float, float], _AREAS] = (0.02, 1 / 3),
        ratio: Annotated[tuple[float, float], _RATIOS] = (0.3, 10 / 3),
        fill: Annotated[tuple[int, ...], _GREYS] = (124, 116, 104),
    ) -> None:
        if len(fill) not in (1, 3):
            raise ValueError(f"fill: {list(fill)} has {len(fill)} levels; type one, or three for red, green and blue")
        self.p, self.fill = p, fill
        self._window = RandomResizedCrop(scale, ratio)

    def draw(self, size: int, shape: tuple[int, int, int], random: torch.Generator) -> Tensor:
        """Top, left, height and width of each rectangle, pixels; no height where nothing is erased."""
        table = self._window.draw(size, shape, random)
        table[torch.rand(size, generator=random) >= self.p] = 0
        return table

    def apply(self, pixels: Tensor, table: Tensor) -> Tensor:
        level = sum(self.fill) // len(self.fill)
        fill = self.fill if len(self.fill) == pixels.shape[-1] else [level] * pixels.shape[-1]
        colour = torch.empty(len(fill), dtype=torch.uint8, device=pixels.device)
        for channel, each in enumerate(fill):
            colour[channel].fill_(each)  # there, not copied to it: a copy from the host cannot be recorded
        return torch.where(inside(table, pixels.shape[1], pixels.shape[2])[..., None], colour, pixels)


def inside(table: Tensor, height: int, width: int) -> Tensor:
    """Which pixels are in rectangles: [B, H, W], of top, left, height and width [B, 4]."""
    top, left, tall, wide = (each[:, None] for each in table.unbind(dim=1))
    rows, columns = torch.arange(height, device=table.device), torch.arange(width, device=table.device)
    hit_row, hit_column = (rows >= top) & (rows < top + tall), (columns >= left) & (columns < left + wide)
    return hit_row[:, :, None] & hit_column[:, None, :]
