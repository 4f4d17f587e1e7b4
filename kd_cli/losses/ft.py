"""Paraphrasing complex network: network compression via factor transfer: Kim et al. 2018, arXiv:1802.04977."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from kd_cli.losses.adapters import as_maps, same_size
from kd_cli.losses.base import LOSSES, Features
from kd_cli.losses.common import at_least_float32, unit
from kd_cli.ranges import NonNegative, Positive, Rule
from kd_cli.types import Batch, DataSpec, Outputs

_SLOPE = 0.1  # of every leaky ReLU, as in the authors' code


def ft_loss(student_factor: Tensor, teacher_factor: Tensor, power: int = 1) -> Tensor:
    """Kim et al. 2018: distance of two factors, each divided by its length.

    (The paper's norm is a sum, the authors' code, followed here, takes the mean over all numbers of a factor. The code
    of CRD, arXiv:1910.10699, first reduces each factor to its mean square over the channels.)

    Args:
        student_factor: [B, C, H, W].
        teacher_factor: [B, C, H, W].
        power: p, 1 or 2: of the differences.
    """
    student = unit(at_least_float32(student_factor).flatten(1))
    teacher = unit(at_least_float32(teacher_factor).flatten(1))
    return (student - teacher).abs().pow(power).mean()


def reconstruction_loss(reconstructed: Tensor, feature: Tensor) -> Tensor:
    """Kim et al. 2018, the paraphraser's own loss: mean squared difference of two [B, C, H, W]."""
    return (at_least_float32(reconstructed) - at_least_float32(feature)).square().mean()


def extractor(channels: int, factors: int) -> nn.Sequential:
    """Three 3×3 convolutions with leaky ReLU: [B, channels, H, W] → [B, factors, H, W]."""
    layers = nn.Sequential()
    for inputs, outputs in ((channels, channels), (channels, factors), (factors, factors)):
        layers.extend([nn.Conv2d(inputs, outputs, 3, padding=1), nn.LeakyReLU(_SLOPE)])
    return layers


def restorer(factors: int, channels: int) -> nn.Sequential:
    """Three 3×3 transposed convolutions with leaky ReLU, the way back: [B, factors, H, W] → [B, channels, H, W]."""
    layers = nn.Sequential()
    for inputs, outputs in ((factors, factors), (factors, channels), (channels, channels)):
        layers.extend([nn.ConvTranspose2d(inputs, outputs, 3, padding=1), nn.LeakyReLU(_SLOPE)])
    return layers


@LOSSES.register("ft")
class FT(Features):
    """Kim et al. 2018, arXiv:1802.04977: the student's translated feature learns the teacher's paraphrased one.

    The paraphraser is an autoencoder of the teacher's feature, and what is between its halves is the teacher's factor.
    The translator makes the student's factor. The larger of two factors is averaged to the smaller.

    The paper trains the paraphraser first and freezes it. Here it learns beside the student, from its reconstruction
    alone: no gradient of the factors' distance reaches it, and none of the reconstruction reaches the student.

    Args:
        power: p of the distance, 1 or 2.
        rate: k of the paper: the factors' share of the teacher's channels, > 0.
        ft_weight: of the distance of the factors, ≥ 0. (200 is that of CRD's comparison, for its reduced factors; the
            authors' code weighs the distance that is taken here by 500.)
        reconstruction_weight: of the paraphraser's own loss, > 0; of no use to the student but as a learning rate.
        taps: the student's feature, [B, C, H, W] or [B, D].
    """

    power: Annotated[int, Rule("1 or 2", lambda value: value in (1, 2))] = 1
    rate: Positive = 0.5
    ft_weight: NonNegative = 200.0
    reconstruction_weight: Positive = 1.0
    taps: Sequence[str] = ("stage-1",)

    def bind(self, student: Outputs, teacher: Outputs, data: DataSpec) -> None:  # noqa: ARG002
        pairs = [(as_maps(ours).shape[1], as_maps(theirs).shape[1]) for ours, theirs in self.pairs(student, teacher)]
        factors = [max(1, round(theirs * self.rate)) for _, theirs in pairs]
        self.translators = nn.ModuleList(extractor(ours, n) for (ours, _), n in zip(pairs, factors, strict=True))
        self.paraphrasers = nn.ModuleList(extractor(theirs, n) for (_, theirs), n in zip(pairs, factors, strict=True))
        self.restorers = nn.ModuleList(restorer(n, theirs) for (_, theirs), n in zip(pairs, factors, strict=True))

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        layers = zip(self.translators, self.paraphrasers, self.restorers, strict=True)
        losses = []
        for (translate, paraphrase, restore), pair in zip(layers, self.pairs(student, teacher), strict=True):
            ours, theirs = as_maps(pair[0]), as_maps(pair[1]).detach()
            factor = paraphrase(theirs)
            distance = ft_loss(*same_size(translate(ours), factor.detach()), self.power)
            restoring = reconstruction_loss(restore(factor), theirs)
            losses.append(self.ft_weight * distance + self.reconstruction_weight * restoring)
        return torch.stack(losses).sum()
