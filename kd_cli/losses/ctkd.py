"""Curriculum temperature: Li et al. 2022, arXiv:2211.16231."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kd_cli.losses.base import LOSSES, Method
from kd_cli.losses.common import at_least_float32
from kd_cli.losses.kd import kd_loss
from kd_cli.ranges import NonNegative, Positive
from kd_cli.types import Batch, Outputs


def ctkd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor) -> Tensor:
    """Li et al. 2022: T² · KL(softmax(teacher/T) ‖ softmax(student/T)) with a temperature that may take a gradient.

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K]; no gradient flows into them.
        temperature: T > 0, a scalar.

    Raises:
        ValueError: if the logits' shapes differ.
    """
    student, teacher = at_least_float32(student_logits), at_least_float32(teacher_logits).detach()
    return temperature**2 * kd_loss(student / temperature, teacher / temperature, temperature=1.0)


def reverse_gradient(value: Tensor, strength: float) -> Tensor:
    """The same value; the gradient on its way back is multiplied by −`strength` (gradient reversal layer)."""
    constant = value.detach()
    return constant + strength * (constant - value)


def adversary_strength(epoch: int, ramp_epochs: float) -> float:
    """Li et al. 2022: λ rises from 0 in epoch 0 along a cosine to 1 in epoch `ramp_epochs`, and stays there.

    (The authors' code counts its epochs from 1 and so has no epoch at λ = 0.)
    """
    return (1 - math.cos(math.pi * min(epoch / ramp_epochs, 1.0))) / 2


@LOSSES.register("ctkd")
class CTKD(Method):
    """Li et al. 2022, arXiv:2211.16231: kd whose temperature learns to make the student's task harder.

    One temperature for all images (the paper's global version): T = minimum + range · sigmoid(θ), where θ starts at 1
    as in the authors' code and is trained with the student, by the same optimizer and against it.

    Args:
        min_temperature: > 0.
        temperature_range: > 0; the temperature stays below their sum.
        ramp_epochs: > 0; in so many epochs the adversary grows from none to whole.
        kl_weight: ≥ 0.
    """

    min_temperature: Positive = 1.0
    temperature_range: Positive = 20.0
    ramp_epochs: Positive = 10.0
    kl_weight: NonNegative = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        self.theta = nn.Parameter(torch.ones(()))

    def strength(self, epoch: int) -> float:
        """Of the adversary in epoch 0, 1, …"""
        return adversary_strength(epoch, self.ramp_epochs)

    def temperature(self, strength: float) -> Tensor:
        """T, a scalar that passes its gradient on reversed, times `strength`."""
        theta = reverse_gradient(self.theta, strength)
        return self.min_temperature + self.temperature_range * theta.sigmoid()

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return self.kl_weight * ctkd_loss(student.logits, teacher.logits, self.temperature(batch.at(self.strength)))
