"""Random brightness, contrast, saturation and hue, in a random order, as torchvision's ColorJitter."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_cli.data.augment import AUGMENTATIONS
from kd_cli.data.augmentations.operations import chosen_parameters, names_for
from kd_cli.data.augmentations.steps import COLOURS, HUE_STEP, operate
from kd_cli.ranges import NonNegative, Share, require


@AUGMENTATIONS.register("color_jitter")
class ColorJitter:
    """Each factor is drawn evenly from 1 − option … 1 + option (not below 0), the hue from −option … option.

    Args:
        brightness, contrast, saturation: how far a factor may be from 1.
        hue: turns, at most 0.5.
        p: probability that an image is changed at all.

    Raises:
        ValueError: a hue above 0.5.
    """

    def __init__(
        self,
        brightness: NonNegative = 0.4,
        contrast: NonNegative = 0.4,
        saturation: NonNegative = 0.4,
        hue: NonNegative = 0.0,
        p: Share = 1.0,
    ) -> None:
        given = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
        given["hue"] = require("hue", hue, low=0.0, high=0.5)
        self._limits = {name: limit for name, limit in given.items() if limit}
        self.p = p

    def draw(self, size: int, shape: tuple[int, int, int], random: torch.Generator) -> Tensor:
        """For each place in the order which operation it is and its magnitude: [N, 2 × operations]."""
        names = self._names(shape)
        uniform = torch.rand(size, 2 * len(names) + 1, generator=random)
        magnitudes = torch.empty(size, len(names))
        for number, name in enumerate(names):
            limit = self._limits[name]
            low = -limit if name == "hue" else max(-limit, -1.0)
            magnitudes[:, number] = low + (limit - low) * uniform[:, number]
        magnitudes[uniform[:, -1] >= self.p] = 0
        order = uniform[:, len(names) : -1].argsort(dim=1)
        return torch.cat([order.float(), magnitudes.gather(1, order)], dim=1)

    def apply(self, pixels: Tensor, table: Tensor) -> Tensor:
        names = self._names(pixels.shape[1:])
        for place in range(len(names)):
            number, magnitude = table[:, place], table[:, len(names) + place]
            rows = chosen_parameters(names, number, magnitude, pixels.shape[1:3])
            pixels = operate(pixels, rows, (*COLOURS, HUE_STEP))
        return pixels

    def _names(self, shape: tuple[int, ...]) -> list[str]:
        return names_for(shape[-1], list(self._limits))
