"""Smooth random patterns, one per class, mixed and under noise: instant, learnable, not trivial. Made by kd."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional

from kd_cli.data.base import DATASETS, Raw, checked_by
from kd_cli.data.sampling import generator
from kd_cli.ranges import NonNegative, within


def _check(*, num_classes: int, num_train: int, num_test: int, channels: int, **_: Any) -> None:
    for option, value in (("num_train", num_train), ("num_test", num_test)):
        if value < num_classes:
            raise ValueError(f"{option}={value} leaves classes empty; type dataset.{option}={10 * num_classes}")
    if channels not in (1, 3):
        raise ValueError(f"channels={channels} must be 1 or 3; type dataset.channels=3")


@DATASETS.register("synthetic")
@checked_by(_check)
def synthetic(
    num_classes: Annotated[int, within(low=2)] = 10,
    num_train: int = 1000,
    num_test: int = 500,
    image_size: Annotated[int, within(low=4)] = 16,
    channels: int = 3,
    noise: NonNegative = 1.0,
    seed: int = 0,
) -> Raw:
    """A made-up data set: an image is its class's pattern, a share of another's, and noise.

    Args:
        num_classes: K; labels go round, so that classes are balanced.
        image_size: H = W, pixels, ≥ 4.
        channels: 1 or 3.
        noise: strength of what hides a pattern, ≥ 0: up to the whole of another class's, and Gaussian noise as strong
            as the patterns themselves.
        seed: of patterns and noise.
    """
    random = generator(seed, "synthetic")
    coarse = torch.randn(num_classes, channels, 4, 4, generator=random)
    patterns = functional.interpolate(coarse, size=(image_size, image_size), mode="bilinear", align_corners=True)

    def sample(size: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(size) % num_classes
        others = (labels + torch.randint(1, num_classes, (size,), generator=random)) % num_classes
        share = torch.rand(size, 1, 1, 1, generator=random)  # of a wrong pattern, so that classes are alike
        hiding = share * patterns[others] + torch.randn(size, *patterns.shape[1:], generator=random)
        values = patterns[labels] + noise * hiding
        pixels = (128 + 40 * values).round().clamp(0, 255).to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous(), labels

    names = tuple(f"pattern {label}" for label in range(num_classes))
    return Raw(*sample(num_train), *sample(num_test), names)
