"""Multi-level logit distillation: Jin, Wang, Lin, CVPR 2023."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kd_cli.losses.base import LOSSES, Method
from kd_cli.losses.common import at_least_float32, check_logits, inner_products, self_products
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
    return mlkd_losses(student_logits, teacher_logits, (temperature,), instance_weight, batch_weight, class_weight)


def mlkd_losses(
    student_logits: Tensor, teacher_logits: Tensor, temperatures: Sequence[float], *weights: float
) -> Tensor:
    """The sum of `mlkd_loss` over several temperatures, of which none is computed by itself: scalar."""
    check_logits(student_logits, teacher_logits)
    student, teacher = (
        torch.stack([at_least_float32(logits) / t for t in temperatures]).log_softmax(dim=2)
        for logits in (student_logits, teacher_logits.detach())
    )  # [T, B, K]
    beliefs = student.exp(), teacher.exp()
    divergences = (beliefs[1] * (teacher - student)).sum(dim=(1, 2)) / student.shape[1]
    instances = torch.stack([t**2 * each for t, each in zip(temperatures, divergences.unbind(), strict=True)]).sum()
    images, classes = gram_distance(*beliefs), gram_distance(*(belief.mT for belief in beliefs))
    instance_weight, batch_weight, class_weight = weights
    return instance_weight * instances + batch_weight * images + class_weight * classes


def gram_distance(one: Tensor, other: Tensor) -> Tensor:
    """Squared distance of the Gram matrices of rows [..., R, N], divided by R."""
    return (self_products(one) - inner_products(other, other)).square().sum() / one.shape[-2]


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
        return mlkd_losses(student.logits, teacher.logits, self.temperatures, *weights)
