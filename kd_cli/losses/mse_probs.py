"""Squared distance of softened probabilities: the Brier score against the teacher, as in study `loss_function`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kd_cli.losses.base import LOSSES, Method
from kd_cli.losses.common import check_logits, log_probabilities
from kd_cli.ranges import NonNegative, Positive
from kd_cli.types import Batch, Outputs


def mse_probs_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Squared difference of softmax(·/T), mean over classes and batch; no factor of T.

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K].
        temperature: T > 0.
    """
    check_logits(student_logits, teacher_logits)
    student = log_probabilities(student_logits, temperature).exp()
    teacher = log_probabilities(teacher_logits, temperature).exp()
    return F.mse_loss(student, teacher)


@LOSSES.register("mse_probs")
class MSEProbs(Method):
    """Brier 1950, doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2: squared distance of softened probabilities.

    Args:
        temperature: T > 0.
        mse_weight: ≥ 0. Probabilities differ by less than 1, so this weight is larger than that of logits.
    """

    temperature: Positive = 1.0
    mse_weight: NonNegative = 10.0

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        return self.mse_weight * mse_probs_loss(student.logits, teacher.logits, self.temperature)
