"""Inter-channel correlation for diversity-preserved distillation: Liu et al. 2021, ICCV."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kd_cli.losses.adapters import ConnectedMaps, check_maps
from kd_cli.losses.base import LOSSES
from kd_cli.losses.common import at_least_float32, inner_products, unit
from kd_cli.ranges import NonNegative
from kd_cli.types import Batch, Outputs


def ickd_loss(student_maps: Tensor, teacher_maps: Tensor) -> Tensor:
    """Liu et al. 2021: squared difference of the channel correlations, mean over batch and rows of the matrix.

    (The paper divides the sum of squares by C² and does not normalise; the authors' code, followed here and the one
    that the usual weight is made for, divides each row of the matrix by its length and the sum by C.)

    Args:
        student_maps: [B, C, H_s, W_s].
        teacher_maps: [B, C, H_t, W_t], of any size; no gradient flows into them.
    """
    check_maps(student_maps, teacher_maps)
    if student_maps.shape[1] != teacher_maps.shape[1]:
        raise ValueError(
            f"taps: channels are compared one by one, and {student_maps.shape[1]} are not {teacher_maps.shape[1]}"
        )
    with torch.no_grad():
        wanted = channel_correlation(teacher_maps)
    difference = channel_correlation(student_maps) - wanted
    return difference.square().sum(dim=2).mean()


def channel_correlation(maps: Tensor) -> Tensor:
    """Inner products [B, C, C] of the channels of maps [B, C, H, W], each row divided by its length."""
    channels = at_least_float32(maps).flatten(2)
    return unit(inner_products(channels, channels))


@LOSSES.register("ickd")
class ICKD(ConnectedMaps):
    """Liu et al. 2021 (ICCV): the student's channels are correlated among each other as the teacher's are.

    A connector (1×1 convolution, batch normalisation), as in the authors' code, gives the student's maps the teacher's
    channels; their sizes need not agree. The matrices take B · C² numbers for each network, C the teacher's channels.

    Args:
        ickd_weight: ≥ 0.
        taps: the student's feature maps.
    """

    ickd_weight: NonNegative = 2.5
    taps: Sequence[str] = ("stage-1",)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        terms = [ickd_loss(*pair) for pair in self.connected(student, teacher)]
        return self.ickd_weight * torch.stack(terms).sum()
