"""Weighted soft labels: Zhou et al. 2021, arXiv:2102.00650."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_cli.losses.base import LOSSES, Method
from kd_cli.losses.common import at_least_float32, check_logits, log_probabilities
from kd_cli.ranges import NonNegative, Positive
from kd_cli.types import Batch, Outputs


def wsld_loss(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float = 2.0) -> Tensor:
    """Zhou et al. 2021: T² · KL of each image, times its weight; mean over the batch.

    The authors' code has the cross-entropy with the soft targets where the divergence is here; as the weights are
    constants, the gradient is the same.

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K]; no gradient flows into them.
        labels: [B], int64.
        temperature: T > 0, of the divergence.
    """
    check_logits(student_logits, teacher_logits)
    student = log_probabilities(student_logits, temperature)
    teacher = log_probabilities(teacher_logits.detach(), temperature)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)
    return (soft_label_weights(student_logits, teacher_logits, labels) * divergence).mean() * temperature**2


@torch.no_grad()
def soft_label_weights(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """Zhou et al. 2021: 1 − exp(−CE(student) / CE(teacher)) of each image at T = 1, [B] in [0, 1]; constants.

    An image that the student knows better than its teacher gets a small weight. That no gradient flows through the
    weights is how the authors' code has it: with one, a student could make its loss small by ignoring the teacher.
    """
    student = F.cross_entropy(at_least_float32(student_logits), labels, reduction="none")
    teacher = F.cross_entropy(at_least_float32(teacher_logits), labels, reduction="none")
    return -torch.expm1(-student / teacher.clamp_min(torch.finfo(teacher.dtype).tiny))  # a sure teacher's is 0


@LOSSES.register("wsld")
class WSLD(Method):
    """Zhou et al. 2021, arXiv:2102.00650: images that the student knows better than the teacher weigh less.

    Args:
        temperature: T > 0.
        kl_weight: ≥ 0, of the weighted divergence.
    """

    temperature: Positive = 2.0
    kl_weight: NonNegative = 2.5

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return self.kl_weight * wsld_loss(student.logits, teacher.logits, batch.labels, self.temperature)
