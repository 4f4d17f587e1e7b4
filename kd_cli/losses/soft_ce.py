"""Cross-entropy with the teacher's soft targets: Hinton, Vinyals, Dean 2015, arXiv:1503.02531."""

from __future__ import annotations

from torch import Tensor

from kd_cli.losses.base import LOSSES, Method
from kd_cli.losses.common import check_logits, log_probabilities
from kd_cli.ranges import NonNegative, Positive
from kd_cli.types import Batch, Outputs


def soft_ce_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    """Hinton et al. 2015: T² · H(softmax(teacher/T), softmax(student/T)), mean over the batch.

    It is `kd_loss` plus T² times the teacher's entropy: another value, the same gradient.

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K].
        temperature: T > 0.
    """
    check_logits(student_logits, teacher_logits)
    teacher = log_probabilities(teacher_logits, temperature).exp()
    return -(teacher * log_probabilities(student_logits, temperature)).sum(dim=1).mean() * temperature**2


@LOSSES.register("soft_ce")
class SoftCE(Method):
    """Hinton, Vinyals, Dean 2015, arXiv:1503.02531: cross-entropy with soft targets.

    Args:
        temperature: T > 0.
        soft_ce_weight: ≥ 0.
    """

    temperature: Positive = 4.0
    soft_ce_weight: NonNegative = 0.9

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        return self.soft_ce_weight * soft_ce_loss(student.logits, teacher.logits, self.temperature)
