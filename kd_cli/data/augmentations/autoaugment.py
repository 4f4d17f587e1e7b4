"""AutoAugment (Cubuk et al. 2018, arXiv:1805.09501): one of the 25 pairs of operations that a search has found."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kd_cli.data.augment import AUGMENTATIONS
from kd_cli.data.augmentations.operations import COLOURED, pick
from kd_cli.data.augmentations.randaugment import RANGES, magnitudes, one_after_another

# The paper's tables 7 (CIFAR-10) and 9 (ImageNet). A line is a pair: operation, its probability in tenths, its strength
# in ninths; `-` where it has none.
_POLICIES = {
    "imagenet": """
    posterize 4 8  rotate 6 9
    solarize 6 5  autocontrast 6 -
    equalize 8 -  equalize 6 -
    posterize 6 7  posterize 6 6
    equalize 4 -  solarize 2 4
    equalize 4 -  rotate 8 8
    solarize 6 3  equalize 6 -
    posterize 8 5  equalize 10 -
    rotate 2 3  solarize 6 8
    equalize 6 -  posterize 4 6
    rotate 8 8  saturation 4 0
    rotate 4 9  equalize 6 -
    equalize 0 -  equalize 8 -
    invert 6 -  equalize 10 -
    saturation 6 4  contrast 10 8
    rotate 8 8  saturation 10 2
    saturation 8 8  solarize 8 7
    sharpness 4 7  invert 6 -
    shear_x 6 5  equalize 10 -
    saturation 4 0  equalize 6 -
    equalize 4 -  solarize 2 4
    solarize 6 5  autocontrast 6 -
    invert 6 -  equalize 10 -
    saturation 6 4  contrast 10 8
    equalize 8 -  equalize 6 -
""",
    "cifar10": """
    invert 1 -  contrast 2 6
    rotate 7 2  translate_x 3 9
    sharpness 8 1  sharpness 9 3
    shear_y 5 8  translate_y 7 9
    autocontrast 5 -  equalize 9 -
    shear_y 2 7  posterize 3 7
    saturation 4 3  brightness 6 7
    sharpness 3 9  brightness 7 9
    equalize 6 -  equalize 5 -
    contrast 6 7  sharpness 6 5
    saturation 7 7  translate_x 5 8
    equalize 3 -  autocontrast 4 -
    translate_y 4 3  sharpness 2 6
    brightness 9 6  saturation 2 8
    solarize 5 2  invert 0 -
    equalize 2 -  autocontrast 6 -
    equalize 2 -  equalize 6 -
    saturation 9 9  equalize 6 -
    autocontrast 8 -  solarize 2 8
    brightness 1 3  saturation 7 0
    solarize 4 5  autocontrast 9 -
    translate_y 9 9  translate_y 7 9
    autocontrast 9 -  solarize 8 3
    equalize 8 -  invert 1 -
    translate_y 7 9  autocontrast 9 -
""",
}
_RANGES = {**RANGES, "invert": (0.0, False)}
_NAMES = list(_RANGES)


@AUGMENTATIONS.register("autoaugment")
class AutoAugment:
    """For each image a pair of operations, drawn evenly; each of the two is done with its own probability.

    Args:
        policy: on which images the pairs were found.
    """

    def __init__(self, policy: Literal["imagenet", "cifar10"] = "imagenet") -> None:
        self._pairs = pairs(policy)  # [25, 2, 3]

    def draw(self, size: int, shape: tuple[int, int, int], random: torch.Generator) -> Tensor:
        uniform = torch.rand(size, 5, generator=random)
        drawn = self._pairs[pick(uniform[:, 0], len(self._pairs))]  # [N, 2, 3]
        done = (uniform[:, 1:3] < drawn[..., 1]) & self._wanted(drawn[..., 0], shape)
        number = torch.where(done, drawn[..., 0], _NAMES.index("identity")).long()
        magnitude = magnitudes(_NAMES, _RANGES, number, drawn[..., 2], uniform[:, 3:] < 0.5)
        return torch.cat([number.float(), magnitude], dim=1)

    def apply(self, pixels: Tensor, table: Tensor) -> Tensor:
        return one_after_another(pixels, table, _NAMES)

    def _wanted(self, number: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """Grey images have no colours to change."""
        coloured = [_NAMES.index(name) for name in _NAMES if name in COLOURED]
        return (
            torch.ones_like(number, dtype=torch.bool)
            if shape[-1] == 3
            else ~torch.isin(number, torch.tensor(coloured, dtype=number.dtype))
        )


def pairs(policy: str) -> Tensor:
    """[25, 2, 3]: of each operation its number, its probability and its strength 0 … 1."""
    words = _POLICIES[policy].split()
    rows = [
        [_NAMES.index(name), int(chance) / 10, 0.0 if level == "-" else int(level) / 9]
        for name, chance, level in zip(words[::3], words[1::3], words[2::3], strict=True)
    ]
    return torch.tensor(rows).view(-1, 2, 3)
