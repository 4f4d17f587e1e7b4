"""Distillation by the α-β divergence: Wang et al. 2025 (ICML), arXiv:2505.04560."""

from __future__ import annotations

from torch import Tensor

from kd_cli.losses.base import LOSSES, Method
from kd_cli.losses.common import check_logits, log_probabilities
from kd_cli.ranges import NonNegative, Positive
from kd_cli.types import Batch, Outputs


def abkd_loss(
    student_logits: Tensor, teacher_logits: Tensor, alpha: float = 0.8, beta: float = 0.3, temperature: float = 4.0
) -> Tensor:
    """Wang et al. 2025: the α-β divergence of softened probabilities p (teacher) and q (student), mean over the batch.

    −1/(αβ) · Σ [p^α q^β − α/(α+β) · p^(α+β) − β/(α+β) · q^(α+β)], which is KL(p ‖ q) at (1, 0), KL(q ‖ p) at (0, 1)
    and 4 times the squared Hellinger distance at (½, ½). A larger α looks more at the classes that are most wrong, a
    larger β less at those of which the student is sure.

    Where α or β is 0 it is the limit of the above: 1/α² · Σ [p^α · log(p^α/q^α) − p^α + q^α], likewise with p and q
    exchanged, and ½ Σ (log p − log q)² where both are. (The authors' code divides by α and not by α², so that it jumps
    at β = 0 unless α is 1; it has no factor T², and neither has this.)

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K]; no gradient flows into them.
        alpha: α ≥ 0.
        beta: β ≥ 0.
        temperature: T > 0, of both.
    """
    check_logits(student_logits, teacher_logits)
    student = log_probabilities(student_logits, temperature)
    teacher = log_probabilities(teacher_logits.detach(), temperature)
    return alpha_beta_divergence(teacher, student, alpha, beta).mean()


def alpha_beta_divergence(log_p: Tensor, log_q: Tensor, alpha: float, beta: float) -> Tensor:
    """Of each row of log-probabilities [B, K], [B]; see `abkd_loss`."""
    order = alpha + beta
    if alpha and beta:
        p, q = (order * log_p).exp(), (order * log_q).exp()
        both = (alpha * log_p + beta * log_q).exp()
        return ((alpha * p + beta * q) / order - both).sum(dim=1) / (alpha * beta)
    if not order:
        return (log_p - log_q).square().sum(dim=1) / 2
    log_p, log_q = (log_p, log_q) if alpha else (log_q, log_p)
    p, q = (order * log_p).exp(), (order * log_q).exp()
    return (p * order * (log_p - log_q) - p + q).sum(dim=1) / order**2


@LOSSES.register("abkd")
class ABKD(Method):
    """Wang et al. 2025, arXiv:2505.04560: a divergence between KL(teacher ‖ student) and KL(student ‖ teacher).

    α, β and the weight are those of the authors' command for resnet56 → resnet20 on CIFAR-100, T is their code's.

    Args:
        alpha: α ≥ 0; 1 with β = 0 is KL(teacher ‖ student).
        beta: β ≥ 0; 1 with α = 0 is KL(student ‖ teacher).
        temperature: T > 0. (No factor T².)
        divergence_weight: ≥ 0.
    """

    alpha: NonNegative = 0.8
    beta: NonNegative = 0.3
    temperature: Positive = 4.0
    divergence_weight: NonNegative = 32.0

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        divergence = abkd_loss(student.logits, teacher.logits, self.alpha, self.beta, self.temperature)
        return self.divergence_weight * divergence
