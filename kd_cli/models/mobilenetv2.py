"""MobileNetV2 for 32×32 images, half as wide."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from kd_cli.models.base import MODELS
from kd_cli.models.layers import conv_bn, initialise

# Table 2 of the paper at half width, cut where the size changes: (expansion, channels, blocks, stride)
_STAGES = (
    ((1, 8, 1, 1), (6, 12, 2, 1)),
    ((6, 16, 3, 2),),
    ((6, 32, 4, 2), (6, 48, 3, 1)),
    ((6, 80, 3, 2), (6, 160, 1, 1)),
)


@MODELS.register("mobilenetv2")
class MobileNetV2(nn.Module):
    """Sandler et al. 2018, arXiv:1801.04381, as the distillation literature has it (width 0.5, expansion 6).

    Against the paper: stride 1 in the second row of its table 2, ReLU instead of ReLU6, no dropout (Tian et al. 2019,
    arXiv:1910.10699). The first block keeps its 1×1 expansion by 1.
    Taps: `stage1`…`stage4` [B, C, H, W] at a half, quarter, eighth and sixteenth of the size; `embedding` [B, 1280].
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(in_channels, 16, 3, 2), nn.ReLU())
        self.stages = nn.Sequential()
        channels = 16
        for groups in _STAGES:
            self.stages.append(_stage(channels, groups))
            channels = groups[-1][1]
        self.head = nn.Sequential(*conv_bn(channels, 1280, 1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(1280, num_classes)
        self.taps = {f"stage{i + 1}": f"stages.{i}" for i in range(4)} | {"final": "pool:in", "embedding": "fc:in"}
        self.taps |= {f"preact{i + 1}": f"stages.{i}" for i in range(4)}  # a projection has no activation behind it
        initialise(self, linear_std=0.01)

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.fc(self.pool(self.head(self.stages(self.stem(images)))).flatten(1)))


class InvertedResidual(nn.Module):
    """1×1 expansion, 3×3 convolution per channel, 1×1 projection without activation; a shortcut where shapes allow."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = in_channels * expansion
        self.conv = nn.Sequential(
            *conv_bn(in_channels, wide, 1),
            nn.ReLU(),
            *conv_bn(wide, wide, 3, stride, groups=wide),
            nn.ReLU(),
            *conv_bn(wide, channels, 1),
        )
        self.adds = stride == 1 and in_channels == channels

    def forward(self, features: Tensor) -> Tensor:
        """[B, C_in, H, W] → [B, C, H / stride, W / stride]."""
        projected = self.conv(features)
        return cast(Tensor, features + projected if self.adds else projected)


def _stage(in_channels: int, groups: tuple[tuple[int, int, int, int], ...]) -> nn.Sequential:
    stage = nn.Sequential()
    for expansion, channels, blocks, stride in groups:
        for i in range(blocks):
            stage.append(InvertedResidual(in_channels, channels, 1 if i else stride, expansion))
            in_channels = channels
    return stage
