"""Decoupled knowledge distillation: Zhao et al. 2022, arXiv:2203.08679."""

from __future__ import annotations

from torch import Tensor

from kd_cli.losses.base import LOSSES, Method
from kd_cli.losses.common import check_logits, divergence, log_binary, log_probabilities, other_logits
from kd_cli.ranges import NonNegative, Positive
from kd_cli.types import Batch, DataSpec, Outputs


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    target_weight: float = 1.0,
    nontarget_weight: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """Zhao et al. 2022, eq. 7: (α · TCKD + β · NCKD) · T², mean over the batch.

    TCKD is the divergence of (label, all others together), NCKD that of the others among themselves. Both are written
    with logarithms of probabilities, never with the probabilities, so no gap between logits is too large. (The factor
    T² is in the authors' code and not in the equation.)

    Args:
        student_logits: [B, K], K > 2.
        teacher_logits: [B, K]; no gradient flows into them.
        labels: [B], int64.
        target_weight: α.
        nontarget_weight: β.
        temperature: T > 0.

    Raises:
        ValueError: if the shapes differ, or for K = 2, where the only other class has nothing to compare.
    """
    check_logits(student_logits, teacher_logits)
    _check_classes(student_logits.shape[1])
    both = student_logits, teacher_logits.detach()
    target = divergence(*(log_binary(logits, labels, temperature) for logits in both))
    others = divergence(*(log_probabilities(other_logits(logits, labels), temperature) for logits in both))
    return (target_weight * target + nontarget_weight * others) * temperature**2


def _check_classes(num_classes: int) -> None:
    if num_classes < 3:
        raise ValueError(
            f"dkd compares the classes that are not the label; of {num_classes} classes there are not two such. "
            "Take loss=kd"
        )


@LOSSES.register("dkd")
class DKD(Method):
    """Zhao et al. 2022, arXiv:2203.08679: the label against the rest, and the rest among themselves.

    Args:
        target_weight: α ≥ 0, of the label against the rest.
        nontarget_weight: β ≥ 0, of the rest among themselves; the paper takes 2 … 8, the more, the surer the teacher.
        temperature: T > 0.
    """

    target_weight: NonNegative = 1.0
    nontarget_weight: NonNegative = 8.0
    temperature: Positive = 4.0

    def bind(self, student: Outputs, teacher: Outputs, data: DataSpec) -> None:  # noqa: ARG002
        _check_classes(data.num_classes)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        weights = self.target_weight, self.nontarget_weight, self.temperature
        return dkd_loss(student.logits, teacher.logits, batch.labels, *weights)
