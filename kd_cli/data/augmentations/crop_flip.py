"""What small images are augmented by: a shift by some pixels (He et al. 2016, arXiv:1512.03385, §4.2), then a flip."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kd_cli.data.augment import AUGMENTATIONS
from kd_cli.data.augmentations.flip import mirrored
from kd_cli.data.augmentations.operations import pick
from kd_cli.ranges import Count, Share

DOWN, RIGHT, FLIP = range(3)


@AUGMENTATIONS.register("crop_flip")
class CropFlip:
    """Black pixels are added at each side and a random window of the old size cut out; then a flip.

    Args:
        padding: pixels at each side.
        p: probability of the flip.
    """

    def __init__(self, padding: Count = 4, p: Share = 0.5) -> None:
        self.padding, self.p = padding, p

    def draw(self, size: int, shape: tuple[int, int, int], random: torch.Generator) -> Tensor:  # noqa: ARG002
        down, right, flip = torch.rand(3, size, generator=random)
        shift = [pick(each, 2 * self.padding + 1).float() - self.padding for each in (down, right)]
        return torch.stack([*shift, (flip < self.p).float()], dim=1)

    def apply(self, pixels: Tensor, table: Tensor) -> Tensor:
        return mirrored(shifted(pixels, table[:, DOWN], table[:, RIGHT], self.padding), table[:, FLIP])


def shifted(pixels: Tensor, down: Tensor, right: Tensor, padding: int) -> Tensor:
    """The window that lies `down` and `right` of the image, [B] pixels each, at most `padding`; black outside."""
    batch, height, width, channels = pixels.shape
    padded = functional.pad(pixels, (0, 0, padding, padding, padding, padding))
    image, line, pixel, _ = padded.stride()
    number = torch.arange(batch, device=pixels.device)
    corner = number * image + (down.long() + padding) * line + (right.long() + padding) * pixel
    starts = corner[:, None] + torch.arange(height, device=pixels.device) * line  # [B, H]
    # Each byte of `padded` as the start of a run as long as one line: a line is then one copy.
    run = width * channels
    runs = padded.as_strided((padded.numel() - run + 1, run), (1, 1))
    return runs.index_select(0, starts.flatten()).view(pixels.shape)
