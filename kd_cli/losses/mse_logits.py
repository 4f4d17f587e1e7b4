"""Squared distance of logits: Ba & Caruana 2014, arXiv:1312.6184."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kd_cli.losses.base import LOSSES, Method
from kd_cli.losses.common import at_least_float32, check_logits
from kd_cli.ranges import NonNegative
from kd_cli.types import Batch, Outputs


def mse_logits_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Ba & Caruana 2014: squared difference of the logits, mean over classes and batch.

    (Eq. 1 of the paper halves the sum over classes; the mean over classes, used here, is what the field calls the MSE
    of logits, and leaves the weight independent of K.)

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K].
    """
    check_logits(student_logits, teacher_logits)
    return F.mse_loss(at_least_float32(student_logits), at_least_float32(teacher_logits))


@LOSSES.register("mse_logits")
class MSELogits(Method):
    """Ba & Caruana 2014, arXiv:1312.6184: squared distance of logits.

    Args:
        mse_weight: ≥ 0.
    """

    mse_weight: NonNegative = 1.0
    whole_logits = True

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        return self.mse_weight * mse_logits_loss(student.logits, teacher.logits)
