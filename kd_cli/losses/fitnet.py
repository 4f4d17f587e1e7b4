"""Hints: Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", arXiv:1412.6550."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_cli.losses.adapters import check_same_kind, projection, same_size
from kd_cli.losses.base import LOSSES, Features
from kd_cli.losses.common import at_least_float32
from kd_cli.ranges import NonNegative
from kd_cli.types import Batch, DataSpec, Outputs


def fitnet_loss(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    """Romero et al. 2015, eq. 3: squared difference of the regressed student feature and the teacher's hint.

    Args:
        student_feature: [B, C, H, W] or [B, D], behind the regressor.
        teacher_feature: of the same shape; no gradient flows into it.

    Returns:
        Scalar, mean over batch and elements. (The paper has half the sum over the elements; the mean is what the usual
        weight is made for.)
    """
    if student_feature.shape != teacher_feature.shape:
        shapes = f"{list(student_feature.shape)} and {list(teacher_feature.shape)}"
        raise ValueError(f"taps: the regressed feature and the hint must have one shape, not {shapes}")
    return F.mse_loss(at_least_float32(student_feature), at_least_float32(teacher_feature.detach()))


@LOSSES.register("fitnet")
class FitNet(Features):
    """Romero et al. 2015, arXiv:1412.6550: a middle layer of the student predicts one of the teacher.

    The regressor is a learned 1×1 convolution (of vectors a linear layer) from the student's channels to the teacher's,
    and the larger map is averaged to the size of the smaller. (The paper's regressor is a convolution without padding
    that is as wide as the sizes differ, and its hints are a training phase of their own, before the distillation; here
    both are learned together, as in the usual comparisons, whose regressor has batch normalisation and a ReLU besides.)

    Args:
        fitnet_weight: ≥ 0.
        taps: the student's guided layers.
        teacher_taps: the teacher's hint layers; null: the same names.
    """

    fitnet_weight: NonNegative = 100.0
    taps: Sequence[str] = ("stage-2",)

    def bind(self, student: Outputs, teacher: Outputs, data: DataSpec) -> None:  # noqa: ARG002
        pairs = self.pairs(student, teacher)
        check_same_kind(pairs)
        self.regressors = nn.ModuleList(projection(ours, theirs.shape[1]) for ours, theirs in pairs)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        pairs = [same_size(at_least_float32(ours), theirs) for ours, theirs in self.pairs(student, teacher)]
        terms = [
            fitnet_loss(regress(ours), theirs) for regress, (ours, theirs) in zip(self.regressors, pairs, strict=True)
        ]
        return self.fitnet_weight * torch.stack(terms).sum()
