"""TrivialAugment (Müller and Hutter 2021, arXiv:2103.10158): one operation of random strength, and nothing to tune."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from kd_cli.data.augment import AUGMENTATIONS
from kd_cli.data.augmentations.operations import names_for, pick
from kd_cli.data.augmentations.randaugment import magnitudes, one_after_another

# operation → magnitude at strength 1, whether its sign is drawn: the paper's wide ranges. Images are moved by 32 pixels
# there, of 224.
RANGES: Mapping[str, tuple[float, bool]] = {
    "identity": (0.0, False),
    "shear_x": (0.99, True),
    "shear_y": (0.99, True),
    "translate_x": (32 / 224, True),
    "translate_y": (32 / 224, True),
    "rotate": (math.radians(135), True),
    "brightness": (0.99, True),
    "saturation": (0.99, True),
    "contrast": (0.99, True),
    "sharpness": (0.99, True),
    "posterize": (6.0, False),
    "solarize": (1.0, False),
    "autocontrast": (0.0, False),
    "equalize": (0.0, False),
}
_LEVELS = 31


@AUGMENTATIONS.register("trivialaugment")
class TrivialAugment:
    """For each image one operation and its strength, both drawn evenly."""

    def draw(self, size: int, shape: tuple[int, int, int], random: torch.Generator) -> Tensor:
        names = names_for(shape[-1], list(RANGES))
        choice, level, sign = torch.rand(3, size, generator=random)
        number, strength = pick(choice, len(names)), pick(level, _LEVELS) / (_LEVELS - 1)
        return torch.stack([number.float(), magnitudes(names, RANGES, number, strength, sign < 0.5)], dim=1)

    def apply(self, pixels: Tensor, table: Tensor) -> Tensor:
        return one_after_another(pixels, table, names_for(pixels.shape[-1], list(RANGES)))
