"""Neuron selectivity transfer: Huang & Wang 2017, "Like What You Like", arXiv:1707.01219."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kd_cli.losses.adapters import check_maps, check_positions, same_size
from kd_cli.losses.base import LOSSES, Features
from kd_cli.losses.common import at_least_float32, inner_products, self_products, unit
from kd_cli.ranges import NonNegative
from kd_cli.types import Batch, DataSpec, Outputs


def nst_loss(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    """Huang & Wang 2017: squared maximum mean discrepancy of the two sets of channels, mean over the batch.

    Each channel of an image, as a vector over its positions of length 1, is one sample; the kernel is (x·y)². The
    larger map is averaged to the size of the smaller.

    Args:
        student_feature: [B, C_s, H_s, W_s].
        teacher_feature: [B, C_t, H_t, W_t]; no gradient flows into it. The matrices take at most B · C_t² numbers.
    """
    check_maps(student_feature, teacher_feature)
    maps = same_size(at_least_float32(student_feature), at_least_float32(teacher_feature.detach()))
    student, teacher = (unit(feature.flatten(2)) for feature in maps)
    ours, theirs, positions = student.shape[1], teacher.shape[1], student.shape[2]
    if positions * (ours + theirs) < ours**2 + theirs**2 + ours * theirs:  # numbers of the one way and of the other
        return (position_products(student) - position_products(teacher)).square().sum(dim=(1, 2)).mean()
    between = inner_products(student, teacher).square().mean()
    return kernel_mean(teacher) + kernel_mean(student) - 2 * between


def kernel_mean(channels: Tensor) -> Tensor:
    """Mean of the polynomial kernel (x·y)² over all pairs of channels and the batch: [B, C, P] → scalar."""
    return self_products(channels).square().mean()


def position_products(channels: Tensor) -> Tensor:
    """Mean over channels of x xᵀ, [B, C, P] → [B, P, P].

    The sum of the entries of two such matrices, multiplied one by one, is the mean of (x·y)² over all pairs of channels
    x and y: where there are more channels than positions, that is the smaller matrix.
    """
    return self_products(channels.mT) / channels.shape[1]


@LOSSES.register("nst")
class NST(Features):
    """Huang & Wang 2017, arXiv:1707.01219: the student's channels select what those of its teacher do.

    Summed over the stages. Channels are compared as sets, so that their numbers need not agree. Maps that are compared
    at one pixel add nothing: a channel of length 1 is 1 there.

    Args:
        nst_weight: ≥ 0.
        taps: the student's feature maps.
    """

    nst_weight: NonNegative = 50.0
    taps: Sequence[str] = ("stages",)

    def bind(self, student: Outputs, teacher: Outputs, data: DataSpec) -> None:  # noqa: ARG002
        check_positions(self.pairs(student, teacher))

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        return self.nst_weight * self.over_pairs(nst_loss, student, teacher)
