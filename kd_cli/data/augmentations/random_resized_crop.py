"""A random window of the image, resized (Szegedy et al. 2015, arXiv:1409.4842, §6): the field's crop of photographs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, TypeVar

import torch
from torch import Tensor

from kd_cli.data.augment import AUGMENTATIONS
from kd_cli.data.resize import rounded
from kd_cli.ranges import Rule

Number = TypeVar("Number", float, Tensor)
_TRIES = 10  # torchvision's
_SHARES = Rule("two shares of the area, 0 < least ≤ largest ≤ 1", lambda each: 0 < each[0] <= each[1] <= 1)
_RATIOS = Rule("two ratios, 0 < least ≤ largest", lambda each: 0 < each[0] <= each[1] < math.inf)


@AUGMENTATIONS.register("random_resized_crop")
class RandomResizedCrop:
    """A window of random area, shape and place, resized to the images' size.

    Of image files that are resized it is cut out of the whole image; otherwise of the image as the data set has it.

    Args:
        scale: least and largest area, as shares of the image's.
        ratio: least and largest width / height.
    """

    def __init__(
        self,
        scale: Annotated[tuple[float, float], _SHARES] = (0.08, 1.0),
        ratio: Annotated[tuple[float, float], _RATIOS] = (3 / 4, 4 / 3),
    ) -> None:
        self.scale, self.ratio = scale, ratio

    def box(self, height: int, width: int, random: torch.Generator) -> tuple[int, int, int, int]:
        """Top, left, height and width of a window, pixels: what `draw` gives for one image, in less time."""
        *uniform, y, x = torch.rand(2 * _TRIES + 2, generator=random, dtype=torch.float64).tolist()
        low, high = map(math.log, self.ratio)
        for share, place in zip(uniform[:_TRIES], uniform[_TRIES:], strict=True):
            area = height * width * _between(share, self.scale)
            ratio = math.exp(_between(place, (low, high)))
            wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < wide <= width and 0 < tall <= height:
                return _drawn(y, height - tall), _drawn(x, width - wide), tall, wide
        tall, wide = self._middle(height, width)
        return (height - tall) // 2, (width - wide) // 2, tall, wide

    def draw(self, size: int, shape: tuple[int, int, int], random: torch.Generator) -> Tensor:
        """Top, left, height and width of each window: [N, 4]. Each has ten tries, and the middle where none fits."""
        height, width, _ = shape
        uniform = torch.rand(size, 2 * _TRIES + 2, generator=random, dtype=torch.float64)
        area = height * width * _between(uniform[:, :_TRIES], self.scale)
        ratio = _between(uniform[:, _TRIES : 2 * _TRIES], [math.log(each) for each in self.ratio]).exp()
        wide, tall = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)
        number = fits.int().argmax(dim=1, keepdim=True)  # the first
        whole = self._middle(height, width)
        any_fits = fits.any(dim=1)
        wide = torch.where(any_fits, wide.gather(1, number)[:, 0], whole[1])
        tall = torch.where(any_fits, tall.gather(1, number)[:, 0], whole[0])
        free = torch.stack([height - tall, width - wide], dim=1)
        place = (uniform[:, 2 * _TRIES :] * (free + 1)).floor().minimum(free)
        place = torch.where(any_fits[:, None], place, (free / 2).floor())
        return torch.cat([place, tall[:, None], wide[:, None]], dim=1).float()

    def _middle(self, height: int, width: int) -> tuple[int, int]:
        low, high = self.ratio
        if width / height < low:
            return round(width / low), width
        return (height, round(height * high)) if width / height > high else (height, width)

    def apply(self, pixels: Tensor, table: Tensor) -> Tensor:
        """Bilinear between the pixels of each window, which is never larger than the image."""
        _, height, width, _ = pixels.shape
        top, left, tall, wide = table.unbind(dim=1)
        rows, columns = _places(top, tall, height), _places(left, wide, width)
        stretched = _between_lines(pixels, *rows, dim=1)
        return rounded(_between_lines(stretched, *columns, dim=2))


def _between(uniform: Number, limits: Sequence[float]) -> Number:
    low, high = limits
    return low + (high - low) * uniform


def _drawn(uniform: float, free: int) -> int:
    return min(int(uniform * (free + 1)), free)


def _places(first: Tensor, length: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each of `size` output lines the two lines that it lies between, and its share of the second: [B, size]."""
    # By a tensor: dividing by a number, a GPU multiplies with its rounded inverse, and rounds otherwise than the CPU.
    scale = length / torch.full_like(length, size)
    middle = (torch.arange(size, device=first.device) + 0.5) * scale[:, None] - 0.5
    place = middle.clamp(min=0).minimum(length[:, None] - 1)
    before = place.floor()
    after = (before + 1).minimum(length[:, None] - 1)
    return (before + first[:, None]).long(), (after + first[:, None]).long(), place - before


def _between_lines(pixels: Tensor, before: Tensor, after: Tensor, share: Tensor, dim: int) -> Tensor:
    shape = [len(pixels), 1, 1, 1]
    shape[dim] = -1
    wanted = [*pixels.shape]
    one, other = (
        pixels.gather(dim, each.view(shape).expand(*wanted[:dim], -1, *wanted[dim + 1 :])).float()
        for each in (before, after)
    )
    return one + (other - one) * share.view(shape)
