"""mixup (Zhang et al. 2017, arXiv:1710.09412): an image is a weighted mean of two, and so is its label."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kd_cli.data.augment import AUGMENTATIONS
from kd_cli.ranges import Positive, Share


@AUGMENTATIONS.register("mixup")
class Mixup:
    """λ · image + (1 − λ) · another of its batch, λ drawn from Beta(alpha, alpha) for each image.

    Args:
        alpha: of the Beta distribution; 1: every share is as likely.
        p: probability that an image is mixed.
    """

    def __init__(self, alpha: Positive = 0.2, p: Share = 1.0) -> None:
        self.alpha, self.p = alpha, p

    def draw(self, size: int, shape: tuple[int, int, int], random: torch.Generator) -> Tensor:  # noqa: ARG002
        share = beta(self.alpha, size, random)
        share[torch.rand(size, generator=random) >= self.p] = 1
        return share[:, None]

    def unmixed(self) -> Sequence[float]:
        return (1.0,)

    def mix(self, images: Tensor, others: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        share = table[:, 0, None, None, None]
        # Each step is rounded once: a fused kernel may round the tail of a batch otherwise than its body.
        return (images * share).add_(others * (1 - share)), table[:, 0]


def beta(alpha: float, size: int, random: torch.Generator) -> Tensor:
    """Numbers of Beta(alpha, alpha): [size]."""
    gammas = torch._standard_gamma(torch.full((2, size), alpha, dtype=torch.float64), generator=random)
    first, total = gammas[0], gammas.sum(dim=0)
    # Two numbers that are both too small to be told from 0: all of the one or of the other.
    return torch.where(total > 0, first / total, (torch.rand(size, generator=random) < 0.5).double()).float()
