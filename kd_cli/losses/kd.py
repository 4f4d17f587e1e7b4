"""Distillation by softened probabilities: Hinton, Vinyals, Dean 2015, arXiv:1503.02531."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kd_cli.losses.base import LOSSES, Method
from kd_cli.losses.common import check_logits, log_probabilities
from kd_cli.ranges import NonNegative, Positive
from kd_cli.types import Batch, Outputs


def kd_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0, scale_by_t2: bool = True
) -> Tensor:
    """Hinton et al. 2015: T² · KL(softmax(teacher/T) ‖ softmax(student/T)), summed over classes, mean over the batch.

    Both sides are kept as logarithms, so the loss and its gradient stay finite where a probability underflows.

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K]; no gradient flows into them unless they ask for one.
        temperature: T > 0.
        scale_by_t2: multiply by T², which keeps the size of the gradient when T changes (section 2.1).
    """
    check_logits(student_logits, teacher_logits)
    student = log_probabilities(student_logits, temperature)
    teacher = log_probabilities(teacher_logits, temperature)
    divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2 if scale_by_t2 else divergence


@LOSSES.register("kd")
class KD(Method):
    """Hinton, Vinyals, Dean 2015, arXiv:1503.02531: KL divergence of softened probabilities.

    Args:
        temperature: T > 0.
        kl_weight: of the divergence, ≥ 0.
        scale_by_t2: multiply by T²; false only to repeat articles that forgot it.
    """

    temperature: Positive = 4.0
    kl_weight: NonNegative = 0.9
    scale_by_t2: bool = True

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        return self.kl_weight * kd_loss(student.logits, teacher.logits, self.temperature, self.scale_by_t2)
