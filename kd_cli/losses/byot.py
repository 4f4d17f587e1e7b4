"""Be your own teacher: Zhang et al. 2019, arXiv:1905.08094."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_cli.losses.adapters import check_maps
from kd_cli.losses.base import LOSSES, Method
from kd_cli.losses.common import at_least_float32
from kd_cli.losses.kd import kd_loss
from kd_cli.ranges import NonNegative, Positive
from kd_cli.taps import select
from kd_cli.types import Batch, DataSpec, Outputs


def feature_loss(feature: Tensor, deepest_feature: Tensor) -> Tensor:
    """Zhang et al. 2019: squared distance of an exit's feature from the deepest one, mean over the batch.

    (The authors' code takes the distance itself, over the whole batch. The paper's square, followed here, does not
    depend on the batch size.)

    Args:
        feature: [B, D].
        deepest_feature: [B, D]; no gradient flows into it.
    """
    return (at_least_float32(feature) - at_least_float32(deepest_feature).detach()).square().sum(dim=1).mean()


class Exit(nn.Module):
    """An early classifier: a convolution, the mean over positions, a feature as wide as the deepest one, the logits.

    Groups are normalised, and not the batch: one image with a map of one pixel is enough for it.
    """

    def __init__(self, channels: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=False)
        self.norm = nn.GroupNorm(1, channels)
        self.feature = nn.Linear(channels, width)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Maps [B, C, H, W] → logits [B, K] and feature [B, D]."""
        adapted = F.relu(self.norm(self.convolution(at_least_float32(maps))))
        feature = self.feature(adapted.mean(dim=(2, 3)))
        return self.classifier(feature), feature


@LOSSES.register("byot")
class BYOT(Method):
    """Zhang et al. 2019, arXiv:1905.08094: early exits learn from the labels and from the deepest exit; no teacher.

    Every tap but the last one gets an exit. The deepest exit is the student itself: it learns from the labels alone,
    and what the others learn reaches the layers that they share. The exits are not part of the deployed network.

    Args:
        temperature: T > 0, of the divergence. (No factor T², in paper and authors' code.)
        exit_ce_weight: of an exit's cross-entropy with the labels, ≥ 0; 1 − α in the paper.
        kl_weight: of its divergence from the deepest exit, ≥ 0; α.
        feature_weight: of the squared distance of its feature from the deepest one, ≥ 0; λ.
        taps: feature maps of the student, from shallow to deep; two at least.

    Raises:
        ValueError: a number outside its range, or one tap only.
    """

    teacher = "none"

    temperature: Positive = 3.0
    exit_ce_weight: NonNegative = 0.7
    kl_weight: NonNegative = 0.3
    feature_weight: NonNegative = 0.03
    taps: Sequence[str] = ("stages",)

    def bind(self, student: Outputs, teacher: Outputs, data: DataSpec) -> None:  # noqa: ARG002
        stages = select(student.features, self.taps)
        check_maps(*stages)
        if len(stages) < 2:
            raise ValueError(f"taps: {list(self.taps)} is one feature map; an exit needs a shallower one than the last")
        width = stages[-1].shape[1]
        self.exits = nn.ModuleList(Exit(maps.shape[1], width, data.num_classes) for maps in stages[:-1])

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        *stages, deepest = select(student.features, self.taps)
        wanted = student.logits.detach(), at_least_float32(deepest).mean(dim=(2, 3))
        terms = [
            self._exit_loss(leave, maps, *wanted, batch.labels) for leave, maps in zip(self.exits, stages, strict=True)
        ]
        return torch.stack(terms).sum()

    def _exit_loss(
        self, leave: nn.Module, maps: Tensor, deepest_logits: Tensor, deepest_feature: Tensor, labels: Tensor
    ) -> Tensor:
        """The three losses of one exit."""
        logits, feature = leave(maps)
        divergence = kd_loss(logits, deepest_logits, self.temperature, scale_by_t2=False)
        return (
            self.exit_ce_weight * F.cross_entropy(at_least_float32(logits), labels)
            + self.kl_weight * divergence
            + self.feature_weight * feature_loss(feature, deepest_feature)
        )
