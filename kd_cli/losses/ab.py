"""Activation boundaries formed by hidden neurons: Heo et al. 2019 (AAAI), arXiv:1811.03233."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kd_cli.losses.adapters import as_maps, connector, halving, same_size
from kd_cli.losses.base import LOSSES, Features
from kd_cli.losses.common import at_least_float32
from kd_cli.ranges import NonNegative, Positive
from kd_cli.types import Batch, DataSpec, Outputs

# Of the authors' code, so that a weight of 1 is the literature's: the sum over a map's neurons is a large number.
_SCALE = 3 / 1000


def ab_loss(student_feature: Tensor, teacher_feature: Tensor, margin: float = 1.0) -> Tensor:
    """Heo et al. 2019: squared hinge that puts each neuron on the teacher's side of its activation boundary.

    It replaces the number of neurons that are active in one network only, which has no gradient. Where the teacher's
    neuron is active (> 0), the student's response shall be `margin` at least, elsewhere −margin at most. Summed over
    neurons, mean over the batch.

    Args:
        student_feature: [B, C, H, W], before the activation, as a connector made it.
        teacher_feature: [B, C, H, W], before the activation.
        margin: μ > 0.
    """
    student = at_least_float32(student_feature)
    missing = torch.where(teacher_feature > 0, margin - student, margin + student)
    return missing.clamp(min=0).square().sum() / len(student)


@LOSSES.register("ab")
class AB(Features):
    """Heo et al. 2019, arXiv:1811.03233: the student's neurons are active where the teacher's are.

    A connector (1×1 convolution, batch normalisation) gives the student's feature the teacher's channels; the larger of
    two maps is averaged to the smaller. Each tap counts half as much as the next deeper one, and the whole 3/1000, as
    in the authors' code.

    The paper transfers the boundaries first and learns from the labels afterwards. Here both are learned together from
    the start; `decay_epochs` comes closest to the paper.

    Args:
        margin: μ > 0.
        ab_weight: ≥ 0.
        taps: the student's features before the last activation of each stage, [B, C, H, W] or [B, D].
    """

    margin: Positive = 1.0
    ab_weight: NonNegative = 1.0
    taps: Sequence[str] = ("preacts",)

    def bind(self, student: Outputs, teacher: Outputs, data: DataSpec) -> None:  # noqa: ARG002
        pairs = [(as_maps(ours), as_maps(theirs)) for ours, theirs in self.pairs(student, teacher)]
        self.connectors = nn.ModuleList(connector(ours, theirs.shape[1]) for ours, theirs in pairs)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        losses = []
        for connect, (ours, theirs) in zip(self.connectors, self.pairs(student, teacher), strict=True):
            losses.append(ab_loss(*same_size(connect(as_maps(ours)), as_maps(theirs)), self.margin))
        return self.ab_weight * _SCALE * halving(losses)
