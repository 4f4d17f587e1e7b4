"""One for all, distillation across architectures: Hao et al. 2023 (NeurIPS), arXiv:2310.19444."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from kd_cli.losses.adapters import Norm, as_maps
from kd_cli.losses.base import LOSSES, Method
from kd_cli.losses.common import at_least_float32, check_logits, log_probabilities
from kd_cli.ranges import NonNegative, Positive
from kd_cli.taps import select
from kd_cli.types import Batch, DataSpec, Outputs


def ofa_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, epsilon: float = 1.5, temperature: float = 1.0
) -> Tensor:
    """Hao et al. 2023: −Σ_c w_c · log p_s(c), w of the label (1 + p_t)^ε − 1, of every other class p_t^ε.

    With ε = 1 that is `soft_ce`; a larger one lets a teacher that is sure of the label speak louder, and its other
    classes more quietly. (In the paper, eq. 6, the label has (1 + p_t)^ε and the others p_t. The authors' code,
    followed here, for their numbers are made with it, takes the label's share of 1 away, which is its cross-entropy and
    has a weight of its own, and raises the others to the power too.)

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K]; no gradient flows into them.
        labels: [B], int64.
        epsilon: ε > 0 (the paper's γ).
        temperature: T > 0; no factor T², in paper and code.

    Returns:
        Scalar, mean over the batch; a student that equals its teacher has a loss above 0.
    """
    check_logits(student_logits, teacher_logits)
    belief = log_probabilities(teacher_logits.detach(), temperature).exp()
    is_label = torch.arange(belief.shape[1], device=belief.device) == labels[:, None]
    weights = torch.where(is_label, (1 + belief) ** epsilon - 1, belief**epsilon)
    return -(weights * log_probabilities(student_logits, temperature)).sum(dim=1).mean()


class Halving(nn.Module):
    """Half the height and width by two separable convolutions, each with batch normalisation and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_separable(inputs, inputs, stride=2), *_separable(inputs, outputs, stride=1))

    def forward(self, maps: Tensor) -> Tensor:
        """[B, C_in, H, W] → [B, C_out, ⌈H/2⌉, ⌈W/2⌉]."""
        made: Tensor = self.layers(maps)
        return made


def _separable(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    by_channel = nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False)
    return [by_channel, nn.Conv2d(inputs, outputs, 1, bias=False), Norm(outputs), nn.ReLU()]


class Exit(nn.Module):
    """An early exit: what a stage says of the classes. It halves the maps once for each deeper stage that there is.

    Args:
        channels: of the stage.
        width: of the last map.
        halvings: of the maps; each but the last doubles the channels.
        num_classes: K.
    """

    def __init__(self, channels: int, width: int, halvings: int, num_classes: int) -> None:
        super().__init__()
        channels_of = [channels * 2**i for i in range(halvings)] + [width]
        blocks: list[nn.Module] = [Halving(ours, theirs) for ours, theirs in pairwise(channels_of)]
        self.blocks = nn.Sequential(*blocks or [nn.Conv2d(channels, width, 1)])
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, maps: Tensor) -> Tensor:
        """[B, C, H, W] → logits [B, K]."""
        logits: Tensor = self.classifier(self.blocks(at_least_float32(maps)).mean(dim=(2, 3)))
        return logits


@LOSSES.register("ofa")
class OFA(Method):
    """Hao et al. 2023, arXiv:2310.19444: every stage of the student says the classes, and hears the teacher's logits.

    Features of networks as unlike as a transformer and a convolutional network are not compared: an exit behind each
    stage brings the student's into the space of the logits. Nothing but logits is asked of the teacher, and the exits
    are not deployed. The student's own logits have the same loss.

    The exits are the authors' for convolutional students (separable convolutions, as many halvings as stages follow,
    average, linear layer), but as wide as the student's deepest stage, where theirs take the wider of both networks. A
    stage that is one pixel, or a vector, is projected and not halved.

    Args:
        epsilon: ε > 0. (1.5 is the authors' command for DeiT-T → ResNet-18; they tune it for each pair.)
        temperature: T > 0.
        exit_weight: of the sum over the exits, ≥ 0.
        logit_weight: of the student's own logits, ≥ 0.
        taps: stages of the student, from shallow to deep, [B, C, H, W] or [B, D].
    """

    epsilon: Positive = 1.5
    temperature: Positive = 1.0
    exit_weight: NonNegative = 1.0
    logit_weight: NonNegative = 1.0
    taps: Sequence[str] = ("stages",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.teacher_taps = ()

    def bind(self, student: Outputs, teacher: Outputs, data: DataSpec) -> None:
        check_logits(student.logits, teacher.logits)
        stages = [as_maps(feature) for feature in select(student.features, self.taps)]
        width = stages[-1].shape[1]
        self.exits = nn.ModuleList(
            Exit(maps.shape[1], width, deeper if max(maps.shape[2:]) > 1 else 0, data.num_classes)
            for maps, deeper in zip(stages, reversed(range(len(stages))), strict=True)
        )

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        options = teacher.logits, batch.labels, self.epsilon, self.temperature
        stages = zip(self.exits, select(student.features, self.taps), strict=True)
        exits = torch.stack([ofa_loss(leave(as_maps(feature)), *options) for leave, feature in stages]).sum()
        return self.exit_weight * exits + self.logit_weight * ofa_loss(student.logits, *options)
