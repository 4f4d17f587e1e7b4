"""Wasserstein distance of feature distributions: Lv, Yang, Li 2024 (NeurIPS), arXiv:2412.08139."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kd_cli.losses.adapters import ConnectedMaps, area_mean, check_maps
from kd_cli.losses.base import LOSSES
from kd_cli.losses.common import at_least_float32
from kd_cli.ranges import Count, NonNegative
from kd_cli.types import Batch, Outputs

_EPSILON = 1e-5  # of the authors' code, added to a variance in front of its root: that of a dead channel is 0


def wkd_f_loss(
    student_maps: Tensor, teacher_maps: Tensor, mean_weight: float = 0.024, std_weight: float = 0.006, grid: int = 1
) -> Tensor:
    """Lv et al. 2024: squared 2-Wasserstein distance of two Gaussians, ‖μ_t − μ_s‖² and ‖δ_t − δ_s‖² weighed.

    μ and δ are the mean and the standard deviation of each channel over the positions of an area: the distance of
    Gaussians whose covariances are diagonal. The norms are sums over the channels; mean over areas and batch. (The
    paper's Gaussian is the most likely one, followed here: its variance divides by the number n of positions. The
    authors' code divides by n − 1, which for a single position is NaN, and for 64 makes δ 0.8 % larger.)

    Args:
        student_maps: [B, C, H_s, W_s].
        teacher_maps: [B, C, H_t, W_t], of any size; no gradient flows into them.
        mean_weight: of the means.
        std_weight: of the standard deviations.
        grid: the maps are cut into grid × grid areas.

    Raises:
        ValueError: unless both are maps of the same number of channels.
    """
    check_maps(student_maps, teacher_maps)
    if student_maps.shape[1] != teacher_maps.shape[1]:
        raise ValueError(
            f"taps: channels are compared one by one, and {student_maps.shape[1]} are not {teacher_maps.shape[1]}"
        )
    means, deviations = moments(student_maps, grid)
    with torch.no_grad():
        wanted_means, wanted_deviations = moments(teacher_maps, grid)
    of_means, of_deviations = (means - wanted_means).square(), (deviations - wanted_deviations).square()
    return mean_weight * of_means.sum(dim=1).mean() + std_weight * of_deviations.sum(dim=1).mean()


def moments(maps: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Means and standard deviations [B, C, grid, grid] of the areas of maps [B, C, H, W], in float32 at least."""
    maps = at_least_float32(maps)
    centre = maps.mean(dim=(2, 3), keepdim=True)
    centred = maps - centre  # or the difference of two large numbers would be what is left of a small variance
    size = (grid, grid)
    means = area_mean(centred, size)
    variances = area_mean(centred.square(), size) - means.square()
    # By a product, and not by a choice, so that a map that is not finite gives a loss that is not finite either.
    variances = variances * (variances > 0)  # rounding can take that of an even area below 0
    return means + centre, (variances + _EPSILON).sqrt()


@LOSSES.register("wkd_f")
class WKDF(ConnectedMaps):
    """Lv, Yang, Li 2024, arXiv:2412.08139: the student's features have the mean and the spread of the teacher's.

    A connector (1×1 convolution, batch normalisation) gives the student's maps the teacher's channels; their sizes need
    not agree. (The authors' connector ends with a ReLU; here it does not, because not every feature is positive.)
    Of a map with one position there is a mean only.

    The weights are those of the authors' code for resnet32x4 → resnet8x4 on CIFAR-100: 0.006, and 4 times that for the
    means. (For ResNet-34 → ResNet-18 on ImageNet it takes 0.02, and twice that for the means. On CIFAR-100 it lets them
    fall along a cosine from epoch 150 of 240 on; here they stay as they are.)

    Args:
        mean_weight: of the means, ≥ 0.
        std_weight: of the standard deviations, ≥ 0.
        grid: means and deviations are taken in grid × grid areas, ≥ 1.
        taps: the student's feature maps.
    """

    mean_weight: NonNegative = 0.024
    std_weight: NonNegative = 0.006
    grid: Count = 1
    taps: Sequence[str] = ("stage-1",)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        options = self.mean_weight, self.std_weight, self.grid
        terms = [wkd_f_loss(ours, theirs, *options) for ours, theirs in self.connected(student, teacher)]
        return torch.stack(terms).sum()
