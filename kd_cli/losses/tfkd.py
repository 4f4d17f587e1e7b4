"""Teacher-free distillation: Yuan et al. 2020, arXiv:1909.11723."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from kd_cli.losses.base import LOSSES, Distiller
from kd_cli.losses.common import at_least_float32
from kd_cli.losses.kd import kd_loss
from kd_cli.ranges import Inside, NonNegative, Positive
from kd_cli.types import Batch, Outputs


def tfkd_loss(logits: Tensor, labels: Tensor, label_probability: float = 0.99, temperature: float = 20.0) -> Tensor:
    """Yuan et al. 2020, Tf-KD_reg: T² · KL(p^d_T ‖ softmax(logits/T)), mean over the batch; p^d is hand-made.

    p^d is a on the label and (1 − a)/(K − 1) on each other class; p^d_T is softened as any teacher is, softmax of
    log(p^d)/T. (The authors' code takes the softmax of p^d/T, which at T = 20 is almost uniform, leaves the student at
    T = 1, averages over the classes too and has no T². The paper, followed here, softens both sides; T² is that of
    `kd`, without which hardly anything of the term is left at so high a temperature.)

    Args:
        logits: [B, K].
        labels: [B], int64.
        label_probability: a in (0, 1).
        temperature: T > 0.
    """
    return kd_loss(logits, virtual_logits(logits, labels, label_probability), temperature)


def virtual_logits(logits: Tensor, labels: Tensor, label_probability: float) -> Tensor:
    """log p^d of the hand-made teacher, [B, K], for logits of that shape."""
    classes = logits.shape[1]
    other = math.log((1 - label_probability) / (classes - 1))
    teacher = torch.full_like(at_least_float32(logits), other, requires_grad=False)
    return teacher.scatter(1, labels[:, None], math.log(label_probability))


@LOSSES.register("tfkd")
class TfKD(Distiller):
    """Yuan et al. 2020, arXiv:1909.11723: a hand-made teacher, or a frozen copy of the student that trained alone.

    Args:
        form: `regularization` asks no teacher (Tf-KD_reg); `self` is kd from a trained network of the student's own
            kind (Tf-KD_self), which is given as the teacher.
        label_probability: a in (0, 1), the hand-made teacher's belief in the label; the paper has 0.9 and more.
        temperature: T > 0.
        kl_weight: ≥ 0.
    """

    teacher: Literal["frozen", "trained", "none"] = "none"

    def __init__(
        self,
        form: Literal["regularization", "self"] = "regularization",
        label_probability: Inside = 0.99,
        temperature: Positive = 20.0,
        kl_weight: NonNegative = 0.1,
    ) -> None:
        super().__init__()
        self.teacher = "frozen" if form == "self" else "none"
        self.form = form
        self.label_probability = label_probability
        self.temperature = temperature
        self.kl_weight = kl_weight

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        if self.form == "self":
            return self.kl_weight * kd_loss(student.logits, teacher.logits.detach(), self.temperature)
        return self.kl_weight * tfkd_loss(student.logits, batch.labels, self.label_probability, self.temperature)
