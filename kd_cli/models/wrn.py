"""Wide residual networks for 32×32 images."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from kd_cli.models.layers import conv, initialise, register_sizes, stage


class WideResNet(nn.Module):
    """Zagoruyko & Komodakis 2016, arXiv:1605.07146: WRN-depth-width with pre-activation blocks, without dropout.

    Taps: `stage1`…`stage3` [B, C, H, W] at full, half and quarter size, before the next BatchNorm and ReLU (that is
    where a pre-activation block ends); `preact1`…`preact3` between those two; `embedding` [B, D].

    Args:
        depth: layers, 6n + 4.
        width: factor of the channels 16, 32, 64.
    """

    def __init__(self, num_classes: int, in_channels: int, *, depth: int, width: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = conv(in_channels, 16, 3)
        self.block1 = stage(WideBlock, blocks, 16, 16 * width, 1)
        self.block2 = stage(WideBlock, blocks, 16 * width, 32 * width, 2)
        self.block3 = stage(WideBlock, blocks, 32 * width, 64 * width, 2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64 * width, num_classes)
        self.taps = {f"stage{i}": f"block{i}" for i in (1, 2, 3)} | {"final": "pool:in", "embedding": "fc:in"}
        self.taps |= {"preact1": "block2.0.relu1:in", "preact2": "block3.0.relu1:in", "preact3": "relu:in"}
        initialise(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        features = self.block3(self.block2(self.block1(self.conv1(images))))
        return cast(Tensor, self.fc(self.pool(self.relu(self.bn1(features))).flatten(1)))


class WideBlock(nn.Module):
    """Two times BatchNorm, ReLU, 3×3 convolution. Where the shape changes, the shortcut starts after the first ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = conv(in_channels, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.conv2 = conv(channels, channels, 3)
        self.shortcut = None if in_channels == channels else conv(in_channels, channels, 1, stride)

    def forward(self, features: Tensor) -> Tensor:
        """[B, C_in, H, W] → [B, C, H / stride, W / stride]."""
        active = self.relu1(self.bn1(features))
        residual = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        return cast(Tensor, residual + (features if self.shortcut is None else self.shortcut(active)))


register_sizes(
    WideResNet,
    {
        "wrn_16_1": {"depth": 16, "width": 1},
        "wrn_16_2": {"depth": 16, "width": 2},
        "wrn_40_1": {"depth": 40, "width": 1},
        "wrn_40_2": {"depth": 40, "width": 2},
    },
)
