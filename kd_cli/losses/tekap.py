"""Teacher knowledge augmentation by perturbation, of logits: Hossain et al. 2025 (ICLR)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_cli.losses.base import LOSSES, Method
from kd_cli.losses.common import at_least_float32, check_logits, log_probabilities
from kd_cli.ranges import Count, NonNegative, Positive, Share
from kd_cli.types import Batch, Outputs


def tekap_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    noise: Tensor,
    noise_share: float = 0.1,
    augmented_weight: float = 0.8,
    temperature: float = 4.0,
) -> Tensor:
    """Hossain et al. 2025, of logits: `kd` from the teacher, and from N teachers whose logits are perturbed.

    T² · [KL(p_t ‖ p_s) + w · Σ KL(p_n ‖ p_s)], where teacher n has the logits (1 − s) · z_t + s · noise_n.

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K]; no gradient flows into them.
        noise: [N, B, K], in the authors' code of a standard normal distribution, whatever the size of the logits.
        noise_share: s in [0, 1].
        augmented_weight: w, of each perturbed teacher; the authors' code takes their sum and not their mean.
        temperature: T > 0.
    """
    check_logits(student_logits, teacher_logits)
    exact = at_least_float32(teacher_logits.detach())[None]
    teachers = torch.cat([exact, (1 - noise_share) * exact + noise_share * noise])
    log_p = log_probabilities(teachers.flatten(0, 1), temperature).view_as(teachers)
    log_q = log_probabilities(student_logits, temperature).expand_as(log_p)
    each = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=2).mean(dim=1)  # [1 + N]
    return (each[0] + augmented_weight * each[1:].sum()) * temperature**2


@LOSSES.register("tekap")
class TeKAP(Method):
    """Hossain et al. 2025 (ICLR): `kd` from one teacher and from noisy copies of what it says.

    Of the paper's two halves the one of logits; that of features perturbs another method's features. The numbers are
    those of the authors' code and command for resnet32x4 → resnet8x4 on CIFAR-100. The noise is drawn in every step,
    and goes on as it was where a training is resumed.

    Args:
        teachers: N ≥ 1, noisy copies.
        noise_share: in [0, 1], of standard normal noise in a copy's logits.
        augmented_weight: ≥ 0, of each copy beside the teacher itself.
        temperature: T > 0.
        kl_weight: ≥ 0, of all of it.
    """

    teachers: Count = 3
    noise_share: Share = 0.1
    augmented_weight: NonNegative = 0.8
    temperature: Positive = 4.0
    kl_weight: NonNegative = 0.9

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        exact = at_least_float32(teacher.logits)
        noise = torch.randn((self.teachers, *exact.shape), dtype=exact.dtype, device=exact.device)
        options = self.noise_share, self.augmented_weight, self.temperature
        return self.kl_weight * tekap_loss(student.logits, teacher.logits, noise, *options)
