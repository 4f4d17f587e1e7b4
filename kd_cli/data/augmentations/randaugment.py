"""RandAugment (Cubuk et al. 2019, arXiv:1909.13719)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from torch import Tensor

from kd_cli.data.augment import AUGMENTATIONS
from kd_cli.data.augmentations.operations import chosen_parameters, names_for, pick
from kd_cli.data.augmentations.steps import operate
from kd_cli.ranges import Count, within

# operation → magnitude at strength 1, whether its sign is drawn: the ranges of AutoAugment (Cubuk et al. 2018,
# arXiv:1805.09501, table 6), as its ImageNet programs have them.
RANGES: Mapping[str, tuple[float, bool]] = {
    "identity": (0.0, False),
    "shear_x": (0.3, True),
    "shear_y": (0.3, True),
    "translate_x": (150 / 331, True),
    "translate_y": (150 / 331, True),
    "rotate": (math.radians(30), True),
    "brightness": (0.9, True),
    "saturation": (0.9, True),
    "contrast": (0.9, True),
    "sharpness": (0.9, True),
    "posterize": (4.0, False),
    "solarize": (1.0, False),
    "autocontrast": (0.0, False),
    "equalize": (0.0, False),
}
_Level = Annotated[float, within(low=0.0, high=10.0)]


@AUGMENTATIONS.register("randaugment")
class RandAugment:
    """`n` operations for each image, drawn evenly with replacement, all of one strength.

    Args:
        n: operations.
        m: strength, 0 … 10, as in the paper's program and in timm; torchvision's magnitude 9 (of 30) is 3.
    """

    def __init__(self, n: Count = 2, m: _Level = 9.0) -> None:
        self.n, self.m = n, m

    def draw(self, size: int, shape: tuple[int, int, int], random: torch.Generator) -> Tensor:
        names = names_for(shape[-1], list(RANGES))
        uniform = torch.rand(size, 2 * self.n, generator=random)
        number = pick(uniform[:, : self.n], len(names))
        strength = torch.full((size, self.n), self.m / 10)
        magnitude = magnitudes(names, RANGES, number, strength, uniform[:, self.n :] < 0.5)
        return torch.cat([number.float(), magnitude], dim=1)

    def apply(self, pixels: Tensor, table: Tensor) -> Tensor:
        return one_after_another(pixels, table, names_for(pixels.shape[-1], list(RANGES)))


def magnitudes(
    names: Sequence[str],
    ranges: Mapping[str, tuple[float, bool]],
    number: Tensor,
    strength: Tensor,
    negative: Tensor,
) -> Tensor:
    """Strengths 0 … 1 of operations by their numbers, in the operations' units; all of one shape.

    Args:
        ranges: operation → its magnitude at strength 1, and whether `negative` says its sign.
    """
    largest, signed = (torch.tensor([ranges[name][each] for name in names]) for each in (0, 1))
    magnitude = largest[number] * strength
    magnitude = torch.where(signed.bool()[number] & negative, -magnitude, magnitude)
    for index, name in enumerate(names):
        if name == "solarize":  # the brightest pixels first
            magnitude = torch.where(number == index, 255 * (1 - magnitude), magnitude)
    return magnitude


def one_after_another(pixels: Tensor, table: Tensor, names: Sequence[str]) -> Tensor:
    """Operations by their numbers, the first half of the columns, and magnitudes, the second."""
    numbers, strengths = table.chunk(2, dim=1)
    for number, magnitude in zip(numbers.unbind(dim=1), strengths.unbind(dim=1), strict=True):
        pixels = operate(pixels, chosen_parameters(names, number, magnitude, pixels.shape[1:3]))
    return pixels
