"""Correlation congruence: Peng et al. 2019, arXiv:1904.01802."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_cli.losses.base import LOSSES, Features
from kd_cli.losses.common import at_least_float32, inner_products, unit
from kd_cli.ranges import Count, NonNegative, Positive
from kd_cli.types import Batch, Outputs


def cc_loss(student: Tensor, teacher: Tensor, gamma: float = 0.4, order: int = 2) -> Tensor:
    """Peng et al. 2019: squared difference of the two networks' correlation matrices, mean over B² pairs of images.

    (The code that the authors gave to those of CRD, from where most comparisons have it, multiplies the
    |student − teacher| of neighbours in the batch instead. It depends on the order of the batch, and is not what the
    paper describes.)

    Args:
        student: [B, ...]; everything but the batch is one vector.
        teacher: [B, ...], of any other width; no gradient flows into it.
        gamma: of the kernel, > 0.
        order: of its Taylor expansion, ≥ 1.
    """
    with torch.no_grad():
        wanted = correlation(teacher, gamma, order)
    return F.mse_loss(correlation(student, gamma, order), wanted)


def correlation(embeddings: Tensor, gamma: float, order: int) -> Tensor:
    """Gaussian kernel [B, B] of embeddings [B, ...], by the first terms of its Taylor series.

    For vectors of length 1 (longer ones are shortened) exp(−γ‖x − y‖²) = exp(−2γ) · exp(2γ x·y), and the second factor
    is Σ_p (2γ x·y)^p / p!, here for p = 0 … order.
    """
    directions = unit(at_least_float32(embeddings).flatten(1))
    exponents = 2 * gamma * inner_products(directions, directions)
    series = torch.ones_like(exponents)
    for power in range(order, 0, -1):  # Horner's scheme
        series = 1 + series * exponents / power
    return math.exp(-2 * gamma) * series


@LOSSES.register("cc")
class CC(Features):
    """Peng et al. 2019, arXiv:1904.01802: the student's correlations between images are those of its teacher.

    The mean square is small: 0.001 to 0.01 between a student that has learned little and its teacher. The default
    weight is that of the public Knowledge-Distillation-Zoo, which has the loss in this form, with this γ and this
    order; with it the term begins at 0.1 to 1. The 0.02 of most tables goes with the other form (see `cc_loss`) and
    would be almost nothing here.

    Args:
        gamma: of the Gaussian kernel exp(−γ‖x − y‖²), > 0.
        order: of its Taylor expansion, ≥ 1.
        cc_weight: ≥ 0.
        taps: the student's embeddings.
    """

    gamma: Positive = 0.4
    order: Count = 2
    cc_weight: NonNegative = 100.0
    taps: Sequence[str] = ("embedding",)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        return self.cc_weight * self.over_pairs(cc_loss, student, teacher, gamma=self.gamma, order=self.order)
