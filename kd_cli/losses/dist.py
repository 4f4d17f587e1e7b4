"""Distillation from a stronger teacher by correlations: Huang et al. 2022, arXiv:2205.10536."""

from __future__ import annotations

from torch import Tensor

from kd_cli.losses.base import LOSSES, Method
from kd_cli.losses.common import check_logits, log_probabilities, standardized
from kd_cli.ranges import NonNegative, Positive
from kd_cli.types import Batch, Outputs


def dist_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    inter_weight: float = 2.0,
    intra_weight: float = 2.0,
    temperature: float = 4.0,
    scale_by_t2: bool = True,
) -> Tensor:
    """Huang et al. 2022: β · inter + γ · intra, each 1 minus a mean Pearson correlation of softened probabilities.

    `inter` correlates an image's probabilities over the classes, `intra` a class's probabilities over the batch. In a
    batch of one image nothing varies, so intra is undefined and left out (0). Over two classes any correlation is 1 or
    −1, and only intra teaches.

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K]; no gradient flows into them.
        inter_weight: β.
        intra_weight: γ.
        temperature: T > 0.
        scale_by_t2: multiply by T², as the authors' code does and the paper does not.
    """
    check_logits(student_logits, teacher_logits)
    student = log_probabilities(student_logits, temperature).exp()
    teacher = log_probabilities(teacher_logits.detach(), temperature).exp()
    loss = inter_weight * distance(student, teacher)
    if len(student) > 1:
        loss = loss + intra_weight * distance(student.T, teacher.T)
    return loss * temperature**2 if scale_by_t2 else loss


def distance(one: Tensor, other: Tensor) -> Tensor:
    """1 − Pearson correlation of rows [R, N], mean over the rows; a constant row correlates with nothing (0)."""
    return 1 - (standardized(one) * standardized(other)).mean()


@LOSSES.register("dist")
class DIST(Method):
    """Huang et al. 2022, arXiv:2205.10536: correlations of probabilities over classes and over the batch.

    Args:
        inter_weight: β ≥ 0, of the correlation over classes.
        intra_weight: γ ≥ 0, of the correlation over the batch.
        temperature: T > 0.
        scale_by_t2: multiply by T², as the authors' code does; false: as the paper has it.
    """

    inter_weight: NonNegative = 2.0
    intra_weight: NonNegative = 2.0
    temperature: Positive = 4.0
    scale_by_t2: bool = True

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        weights = self.inter_weight, self.intra_weight
        return dist_loss(student.logits, teacher.logits, *weights, self.temperature, self.scale_by_t2)
