"""Flow of solution procedure: Yim et al. 2017, "A Gift from Knowledge Distillation", CVPR 2017."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_cli.losses.adapters import Stages, check_channels, same_size
from kd_cli.losses.base import LOSSES
from kd_cli.losses.common import at_least_float32, inner_products
from kd_cli.ranges import NonNegative
from kd_cli.types import Batch, Outputs


def fsp_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Yim et al. 2017, eq. 2: squared difference of the flow matrices, summed over successive stages.

    Args:
        student_maps: two or more [B, C, H, W], from shallow to deep.
        teacher_maps: as many, stage by stage of the student's channel counts and of any size; no gradient flows into
            them.

    Returns:
        Scalar, of each pair of stages the mean over batch and entries of the matrix. (The paper sums over the entries;
        the mean is what the usual weight is made for.)
    """
    check_channels(student_maps, teacher_maps)
    flows = zip(pairwise(student_maps), pairwise(teacher_maps), strict=True)
    return torch.stack([F.mse_loss(flow(*ours), flow(*theirs).detach()) for ours, theirs in flows]).sum()


def flow(shallow: Tensor, deep: Tensor) -> Tensor:
    """Yim et al. 2017, eq. 1: inner products [B, C_1, C_2] of the channels of two stages, divided by the positions.

    The larger map is averaged to the size of the smaller. (The paper takes maxima.)
    """
    first, second = same_size(at_least_float32(shallow), at_least_float32(deep))
    return inner_products(first.flatten(2), second.flatten(2)) / first[0, 0].numel()


@LOSSES.register("fsp")
class FSP(Stages):
    """Yim et al. 2017 (CVPR): from one stage to the next the student's features change as the teacher's do.

    Where a stage has not the teacher's channels, a learned 1×1 convolution gives them to it; sizes need not agree. (In
    the paper the networks have the same channels, and the matrices are learned in a phase before the labels.)

    Args:
        fsp_weight: ≥ 0.
        taps: the student's feature maps, two stages at least.
    """

    fsp_weight: NonNegative = 50.0
    taps: Sequence[str] = ("stages",)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        projected, theirs = self.stages(student, teacher)
        return self.fsp_weight * fsp_loss(projected, theirs)
