"""Adversarial distillation: Xu, Hsu, Huang 2017, arXiv:1709.00513."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from kd_cli.losses.adapters import projection
from kd_cli.losses.base import LOSSES, Distiller, Features
from kd_cli.losses.common import at_least_float32, check_logits
from kd_cli.ranges import Count, NonNegative, Positive
from kd_cli.types import Batch, DataSpec, Outputs


def discriminator_loss(student_scores: Tensor, teacher_scores: Tensor) -> Tensor:
    """−log D(teacher) − log(1 − D(student)), mean over the batch; D is the sigmoid of a score.

    Args:
        student_scores: [B].
        teacher_scores: [B].
    """
    return F.softplus(-at_least_float32(teacher_scores)).mean() + F.softplus(at_least_float32(student_scores)).mean()


def fooling_loss(student_scores: Tensor) -> Tensor:
    """−log D(student), mean over the batch: small where the discriminator takes the student for the teacher.

    (The minimax game itself would have log(1 − D(student)), whose gradient vanishes where the student is found out.)

    Args:
        student_scores: [B].
    """
    return F.softplus(-at_least_float32(student_scores)).mean()


class Discriminator(nn.Module):
    """Three linear layers: a vector [B, D] → a score [B], high for the teacher, and logits [B, K] of the labels."""

    def __init__(self, width: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, 1 + num_classes),
        )

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        said = self.layers(vectors)
        return said[:, 0], said[:, 1:]


@LOSSES.register("adversarial")
class Adversarial(Features):
    """Xu, Hsu, Huang 2017, arXiv:1709.00513: a discriminator tells teacher from student, and the student fools it.

    It also has to name the label, so that a student cannot fool it by the teacher's answers to other images; and the
    student's vector shall be near its teacher's. One backward pass serves both sides: the student's terms see the
    discriminator without its gradient, the discriminator's loss sees both vectors without theirs.

    The discriminator is trained by an Adam optimizer of its own, at a constant rate; the paper updates the two sides in
    turn, here both move in the same step. It is not part of the deployed network.

    Args:
        discriminator_lr: > 0.
        hidden: width of the discriminator, ≥ 1.
        adversarial_weight: of fooling it, ≥ 0.
        label_weight: of the labels that it names, on its side and on the student's, ≥ 0.
        l1_weight: of the mean absolute difference of the vectors, ≥ 0.
        taps: what is told apart; none: the logits. A feature of the student is projected to its teacher's width.

    Raises:
        ValueError: a number outside its range, several taps, or logits of different classes.
    """

    discriminator_lr: Positive = 0.001
    hidden: Count = 128
    adversarial_weight: NonNegative = 1.0
    label_weight: NonNegative = 1.0
    l1_weight: NonNegative = 1.0
    taps: Sequence[str] = ()

    def __post_init__(self) -> None:
        Distiller.__init__(self, self.taps or None, self.teacher_taps)
        self.whole_logits = not self.taps

    def bind(self, student: Outputs, teacher: Outputs, data: DataSpec) -> None:
        ours, theirs = self._pair(student, teacher)
        if not self.taps:
            check_logits(ours, theirs)
        width = theirs.shape[1]
        self.projection = projection(ours, width) if self.taps else nn.Identity()
        self.discriminator = Discriminator(width, self.hidden, data.num_classes)

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Adam with the β₁ = 0.5 that is usual for discriminators: Radford et al. 2016, arXiv:1511.06434."""
        parameters = list(self.discriminator.parameters())
        device = parameters[0].device.type
        fused = {"fused": device in ("cpu", "cuda"), "capturable": device == "cuda"}
        return [torch.optim.Adam(parameters, lr=self.discriminator_lr, betas=(0.5, 0.999), **fused)]

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        ours, theirs = self._pair(student, teacher)
        ours, theirs = self.projection(ours), theirs.detach()
        return self._student_loss(ours, theirs, batch.labels) + self._discriminator_loss(ours, theirs, batch.labels)

    def _pair(self, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
        """The two vectors [B, D]."""
        pairs = self.pairs(student, teacher) or [(student.logits, teacher.logits)]
        if len(pairs) != 1:
            raise ValueError(f"taps: {list(self.taps)} are {len(pairs)} features; one can be told apart")
        ours, theirs = pairs[0]
        return at_least_float32(ours).flatten(1), at_least_float32(theirs).flatten(1)

    def _student_loss(self, ours: Tensor, theirs: Tensor, labels: Tensor) -> Tensor:
        frozen = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        scores, named = functional_call(self.discriminator, frozen, (ours,))
        return (
            self.adversarial_weight * fooling_loss(scores)
            + self.label_weight * F.cross_entropy(at_least_float32(named), labels)
            + self.l1_weight * F.l1_loss(at_least_float32(ours), theirs)
        )

    def _discriminator_loss(self, ours: Tensor, theirs: Tensor, labels: Tensor) -> Tensor:
        scores, named = self.discriminator(torch.cat([ours.detach(), theirs]))
        our_scores, their_scores = scores.chunk(2)
        naming = F.cross_entropy(at_least_float32(named), labels.repeat(2))
        return discriminator_loss(our_scores, their_scores) + self.label_weight * naming
