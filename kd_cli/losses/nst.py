"""Neuron selectivity transfer: Huang & Wang 2017, "Like What You Like", arXiv:1707.01219."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kd_cli.losses.adapters import check_maps, check_positions, same_size
from kd_cli.losses.base import LOSSES, Features
from kd_cli.losses.common import at_least_float32, inner_products, unit
from kd_cli.ranges import NonNegative
from kd_cli.types import Batch, DataSpec, Outputs


def nst_loss(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    """Huang & Wang 2017: squared maximum mean discrepancy of the two sets of channels, mean over the batch.

    Each channel of an image, as a vector over its positions of length 1, is one sample; the kernel is (x·y)². The
    larger map is averaged to the size of the smaller.

    Args:
        student_feature: [B, C_s, H_s, W_s].
        teacher_feature: [B, C_t, H_t, W_t]; no gradient flows into it. The matrices take B · C_t² numbers.
    """
    check_maps(student_feature, teacher_feature)
    maps = same_size(at_least_float32(student_feature), at_least_float32(teacher_feature.detach()))
    student, teacher = (unit(feature.flatten(2)) for feature in maps)
    return kernel_mean(teacher, teacher) + kernel_mean(student, student) - 2 * kernel_mean(student, teacher)


def kernel_mean(one: Tensor, other: Tensor) -> Tensor:
    """Mean of the polynomial kernel (x·y)² over all pairs of channels and the batch: [B, M, P], [B, N, P] → scalar."""
    return inner_products(one, other).square().mean()


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
