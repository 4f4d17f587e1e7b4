"""Refined logit distillation: Sun et al. 2025 (ICCV), arXiv:2408.07703."""

from __future__ import annotations

from torch import Tensor

from kd_cli.losses.base import LOSSES, Method
from kd_cli.losses.common import at_least_float32, check_logits, divergence, log_binary, log_probabilities, of_label
from kd_cli.ranges import NonNegative, Positive
from kd_cli.types import Batch, Outputs

_MASKED = -1e30  # as good as −∞, of which a row of nothing else would make NaN


def rld_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    confidence_weight: float = 1.0,
    correlation_weight: float = 8.0,
    confidence_temperature: float = 1.0,
    temperature: float = 4.0,
) -> Tensor:
    """Sun et al. 2025: α · SCD · T_c² + β · MCD · T², mean over the batch; the label corrects what the teacher says.

    Sample confidence (SCD): KL of (p, 1 − p), where p is the teacher's largest probability, of whichever class, and the
    student's probability of the label: how sure to be, not of what. Masked correlation (MCD): KL among the classes
    that the teacher puts below the label, each side's sum made 1; the label itself and what the teacher prefers to it,
    or likes as much, are left out. Where fewer than two classes remain, the image has no such term.

    A student that equals its teacher has a loss of 0 only on images that the teacher gets right. (Both squared
    temperatures are in the authors' code. It masks with −1e9, which no half precision holds, and takes the logarithm
    of summed probabilities, which is −∞ when they underflow; here neither is.)

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K]; no gradient flows into them.
        labels: [B], int64.
        confidence_weight: α.
        correlation_weight: β.
        confidence_temperature: T_c > 0, of SCD.
        temperature: T > 0, of MCD.
    """
    check_logits(student_logits, teacher_logits)
    student, teacher = at_least_float32(student_logits), at_least_float32(teacher_logits.detach())
    surest = teacher.argmax(dim=1)
    sure = log_binary(student, labels, confidence_temperature), log_binary(teacher, surest, confidence_temperature)
    masked = teacher >= of_label(teacher, labels)[:, None]
    below = (log_probabilities(logits.masked_fill(masked, _MASKED), temperature) for logits in (student, teacher))
    confidence = confidence_weight * confidence_temperature**2 * divergence(*sure)
    return confidence + correlation_weight * temperature**2 * divergence(*below)


@LOSSES.register("rld")
class RLD(Method):
    """Sun et al. 2025, arXiv:2408.07703: how sure the teacher is, and its order of the classes below the label.

    The numbers, the warm-up of 20 epochs included, are those of the authors' code for CIFAR-100.

    Args:
        confidence_weight: α ≥ 0, of how sure the teacher is of its first class.
        correlation_weight: β ≥ 0, of the classes below the label among themselves.
        confidence_temperature: > 0, of the first term.
        temperature: T > 0, of the second.
    """

    confidence_weight: NonNegative = 1.0
    correlation_weight: NonNegative = 8.0
    confidence_temperature: Positive = 1.0
    temperature: Positive = 4.0

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        weights = self.confidence_weight, self.correlation_weight
        temperatures = self.confidence_temperature, self.temperature
        return rld_loss(student.logits, teacher.logits, batch.labels, *weights, *temperatures)
