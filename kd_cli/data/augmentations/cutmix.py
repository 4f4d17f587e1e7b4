"""CutMix (Yun et al. 2019, arXiv:1905.04899): a rectangle of another image is pasted in, labels share by area."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kd_cli.data.augment import AUGMENTATIONS
from kd_cli.data.augmentations.erasing import inside
from kd_cli.data.augmentations.mixup import beta
from kd_cli.ranges import Positive, Share


@AUGMENTATIONS.register("cutmix")
class CutMix:
    """The rectangle has the share 1 − λ of the area before it is cut off at the image's edge; its real area counts.

    Args:
        alpha: λ is of Beta(alpha, alpha), drawn for each image.
        p: probability that an image is mixed.
    """

    def __init__(self, alpha: Positive = 1.0, p: Share = 1.0) -> None:
        self.alpha, self.p = alpha, p

    def draw(self, size: int, shape: tuple[int, int, int], random: torch.Generator) -> Tensor:
        """Top, left, height and width of each rectangle, pixels."""
        height, width, _ = shape
        side = (1 - beta(self.alpha, size, random)).sqrt()
        y, x, chosen = torch.rand(3, size, generator=random)
        edges = []
        for middle, length in ((y, height), (x, width)):
            half = (side * length / 2).floor()
            centre = (middle * length).floor()
            edges.append(((centre - half).clamp(min=0), (centre + half).clamp(max=length)))
        (top, bottom), (left, right) = edges
        table = torch.stack([top, left, bottom - top, right - left], dim=1)
        table[chosen >= self.p] = 0
        return table

    def unmixed(self) -> Sequence[float]:
        return (0.0, 0.0, 0.0, 0.0)

    def mix(self, images: Tensor, others: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        height, width = images.shape[2:]
        pasted = inside(table, height, width)[:, None]
        return torch.where(pasted, others, images), 1 - table[:, 2] * table[:, 3] / (height * width)
