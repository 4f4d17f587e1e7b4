"""A comprehensive overhaul of feature distillation: Heo et al. 2019, arXiv:1904.01866."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kd_cli.losses.adapters import as_maps, connector, halving, same_size
from kd_cli.losses.base import LOSSES, Features
from kd_cli.losses.common import at_least_float32
from kd_cli.ranges import NonNegative
from kd_cli.types import Batch, DataSpec, Outputs


def ofd_loss(student_feature: Tensor, teacher_feature: Tensor, margin: Tensor) -> Tensor:
    """Heo et al. 2019: partial squared distance to the teacher's feature behind a margin ReLU.

    The target is max(teacher, margin). Where it is not positive, and the student is not above it, there is no loss:
    both are silent behind a ReLU, however far below zero the student is. Summed over channels and positions, mean over
    the batch.

    Args:
        student_feature: [B, C, H, W], before the ReLU, as a connector made it.
        teacher_feature: [B, C, H, W], before the ReLU.
        margin: [C, 1, 1], ≤ 0: the expected value of the teacher's negative responses in each channel.
    """
    student, teacher = at_least_float32(student_feature), at_least_float32(teacher_feature)
    target = torch.maximum(teacher, margin.to(teacher.dtype))
    counts = (target > 0) | (student > target)
    return torch.where(counts, (student - target).square(), 0.0).sum() / len(student)


class NegativeMean(nn.Module):
    """The mean of the negative values in each channel, over every batch that it was given in training mode."""

    mean: Tensor  # [C], 0 in a channel that never was negative
    count: Tensor  # [C], how many values that is the mean of

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("count", torch.zeros(channels))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps [B, C, H, W] → means [C, 1, 1], those of this batch included."""
        if self.training:
            self._add(at_least_float32(maps.detach()))
        return self.mean[:, None, None]

    def _add(self, maps: Tensor) -> None:
        added = (maps < 0).sum(dim=(0, 2, 3))
        total = maps.clamp(max=0).sum(dim=(0, 2, 3))
        self.count += added
        self.mean += (total - added * self.mean) / self.count.clamp(min=1)


@LOSSES.register("ofd")
class OFD(Features):
    """Heo et al. 2019, arXiv:1904.01866: pre-ReLU features, margin ReLU of the teacher's, partial squared distance.

    A connector (1×1 convolution, batch normalisation) gives the student's feature the teacher's channels; the larger of
    two maps is averaged to the smaller. Each tap counts half as much as the next deeper one, as in the authors' code.

    The margin of a channel is the expected value of the teacher's negative responses. The authors compute it from the
    BatchNorm in front of the ReLU, as if its output were normally distributed. Not every network has one there, so it
    is estimated here from the responses themselves: the mean over all training batches so far, the present one
    included. It settles within the first epoch, is saved with the checkpoints, and stands still in eval mode.

    Args:
        ofd_weight: ≥ 0.
        taps: the student's features before the last ReLU of each stage, [B, C, H, W] or [B, D].
    """

    ofd_weight: NonNegative = 1e-3
    taps: Sequence[str] = ("preacts",)

    def bind(self, student: Outputs, teacher: Outputs, data: DataSpec) -> None:  # noqa: ARG002
        pairs = [(as_maps(ours), as_maps(theirs)) for ours, theirs in self.pairs(student, teacher)]
        self.connectors = nn.ModuleList(connector(ours, theirs.shape[1]) for ours, theirs in pairs)
        self.margins = nn.ModuleList(NegativeMean(theirs.shape[1]) for _, theirs in pairs)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        losses = []
        for connect, margin, pair in zip(self.connectors, self.margins, self.pairs(student, teacher), strict=True):
            ours, theirs = as_maps(pair[0]), as_maps(pair[1]).detach()
            ours, theirs = same_size(connect(ours), theirs)
            losses.append(ofd_loss(ours, theirs, margin(theirs)))
        return self.ofd_weight * halving(losses)
