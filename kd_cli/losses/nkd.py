"""Normalised knowledge distillation: Yang et al. 2023, arXiv:2303.13005."""

from __future__ import annotations

from torch import Tensor

from kd_cli.losses.base import LOSSES, Method
from kd_cli.losses.common import check_logits, log_probabilities, of_label, other_logits
from kd_cli.ranges import NonNegative, Positive
from kd_cli.types import Batch, Outputs


def nkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    target_weight: float = 1.0,
    nontarget_weight: float = 1.5,
    temperature: float = 1.0,
) -> Tensor:
    """Yang et al. 2023: soft cross-entropy of the label, and of the other classes once each side's sum is made 1.

    The label's term −p_t(label) · log p_s(label) is taken at T = 1 whatever the temperature; the others' term is
    γ · T² · H(teacher, student). Both are cross-entropies: a student that equals its teacher has a loss above 0, and
    for K = 2 the second term is 0.

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K]; no gradient flows into them.
        labels: [B], int64.
        target_weight: of the label's term.
        nontarget_weight: γ.
        temperature: T > 0, of the other classes (the paper's λ).
    """
    check_logits(student_logits, teacher_logits)
    teacher_logits = teacher_logits.detach()
    belief = of_label(log_probabilities(teacher_logits), labels).exp()
    target = -(belief * of_label(log_probabilities(student_logits), labels)).mean()
    others = log_probabilities(other_logits(teacher_logits, labels), temperature).exp()
    other_logs = log_probabilities(other_logits(student_logits, labels), temperature)
    nontarget = -(others * other_logs).sum(dim=1).mean()
    return target_weight * target + nontarget_weight * temperature**2 * nontarget


@LOSSES.register("nkd")
class NKD(Method):
    """Yang et al. 2023, arXiv:2303.13005: soft cross-entropy of the label and of the normalised other classes.

    Args:
        target_weight: ≥ 0, of the label's term; the paper has 1.
        nontarget_weight: γ ≥ 0, of the others' term.
        temperature: T > 0, of the others' term.
    """

    target_weight: NonNegative = 1.0
    nontarget_weight: NonNegative = 1.5
    temperature: Positive = 1.0

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        weights = self.target_weight, self.nontarget_weight, self.temperature
        return nkd_loss(student.logits, teacher.logits, batch.labels, *weights)
