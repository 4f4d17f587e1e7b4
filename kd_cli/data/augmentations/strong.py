"""A strong augmentation for small images, in the manner of RandAugment (Cubuk et al. 2019, arXiv:1909.13719)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kd_cli.data.augment import AUGMENTATIONS
from kd_cli.data.augmentations.crop_flip import CropFlip
from kd_cli.data.augmentations.operations import IDENTITY, names_for, parameters, pick
from kd_cli.data.augmentations.steps import COLOURS, CUT_OUT, WARP, operate

FIRST = 3  # column: before it are those of the crop and the flip
NUM_OPERATIONS = 2  # RandAugment's N
# operation → its magnitude at strength 1. The ranges are RandAugment's; cutout: up to half the image, 16 pixels of 32
LARGEST = {
    **dict.fromkeys(("brightness", "contrast", "saturation"), 0.9),
    "rotate": math.radians(30),
    **dict.fromkeys(("shear_x", "shear_y", "translate_x", "translate_y"), 0.3),
    "cutout": 0.25,
}


@AUGMENTATIONS.register("strong")
class Strong:
    """crop_flip, then two random operations (with replacement) of random signed strength.

    RandAugment's strengths are one number for all, here each is drawn; one operation is Cutout (DeVries and Taylor
    2017, arXiv:1708.04552).
    """

    def __init__(self) -> None:
        self._crop_flip = CropFlip()

    def draw(self, size: int, shape: tuple[int, int, int], random: torch.Generator) -> Tensor:
        columns = [self._crop_flip.draw(size, shape, random)]
        columns += [_draw_operation(size, shape[-1], random) for _ in range(NUM_OPERATIONS)]
        return torch.cat(columns, dim=1)

    def apply(self, pixels: Tensor, table: Tensor) -> Tensor:
        pixels = self._crop_flip.apply(pixels, table[:, :FIRST])
        for columns in table[:, FIRST:].split(len(IDENTITY), dim=1):
            pixels = operate(pixels, columns, (*COLOURS, WARP, CUT_OUT))
        return pixels


def _draw_operation(size: int, channels: int, random: torch.Generator) -> Tensor:
    """For each image one operation's parameters: [N, columns]."""
    names = names_for(channels, list(LARGEST))
    choice, strength, *centre = torch.rand(4, size, generator=random)
    number, strength, middle = pick(choice, len(names)), 2 * strength - 1, torch.stack(centre, dim=1)
    table = torch.empty(size, len(IDENTITY))
    for index, name in enumerate(names):
        chosen = number == index
        table[chosen] = parameters(name, LARGEST[name] * strength[chosen], middle[chosen])
    return table
