"""Correlation congruence: Peng et al. 2019, arXiv:1904.01802."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_cli.losses.adapters import projection
from kd_cli.losses.base import LOSSES, Distiller
from kd_cli.losses.common import at_least_float32, inner_products, unit
from kd_cli.ranges import require
from kd_cli.types import Batch, DataSpec, Outputs


def cc_loss(student: Tensor, teacher: Tensor, gamma: float = 0.4, order: int = 2) -> Tensor:
    """Peng et al. 2019: squared difference of the two networks' correlation matrices, mean over B² pairs of images.

    (Much used code by the name of this method multiplies the |student − teacher| of neighbours in the batch instead.
    It depends on the order of the batch, and is not what the paper describes. The usual weight, 0.02, goes with that
    code; the mean here is far below 1, so that a larger one may be needed for an effect.)

    Args:
        student: [B, D_s].
        teacher: [B, D_t]; no gradient flows into it.
        gamma: of the kernel, > 0.
        order: of its Taylor expansion, ≥ 1.
    """
    with torch.no_grad():
        wanted = correlation(teacher, gamma, order)
    return F.mse_loss(correlation(student, gamma, order), wanted)


def correlation(embeddings: Tensor, gamma: float, order: int) -> Tensor:
    """Gaussian kernel [B, B] of embeddings [B, D], by the first terms of its Taylor series.

    For vectors of length 1 (longer ones are shortened) exp(−γ‖x − y‖²) = exp(−2γ) · exp(2γ x·y), and the second factor
    is Σ_p (2γ x·y)^p / p!, here for p = 0 … order.
    """
    directions = unit(at_least_float32(embeddings))
    exponents = 2 * gamma * inner_products(directions, directions)
    series = torch.ones_like(exponents)
    for power in range(order, 0, -1):  # Horner's scheme
        series = 1 + series * exponents / power
    return math.exp(-2 * gamma) * series


@LOSSES.register("cc")
class CC(Distiller):
    """Peng et al. 2019, arXiv:1904.01802: the student's correlations between images are those of its teacher.

    A learned projection gives the student's embedding the width of the teacher's. The teacher's is left as it is: if
    both were projected, they could agree on a constant.

    Args:
        gamma: of the Gaussian kernel exp(−γ‖x − y‖²), > 0.
        order: of its Taylor expansion, ≥ 1.
        cc_weight: ≥ 0.
        taps: the student's embeddings.
        teacher_taps: the teacher's; null: the same names.

    Raises:
        ValueError: a number outside its range.
    """

    def __init__(
        self,
        gamma: float = 0.4,
        order: int = 2,
        cc_weight: float = 0.02,
        taps: Sequence[str] = ("embedding",),
        teacher_taps: Sequence[str] | None = None,
    ) -> None:
        super().__init__(taps, teacher_taps)
        self.gamma = require("gamma", gamma, above=0.0)
        require("order", order, low=1)
        self.order = order
        self.cc_weight = require("cc_weight", cc_weight, low=0.0)

    def bind(self, student: Outputs, teacher: Outputs, data: DataSpec) -> None:  # noqa: ARG002
        pairs = [(ours.flatten(1), theirs.flatten(1)) for ours, theirs in self.pairs(student, teacher)]
        self.projections = nn.ModuleList(projection(ours, theirs.shape[1]) for ours, theirs in pairs)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        terms = [
            cc_loss(project(at_least_float32(ours).flatten(1)), theirs.flatten(1), self.gamma, self.order)
            for project, (ours, theirs) in zip(self.projections, self.pairs(student, teacher), strict=True)
        ]
        return self.cc_weight * torch.stack(terms).sum()
