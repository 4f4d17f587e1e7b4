"""Transformed teacher matching: Zheng, Yang 2024 (ICLR), arXiv:2402.11148."""

from __future__ import annotations

from torch import Tensor

from kd_cli.losses.base import LOSSES, Method
from kd_cli.losses.common import check_logits, divergence, log_probabilities
from kd_cli.ranges import NonNegative, Positive
from kd_cli.types import Batch, Outputs


def ttm_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 10.0) -> Tensor:
    """Zheng, Yang 2024: KL(teacher^γ, its sum made 1 ‖ student), γ = 1/T; mean over the batch.

    The power γ of probabilities is the temperature T of their logits, and the teacher alone is softened. To the student
    that is T times `kd` without T², less T − 1 times its Rényi entropy of order γ (section 3). A student that equals
    its teacher has a loss above 0 unless T = 1.

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K]; no gradient flows into them.
        temperature: T = 1/γ > 0, of the teacher. No factor T²: the student's gradient does not shrink with T.
    """
    check_logits(student_logits, teacher_logits)
    return divergence(log_probabilities(student_logits), log_probabilities(teacher_logits.detach(), temperature))


@LOSSES.register("ttm")
class TTM(Method):
    """Zheng, Yang 2024, arXiv:2402.11148: kd with a temperature for the teacher and none for the student.

    The numbers are those of the command in the authors' code for vgg13 → vgg8 on CIFAR-100: γ = 0.1 and weight 45.

    Args:
        temperature: T > 0, of the teacher; 1/γ in the paper.
        kl_weight: β ≥ 0, of the divergence.
    """

    temperature: Positive = 10.0
    kl_weight: NonNegative = 45.0

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        return self.kl_weight * ttm_loss(student.logits, teacher.logits, self.temperature)
