"""Distilling knowledge via knowledge review: Chen et al. 2021, arXiv:2104.09044."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_cli.losses.adapters import Norm, area_mean, as_maps
from kd_cli.losses.base import LOSSES, Features
from kd_cli.losses.common import at_least_float32
from kd_cli.ranges import Count, NonNegative
from kd_cli.types import Batch, DataSpec, Outputs

_LEVELS = (4, 2, 1)  # sizes of the pooled maps, in pixels


def hcl_loss(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    """Chen et al. 2021, hierarchical context loss: mean squared distances of two maps and of their pooled versions.

    The maps themselves weigh 1, those pooled to 4, 2 and 1 pixels a half, a quarter and an eighth; sizes that the maps
    do not exceed are left out, and the sum is divided by the weights that are left. (The paper names the pyramid; the
    weights are those of the authors' code.)

    Args:
        student_feature: [B, C, H, W].
        teacher_feature: [B, C, H, W].
    """
    difference = at_least_float32(student_feature) - at_least_float32(teacher_feature)
    # Pooling is linear: the difference of two pooled maps is the pooled difference.
    levels = [level for level in _LEVELS if level < min(difference.shape[2:])]
    squares = [difference.square().mean(), *(area_mean(difference, (n, n)).square().mean() for n in levels)]
    weights = [2.0**-i for i in range(len(squares))]
    return torch.stack([weight * square for weight, square in zip(weights, squares, strict=True)]).sum() / sum(weights)


class Fusion(nn.Module):
    """Attention-based fusion (figure 3a of the paper): a stage's feature is reviewed with the deeper ones.

    Args:
        channels: of the student's stage.
        middle: of the fused map.
        out_channels: of the teacher's stage.
        deepest: there is nothing deeper to be fused with.
    """

    def __init__(self, channels: int, middle: int, out_channels: int, *, deepest: bool) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(channels, middle, 1, bias=False), Norm(middle))
        self.attention = None if deepest else nn.Conv2d(2 * middle, 2, 1)
        self.leave = nn.Sequential(nn.Conv2d(middle, out_channels, 3, padding=1, bias=False), Norm(out_channels))

    def forward(self, maps: Tensor, deeper: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """The stage's map and the fused map of the next deeper stage → the fused map, and what the teacher's map,
        of the given size, is compared with."""
        fused = self.enter(maps)
        if self.attention is not None and deeper is not None:
            own, other = self._attend(fused, deeper).sigmoid().chunk(2, dim=1)
            fused = own * fused + other * resized(deeper, fused.shape[2:])
        return fused, self.leave(resized(fused, size))

    def _attend(self, fused: Tensor, deeper: Tensor) -> Tensor:
        """The attention's layer on both features side by side, [B, 2, H, W].

        Each has weights of its own there: the deeper one's word is resized, and not the feature, which has more
        channels and need not be copied beside the other.
        """
        assert self.attention is not None
        for_fused, for_deeper = self.attention.weight.chunk(2, dim=1)
        said = resized(F.conv2d(deeper, for_deeper), fused.shape[2:])
        return F.conv2d(fused, for_fused, self.attention.bias) + said


def resized(maps: Tensor, size: torch.Size) -> Tensor:
    """Maps [B, C, H, W] of another size: averages over areas.

    Where the new size is a multiple of the old one, every pixel is repeated, which is the authors' interpolation.
    """
    return maps if maps.shape[2:] == size else area_mean(maps, (size[0], size[1]))


@LOSSES.register("reviewkd")
class ReviewKD(Features):
    """Chen et al. 2021, arXiv:2104.09044: a student's stage, fused with all deeper ones, learns the teacher's stage.

    From the deepest stage to the shallowest, each is fused with what the deeper ones became, and compared with the
    teacher's stage of the same rank. (The authors' code for CIFAR compares with the teacher's features before the last
    ReLU, and has the embedding as one more, deepest stage: taps=[stages,embedding] teacher_taps=[preacts,embedding].)

    Args:
        channels: of the fused maps at most, ≥ 1; never more than the student's deepest stage has.
        hcl_weight: of the sum over the stages, ≥ 0.
        taps: the student's features from shallow to deep, [B, C, H, W] or [B, D].
    """

    channels: Count = 512
    hcl_weight: NonNegative = 5.0
    taps: Sequence[str] = ("stages",)

    def bind(self, student: Outputs, teacher: Outputs, data: DataSpec) -> None:  # noqa: ARG002
        pairs = self._from_the_deepest(student, teacher)
        middle = min(self.channels, pairs[0][0].shape[1])
        self.fusions = nn.ModuleList(
            Fusion(ours.shape[1], middle, theirs.shape[1], deepest=not i) for i, (ours, theirs) in enumerate(pairs)
        )

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        losses, fused = [], None
        for fuse, (ours, theirs) in zip(self.fusions, self._from_the_deepest(student, teacher), strict=True):
            fused, compared = fuse(ours, fused, theirs.shape[2:])
            losses.append(hcl_loss(compared, theirs))
        return self.hcl_weight * torch.stack(losses).sum()

    def _from_the_deepest(self, student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
        """Maps of both networks; the teacher's without a gradient."""
        return [(as_maps(ours), as_maps(theirs).detach()) for ours, theirs in reversed(self.pairs(student, teacher))]
