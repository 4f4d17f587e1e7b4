"""Multi-level logit distillation: Jin, Wang, Lin, CVPR 2023."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kd_cli.losses.base import LOSSES, Method
from kd_cli.losses.common import check_logits, inner_products, log_probabilities
from kd_cli.losses.kd import kd_loss
from kd_cli.ranges import NonNegative, Positive
from kd_cli.types import Batch, Outputs


def mlkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    instance_weight: float = 0.9,
    batch_weight: float = 0.9,
    class_weight: float = 0.9,
) -> Tensor:
    """Jin et al. 2023 at one temperature: distances of images, of the relations of images, of the relations of classes.

    With the softened probabilities P [B, K] the three terms are T² · KL, ‖P Pᵀ − Q Qᵀ‖² / B and ‖Pᵀ P − Qᵀ Q‖² / K.
    The norms are sums, as in the paper: twice the batch makes the second term larger too, and the third the more.

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K]; no gradient flows into them.
        temperature: T > 0.
        instance_weight: of the divergence.
        batch_weight: of the Gram matrices [B, B] of images.
        class_weight: of the Gram matrices [K, K] of classes.
    """
    check_logits(student_logits, teacher_logits)
    teacher_logits = teacher_logits.detach()
    instances = kd_loss(student_logits, teacher_logits, temperature)
    student, teacher = (log_probabilities(logits, temperature).exp() for logits in (student_logits, teacher_logits))
    images = gram_distance(student, teacher)
    classes = gram_distance(student.T, teacher.T)
    return instance_weight * instances + batch_weight * images + class_weight * classes


def gram_distance(one: Tensor, other: Tensor) -> Tensor:
    """Squared distance of the Gram matrices of rows [R, N], divided by R."""
    return (inner_products(one, one) - inner_products(other, other)).square().sum() / len(one)


@LOSSES.register("mlkd")
class MLKD(Method):
    """Jin, Wang, Lin, CVPR 2023: images, relations of images and relations of classes at several temperatures.

    The authors' code reads a weakly and a strongly augmented view of each image, and masks by the teacher's confidence
    terms that are averaged already, which only scales them; here there is one view, and no mask.

    Args:
        temperatures: of which the terms are summed; each > 0.
        instance_weight: ≥ 0, of the divergence of each image.
        batch_weight: ≥ 0, of the relations of images.
        class_weight: ≥ 0, of the relations of classes.

    Raises:
        ValueError: no temperature, or a number outside its range.
    """

    temperatures: Sequence[Positive] = (2.0, 3.0, 4.0, 5.0, 6.0)
    instance_weight: NonNegative = 0.9
    batch_weight: NonNegative = 0.9
    class_weight: NonNegative = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperatures:
            raise ValueError("temperatures: [] is not possible; it must name one at least")

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        weights = self.instance_weight, self.batch_weight, self.class_weight
        terms = [mlkd_loss(student.logits, teacher.logits, t, *weights) for t in self.temperatures]
        return torch.stack(terms).sum()
