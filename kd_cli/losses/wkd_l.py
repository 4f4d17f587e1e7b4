"""Wasserstein distillation of logits, WKD-L: Lv, Yang, Li 2024 (NeurIPS), arXiv:2412.08139."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

import torch
from torch import Tensor, nn

from kd_cli.losses.base import LOSSES, Method
from kd_cli.losses.common import at_least_float32, check_logits, inner_products, log_probabilities, of_label, unit
from kd_cli.ranges import Count, NonNegative, Positive, within
from kd_cli.types import Batch, DataSpec, Outputs

Regularization = Annotated[float, within(low=0.02)]


def wkd_l_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    cost: Tensor,
    target_weight: float = 1.0,
    transport_weight: float = 800.0,
    temperature: float = 8.0,
    regularization: float = 0.05,
    iterations: int = 10,
) -> Tensor:
    """Lv et al. 2024: soft cross-entropy of the label, and the transport of the other classes; mean over the batch.

    The label's term is −p_t(label) · log p_s(label) at T = 1, as in `nkd`. Of the other classes, each side's sum made
    1 at temperature T, it is Σ c · q, what the plan q that Sinkhorn's iterations find costs to move the teacher's
    probability to where the student's is. The entropy of the plan, weighted by `regularization`, is what makes it
    differentiable; it also blurs it: a student that equals its teacher has a loss above 0, and a gradient.

    (The authors' code makes the K² plan of each image and adds 1e-8 to each denominator, which loses up to a fifth of
    the probability moved between far classes. Here all images share the kernel, so that an iteration is two products
    of matrices, the label has the probability 0, which is the same, and nothing is added.)

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K]; no gradient flows into them.
        labels: [B], int64.
        cost: [K, K], symmetric, of moving probability from class to class, in [0, 1].
        target_weight: of the label's term.
        transport_weight: λ.
        temperature: T > 0, of the other classes.
        regularization: η ≥ 0.02; of a smaller one the kernel exp(−cost/η) leaves float32.
        iterations: of Sinkhorn, ≥ 1; the gradient passes through them.
    """
    check_logits(student_logits, teacher_logits)
    teacher_logits = teacher_logits.detach()
    belief = of_label(log_probabilities(teacher_logits), labels).exp()
    target = -(belief * of_label(log_probabilities(student_logits), labels)).mean()
    others = torch.arange(cost.shape[0], device=labels.device) != labels[:, None]
    student, teacher = (_softened(logits, others, temperature) for logits in (student_logits, teacher_logits))
    moved = transport_cost(student, teacher, others, cost, regularization, iterations).mean()
    return target_weight * target + transport_weight * moved


def transport_cost(
    student: Tensor, teacher: Tensor, others: Tensor, cost: Tensor, regularization: float, iterations: int
) -> Tensor:
    """Cost [B] of the entropic plan between probabilities [B, K] that are 0 but for the `others` [B, K], bool.

    Of the two sides the last iteration meets the student's exactly.
    """
    kernel = (-cost.to(student.dtype) / regularization).exp()
    ours = others.to(student.dtype)
    for _ in range(iterations):
        theirs = teacher / inner_products(ours, kernel)
        ours = student / inner_products(theirs, kernel)
    return (ours * inner_products(theirs, cost * kernel)).sum(dim=1)


def class_cost(weight: Tensor, sharpness: float) -> Tensor:
    """1 − exp(−κ · (1 − cosine)) of the rows of a classifier's weights [K, D]: [K, K], in [0, 1], 0 on the diagonal."""
    rows = unit(at_least_float32(weight.detach()))
    distance = (1 - inner_products(rows, rows)).clamp_min(0).fill_diagonal_(0)
    return -torch.expm1(-sharpness * distance)


def _softened(logits: Tensor, others: Tensor, temperature: float) -> Tensor:
    """Probabilities of the `others`, 0 elsewhere, [B, K]."""
    return (at_least_float32(logits) / temperature).masked_fill(~others, -torch.inf).softmax(dim=1)


@LOSSES.register("wkd_l")
class WKDL(Method):
    """Lv, Yang, Li 2024, arXiv:2412.08139: probability is moved between classes, and near classes are cheap.

    How near two classes are is read from the teacher once: by the cosine of their rows in its classifier, which is one
    of the two choices of the authors' code. (The other, which the paper prefers, is centred kernel alignment of the
    features of all training images; it depends on the order in which the images of a class are counted.)

    The numbers are those of a public copy of the authors' code, resnet32x4 → resnet8x4 on CIFAR-100; another state of
    it has λ = 600. There λ falls along a cosine from epoch 150 of 240 on; here it stays.

    Args:
        target_weight: ≥ 0, of the label's term.
        transport_weight: λ ≥ 0, of the other classes.
        temperature: T > 0, of the other classes.
        sharpness: κ > 0: a cost is 1 − exp(−κ · (1 − cosine)).
        regularization: η ≥ 0.02, of the plan's entropy.
        iterations: of Sinkhorn, ≥ 1.

    Raises:
        ValueError: a number outside its range, or a teacher that publishes no linear classifier.
    """

    cost: Tensor = field(init=False)  # [K, K]; made of the teacher again by who resumes

    target_weight: NonNegative = 1.0
    transport_weight: NonNegative = 800.0
    temperature: Positive = 8.0
    sharpness: Positive = 1.0
    regularization: Regularization = 0.05
    iterations: Count = 10

    def bind(self, student: Outputs, teacher: Outputs, data: DataSpec) -> None:  # noqa: ARG002
        if not isinstance(teacher.classifier, nn.Linear):
            raise ValueError(
                "wkd_l reads from the teacher's linear classifier how near two classes are, and this teacher publishes "
                "none; an ensemble has none. Take loss=nkd"
            )
        self.register_buffer("cost", class_cost(teacher.classifier.weight, self.sharpness), persistent=False)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        weights = self.target_weight, self.transport_weight, self.temperature
        plan = self.regularization, self.iterations
        return wkd_l_loss(student.logits, teacher.logits, batch.labels, self.cost, *weights, *plan)
