"""Variational information distillation: Ahn et al. 2019, arXiv:1904.05835."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_cli.losses.adapters import check_same_kind, projection, same_size
from kd_cli.losses.base import LOSSES, Features
from kd_cli.losses.common import at_least_float32
from kd_cli.ranges import NonNegative, within
from kd_cli.types import Batch, DataSpec, Outputs

LEAST_VARIANCE = 1e-5  # ε of the paper, as in the usual code


def vid_loss(mean: Tensor, variance: Tensor, teacher_feature: Tensor) -> Tensor:
    """Ahn et al. 2019: negative log-likelihood of the teacher's feature under a Gaussian that the student predicts.

    It is (t − μ)² / 2σ² + ½ log σ², without the constant ½ log 2π, and it is negative where the student predicts well.

    Args:
        mean: μ, [B, C, H, W] or [B, C].
        variance: σ² of each channel, [C], > 0.
        teacher_feature: t, of the mean's shape; no gradient flows into it.

    Returns:
        Scalar, mean over batch, channels and positions. (The paper sums over channels and positions; the mean is what
        the usual weight is made for.)
    """
    if mean.shape != teacher_feature.shape:
        shapes = f"{list(mean.shape)} and {list(teacher_feature.shape)}"
        raise ValueError(f"taps: the predicted mean and the teacher's feature must have one shape, not {shapes}")
    spread = at_least_float32(variance)
    squares = (at_least_float32(teacher_feature.detach()) - at_least_float32(mean)).square()
    errors = squares.mean(dim=[axis for axis in range(squares.ndim) if axis != 1])  # of each channel, [C]
    return (errors / spread + spread.log()).mean() / 2


class Gaussian(nn.Module):
    """What the student knows of a teacher's feature: a mean for each image and a variance for each channel.

    Args:
        student_feature: an example, [B, C_s, H, W] or [B, D_s].
        teacher_feature: likewise; its channels are predicted.
        variance: of all channels before anything was learned, > `LEAST_VARIANCE`.
    """

    def __init__(self, student_feature: Tensor, teacher_feature: Tensor, variance: float) -> None:
        super().__init__()
        channels = teacher_feature.shape[1]
        self.mean = nn.Sequential(
            projection(student_feature, channels), nn.ReLU(), projection(teacher_feature, channels)
        )
        excess = variance - LEAST_VARIANCE
        raw = excess + math.log(-math.expm1(-excess))  # the inverse of softplus
        self.raw_variance = nn.Parameter(torch.full((channels,), raw))

    def forward(self, student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
        """`vid_loss` of a pair of any sizes; the larger map is averaged to the size of the smaller."""
        ours, theirs = same_size(at_least_float32(student_feature), at_least_float32(teacher_feature))
        return vid_loss(self.mean(ours), F.softplus(self.raw_variance) + LEAST_VARIANCE, theirs)


@LOSSES.register("vid")
class VID(Features):
    """Ahn et al. 2019, arXiv:1904.05835: the student keeps the information that the teacher's features hold.

    Summed over the stages. The mean is predicted by two learned 1×1 convolutions (of vectors linear layers) with a ReLU
    between them (the usual code has three and two), and without batch normalisation, which cannot learn from one image
    of one pixel. A loss below 0 is no error: it is a log-likelihood.

    Args:
        initial_variance: of every channel before the first step; it is learned. > 1e-5, which is the least.
        vid_weight: ≥ 0.
        taps: the student's features.
    """

    initial_variance: Annotated[float, within(above=1e-5)] = 5.0
    vid_weight: NonNegative = 1.0
    taps: Sequence[str] = ("stages",)

    def bind(self, student: Outputs, teacher: Outputs, data: DataSpec) -> None:  # noqa: ARG002
        pairs = self.pairs(student, teacher)
        check_same_kind(pairs)
        self.gaussians = nn.ModuleList(Gaussian(ours, theirs, self.initial_variance) for ours, theirs in pairs)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        pairs = self.pairs(student, teacher)
        terms = [gaussian(*pair) for gaussian, pair in zip(self.gaussians, pairs, strict=True)]
        return self.vid_weight * torch.stack(terms).sum()
