"""Residual networks for 32×32 images, in the sizes of the distillation literature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from kd_cli.models.layers import conv, conv_bn, initialise, register_sizes, stage

NARROW = (16, 16, 32, 64)
TIMES4 = (32, 64, 128, 256)


class ResNet(nn.Module):
    """He et al. 2015, arXiv:1512.03385, §4.2, of depth 6n + 2.

    The paper's shortcuts are free of parameters (option A); the distillation literature (Tian et al. 2019,
    arXiv:1910.10699), followed here, has a 1×1 convolution with BatchNorm wherever the shape changes (option B).
    Taps: `stage1`…`stage3` [B, C, H, W] at full, half and quarter size, after the ReLU; `preact1`…`preact3` before
    it; `embedding` [B, D].

    Args:
        depth: layers, 6n + 2.
        widths: channels of the first convolution and of the three stages.
    """

    def __init__(self, num_classes: int, in_channels: int, *, depth: int, widths: Sequence[int] = NARROW) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = conv(in_channels, widths[0], 3)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.layer1 = stage(BasicBlock, blocks, widths[0], widths[1], 1)
        self.layer2 = stage(BasicBlock, blocks, widths[1], widths[2], 2)
        self.layer3 = stage(BasicBlock, blocks, widths[2], widths[3], 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[3], num_classes)
        self.taps = {f"stage{i}": f"layer{i}" for i in (1, 2, 3)} | {"embedding": "fc:in"}
        self.taps |= {f"preact{i}": f"layer{i}.{blocks - 1}.relu2:in" for i in (1, 2, 3)}
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        features = self.layer1(self.relu(self.bn1(self.conv1(images))))
        features = self.layer3(self.layer2(features))
        return cast(Tensor, self.fc(self.pool(features).flatten(1)))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = conv(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.downsample.extend(conv_bn(in_channels, channels, 1, stride))
        self.relu2 = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """[B, C_in, H, W] → [B, C, H / stride, W / stride]."""
        residual = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(features)))))
        return cast(Tensor, self.relu2(residual + self.downsample(features)))


register_sizes(
    ResNet,
    {
        "resnet8": {"depth": 8},
        "resnet14": {"depth": 14},
        "resnet20": {"depth": 20},
        "resnet32": {"depth": 32},
        "resnet44": {"depth": 44},
        "resnet56": {"depth": 56},
        "resnet110": {"depth": 110},
        "resnet8x4": {"depth": 8, "widths": TIMES4},
        "resnet32x4": {"depth": 32, "widths": TIMES4},
    },
)
