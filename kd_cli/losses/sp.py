"""Similarity-preserving distillation: Tung & Mori 2019, arXiv:1907.09682."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from kd_cli.losses.base import LOSSES, Features
from kd_cli.losses.common import at_least_float32, inner_products, unit
from kd_cli.ranges import NonNegative
from kd_cli.types import Batch, Outputs


def sp_loss(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    """Tung & Mori 2019: ‖G_t − G_s‖²_F / B² of the two networks' similarity matrices of a batch.

    Args:
        student_feature: [B, ...]; everything but the batch is one vector.
        teacher_feature: [B, ...], of any other width; no gradient flows into it.
    """
    return F.mse_loss(similarity(student_feature), similarity(teacher_feature.detach()))


def similarity(feature: Tensor) -> Tensor:
    """Inner products [B, B] of the images' features [B, ...], each row divided by its length."""
    vectors = at_least_float32(feature).flatten(1)
    return unit(inner_products(vectors, vectors))


@LOSSES.register("sp")
class SP(Features):
    """Tung & Mori 2019, arXiv:1907.09682: images that are alike to the teacher are alike to the student.

    Summed over the features. A batch of one image has no pair: its loss is 0.

    Args:
        sp_weight: ≥ 0.
        taps: the student's features, maps or vectors.
    """

    sp_weight: NonNegative = 3000.0
    taps: Sequence[str] = ("stage-1",)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        return self.sp_weight * self.over_pairs(sp_loss, student, teacher)
