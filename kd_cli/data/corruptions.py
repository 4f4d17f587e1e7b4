"""Common corruptions in five severities (Hendrycks and Dietterich 2019, arXiv:1903.12261), on batches of pixels.

gaussian_noise  independent normal noise on every value
gaussian_blur   a Gaussian filter, cut off at four standard deviations, edges repeated
contrast        each channel is drawn towards its own mean over the image
brightness      the value of HSV is raised: the largest channel by the strength, the others in proportion

Operations and strengths are those of the authors' program for CIFAR-10-C (hendrycks/robustness, make_cifar_c.py), made
for 32×32 colour photographs; on other images the severities mean something else. Results are rounded to whole numbers,
where the authors cut the fraction off.

Pixels are uint8 before and after, and what an image becomes is a pure function of (seed, id, corruption, severity): it
never depends on its batch. [B, H, W, C] pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from kd_cli.data.sampling import generator

STRENGTHS: Mapping[str, Sequence[float]] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation, of values 0 … 1
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1.0),  # standard deviation, pixels
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # what is left of the distance to the mean
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),  # added, of values 0 … 1
}
NAMES = tuple(STRENGTHS)
SEVERITIES = range(1, 6)


def corruption(name: str, severity: int, seed: int) -> Callable[[Tensor, Tensor], Tensor]:
    """How an evaluation sees a corrupted part: a function of pixels [B, H, W, C], uint8, and their ids [B].

    Args:
        name: one of `NAMES`.
        severity: 1 … 5.
        seed: of the noise.
    """
    strength = STRENGTHS[name][severity - 1]
    if name != "gaussian_noise":
        return lambda pixels, ids: _DETERMINISTIC[name](pixels, strength)  # noqa: ARG005
    return lambda pixels, ids: noise(pixels, ids, strength, seed, severity)


def noise(pixels: Tensor, ids: Tensor, strength: float, seed: int, severity: int) -> Tensor:
    """Normal noise; each image has a random stream of its own, another one at each severity.

    Args:
        ids: [B].
        strength: standard deviation, of values 0 … 1.
    """
    drawn = [
        torch.randn(pixels.shape[1:], generator=generator(seed, "corrupt", severity, number)) for number in ids.tolist()
    ]
    if not drawn:
        return pixels
    return _bytes(pixels.float() + (255 * strength * torch.stack(drawn)).to(pixels.device))


def blur(pixels: Tensor, strength: float) -> Tensor:
    """A Gaussian filter of standard deviation `strength`, pixels."""
    radius = int(4 * strength + 0.5)
    weights = [math.exp(-0.5 * (offset / strength) ** 2) for offset in range(-radius, radius + 1)]
    weights = [weight / sum(weights) for weight in weights]
    blurred = pixels.float()
    for dim in (1, 2):
        blurred = _filtered(blurred, weights, dim)
    return _bytes(blurred)


def contrast(pixels: Tensor, strength: float) -> Tensor:
    """Keeps the share `strength` of each pixel's distance to the mean of its channel."""
    mean = pixels.sum(dim=(1, 2), keepdim=True).float() / (pixels.shape[1] * pixels.shape[2])  # of whole numbers: exact
    distance = (pixels.float() - mean) * strength
    return _bytes(distance + mean)


def brightness(pixels: Tensor, strength: float) -> Tensor:
    """Raises the value of HSV by `strength`, of values 0 … 1; hue and saturation stay."""
    values = pixels.float()
    old = values.amax(dim=-1, keepdim=True)
    new = (old + 255 * strength).clamp(max=255)
    return _bytes(torch.where(old > 0, values / old.clamp(min=1) * new, new))  # black has no hue: it becomes grey


def _filtered(values: Tensor, weights: Sequence[float], dim: int) -> Tensor:
    """A weighted sum of shifted copies, always in one order: a convolution may add in another for other batches."""
    size = values.shape[dim]
    total = torch.zeros_like(values)
    for offset, weight in enumerate(weights, start=-(len(weights) // 2)):
        rows = torch.arange(offset, size + offset, device=values.device).clamp(0, size - 1)
        shifted = values.index_select(dim, rows) * weight
        total = total + shifted
    return total


def _bytes(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)


_DETERMINISTIC: Mapping[str, Callable[[Tensor, float], Tensor]] = {
    "gaussian_blur": blur,
    "contrast": contrast,
    "brightness": brightness,
}
