"""VGG with BatchNorm for 32×32 images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

from torch import Tensor, nn

from kd_cli.models.layers import initialise, register_sizes

_POOLED = (1, 2, 3)  # stages that begin with a pooling


class VGG(nn.Module):
    """Simonyan & Zisserman 2014, arXiv:1409.1556, as the distillation literature has it.

    Against the paper: BatchNorm after every convolution, one linear classifier behind a global average, no pooling
    between the fourth and the fifth stage (Tian et al. 2019, arXiv:1910.10699).
    Taps: `stage1`…`stage5` [B, C, H, W] at full, half, quarter, eighth and eighth size, after the ReLU and before the
    pooling; `preact1`…`preact5` before the ReLU; `embedding` [B, 512].

    Args:
        widths: for each of the five stages the widths of its 3×3 convolutions.
    """

    def __init__(self, num_classes: int, in_channels: int, *, widths: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.stages = nn.Sequential()
        channels = in_channels
        for i, stage_widths in enumerate(widths):
            self.stages.append(_stage(channels, stage_widths, pool=i in _POOLED))
            channels = stage_widths[-1]
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        self.taps = {f"stage{i + 1}": f"stages.{i}" for i in range(len(widths))} | {"embedding": "fc:in"}
        self.taps |= {
            f"preact{i + 1}": f"stages.{i}.{3 * len(stage) - 1 + (i in _POOLED)}:in" for i, stage in enumerate(widths)
        }
        initialise(self, linear_std=0.01)

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.fc(self.pool(self.stages(images)).flatten(1)))


def _stage(in_channels: int, widths: Sequence[int], *, pool: bool) -> nn.Sequential:
    stage = nn.Sequential(nn.MaxPool2d(2)) if pool else nn.Sequential()
    for before, width in pairwise([in_channels, *widths]):
        stage.extend([nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()])
    return stage


register_sizes(
    VGG,
    {
        "vgg8": {"widths": ((64,), (128,), (256,), (512,), (512,))},
        "vgg11": {"widths": ((64,), (128,), (256, 256), (512, 512), (512, 512))},
        "vgg13": {"widths": ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512))},
    },
)
