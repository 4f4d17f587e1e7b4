"""Mirrored left to right."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_cli.data.augment import AUGMENTATIONS
from kd_cli.ranges import Share


@AUGMENTATIONS.register("flip")
class Flip:
    """Some images are mirrored.

    Args:
        p: probability.
    """

    def __init__(self, p: Share = 0.5) -> None:
        self.p = p

    def draw(self, size: int, shape: tuple[int, int, int], random: torch.Generator) -> Tensor:  # noqa: ARG002
        _, _, flip = torch.rand(3, size, generator=random)  # the stream of crop_flip
        return torch.lt(flip, self.p).float()[:, None]

    def apply(self, pixels: Tensor, table: Tensor) -> Tensor:
        return mirrored(pixels, table[:, 0])


def mirrored(pixels: Tensor, flip: Tensor) -> Tensor:
    """[B, H, W, C], those images mirrored whose `flip` [B] is 1."""
    if len(pixels) == 1 and pixels.device.type == "cpu":
        return pixels.flip(2) if flip[0] else pixels
    number = torch.arange(len(pixels), device=pixels.device)
    return torch.cat([pixels, pixels.flip(2)]).index_select(0, number + flip.long() * len(pixels))
