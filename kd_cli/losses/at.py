"""Attention transfer: Zagoruyko & Komodakis 2017, arXiv:1612.03928."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_cli.losses.adapters import check_maps, check_positions, same_size
from kd_cli.losses.base import LOSSES, Features
from kd_cli.losses.common import at_least_float32, unit
from kd_cli.ranges import NonNegative, Positive
from kd_cli.types import Batch, DataSpec, Outputs


def at_loss(student_feature: Tensor, teacher_feature: Tensor, power: float = 2.0) -> Tensor:
    """Mean squared distance of two attention maps; the larger one is pooled to the smaller.

    Args:
        student_feature: [B, C_s, H_s, W_s].
        teacher_feature: [B, C_t, H_t, W_t]; no gradient flows into it.
        power: exponent of the activations, > 0.

    Returns:
        Scalar, mean over batch and positions. (Eq. 2 of the paper takes the 2-norm of the difference; the authors'
        code, followed here, its mean square.)
    """
    check_maps(student_feature, teacher_feature)
    ours, theirs = same_size(at_least_float32(student_feature), at_least_float32(teacher_feature.detach()))
    return F.mse_loss(attention_map(ours, power), attention_map(theirs, power))


def attention_map(feature: Tensor, power: float) -> Tensor:
    """Sum of |activation|^power over the channels of [B, C, H, W], as vectors [B, H · W] of length 1."""
    if power == 2:  # the usual one, and a third of the work
        return unit(feature.square().sum(dim=1).flatten(1))
    magnitudes = feature.abs()
    idle = magnitudes == 0  # below power 1 the slope at 0 is infinite, and behind a ReLU most activations are 0
    powers = torch.where(idle, 0, torch.where(idle, 1, magnitudes).pow(power))
    return unit(powers.sum(dim=1).flatten(1))


@LOSSES.register("at")
class AT(Features):
    """Zagoruyko & Komodakis 2017, arXiv:1612.03928: the student looks where its teacher looks.

    Summed over the stages. Networks of any channel counts and sizes are possible. Maps that are compared at one pixel
    add nothing: an attention map of length 1 is 1 there.

    Args:
        power: exponent of the activations, > 0.
        at_weight: ≥ 0.
        taps: the student's feature maps.
    """

    power: Positive = 2.0
    at_weight: NonNegative = 1000.0
    taps: Sequence[str] = ("stages",)

    def bind(self, student: Outputs, teacher: Outputs, data: DataSpec) -> None:  # noqa: ARG002
        check_positions(self.pairs(student, teacher))

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        return self.at_weight * self.over_pairs(at_loss, student, teacher, power=self.power)
