"""Weighted transformed teacher matching: Zheng, Yang 2024 (ICLR), arXiv:2402.11148."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kd_cli.losses.base import LOSSES, Method
from kd_cli.losses.common import check_logits, log_probabilities
from kd_cli.ranges import NonNegative, Positive
from kd_cli.types import Batch, Outputs


def wttm_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 5.0) -> Tensor:
    """Zheng, Yang 2024: `ttm` of each image, times how smooth its softened teacher is; mean over the batch.

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K]; no gradient flows into them.
        temperature: T = 1/γ > 0, of the teacher.
    """
    check_logits(student_logits, teacher_logits)
    teacher = log_probabilities(teacher_logits.detach(), temperature)
    images = F.kl_div(log_probabilities(student_logits), teacher, reduction="none", log_target=True).sum(dim=1)
    return (power_sums(teacher_logits.detach(), temperature) * images).mean()


def power_sums(teacher_logits: Tensor, temperature: float) -> Tensor:
    """Σ p^γ over an image's classes [B], γ = 1/T < 1: from 1, for one sure class, to K^(1 − γ), for equal ones."""
    return (log_probabilities(teacher_logits) / temperature).exp().sum(dim=1)


@LOSSES.register("wttm")
class WTTM(Method):
    """Zheng, Yang 2024, arXiv:2402.11148: `ttm`, where images with a smoother teacher weigh more.

    The numbers are those of the one command with wttm in the authors' code: γ = 0.2 and weight 4, beside crd.

    Args:
        temperature: T > 0, of the teacher; 1/γ in the paper.
        kl_weight: β ≥ 0, of the weighted divergence.
    """

    temperature: Positive = 5.0
    kl_weight: NonNegative = 4.0

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        return self.kl_weight * wttm_loss(student.logits, teacher.logits, self.temperature)
