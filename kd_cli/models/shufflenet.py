"""ShuffleNet v1 and v2 for 32×32 images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from kd_cli.models.base import MODELS
from kd_cli.models.layers import conv_bn, stage

_BLOCKS = (4, 8, 4)  # per stage, of both versions
_STEM = 24  # channels
_GROUPS = 3  # of version 1


class ShuffleNet(nn.Module):
    """A stem, three stages of blocks, a 1×1 convolution where there is one, a global average and a linear classifier.

    Against the papers, as in the distillation literature (Tian et al. 2019, arXiv:1910.10699): the first convolution is
    1×1 with stride 1 and no pooling follows it. Initial weights are PyTorch's defaults, there too.

    Args:
        block: makes one block from its input channels, output channels and stride.
        channels: of the stem and of the three stages; the first block of a stage halves the size.
        last: channels of the 1×1 convolution behind the stages; None has none.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        *,
        block: Callable[[int, int, int], nn.Module],
        channels: Sequence[int],
        last: int | None = None,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(in_channels, channels[0], 1), nn.ReLU())
        sizes = zip(_BLOCKS, pairwise(channels), strict=True)
        self.stages = nn.Sequential(*(stage(block, blocks, *pair, stride=2) for blocks, pair in sizes))
        self.head = nn.Sequential(*conv_bn(channels[-1], last, 1), nn.ReLU()) if last else nn.Sequential()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(last or channels[-1], num_classes)
        self.taps = {f"stage{i + 1}": f"stages.{i}" for i in range(3)} | {"final": "pool:in", "embedding": "fc:in"}

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.fc(self.pool(self.head(self.stages(self.stem(images)))).flatten(1)))


@MODELS.register("shufflenetv1")
def shufflenetv1(num_classes: int, in_channels: int) -> ShuffleNet:
    """Zhang et al. 2017, arXiv:1707.01083, with 3 groups.

    Taps: `stage1`…`stage3` [B, C, H, W] at a half, quarter and eighth of the size; `preact1`…`preact3` before the ReLU;
    `embedding` [B, 960].
    """
    network = ShuffleNet(num_classes, in_channels, block=ShuffleBlock, channels=(_STEM, 240, 480, 960))
    network.taps |= {f"preact{i + 1}": f"stages.{i}.{blocks - 1}.relu:in" for i, blocks in enumerate(_BLOCKS)}
    return network


@MODELS.register("shufflenetv2")
def shufflenetv2(num_classes: int, in_channels: int) -> ShuffleNet:
    """Ma et al. 2018, arXiv:1807.11164, of width 1.

    Taps: `stage1`…`stage3` [B, C, H, W] at a half, quarter and eighth of the size; `embedding` [B, 1024].
    """
    return ShuffleNet(num_classes, in_channels, block=_block_v2, channels=(_STEM, 116, 232, 464), last=1024)


class ShuffleBlock(nn.Module):
    """Version 1: grouped 1×1 convolution, shuffle, 3×3 convolution per channel, grouped 1×1 convolution.

    At stride 2 the averaged input is appended instead of added.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        made = channels - in_channels if stride == 2 else channels
        middle = made // 4
        groups = 1 if in_channels == _STEM else _GROUPS  # the paper's exception: too few channels to be grouped
        self.residual = nn.Sequential(
            *conv_bn(in_channels, middle, 1, groups=groups),
            nn.ReLU(),
            Shuffle(groups),
            *conv_bn(middle, middle, 3, stride, groups=middle),
            nn.ReLU(),
            *conv_bn(middle, made, 1, groups=_GROUPS),
        )
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None
        self.relu = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """[B, C_in, H, W] → [B, C, H / stride, W / stride]."""
        residual = self.residual(features)
        if self.pool is None:
            return cast(Tensor, self.relu(residual + features))
        return cast(Tensor, self.relu(torch.cat([residual, self.pool(features)], 1)))


class SplitBlock(nn.Module):
    """Version 2: half of the channels passes by, the other half is convolved, then both are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolved = _branch_v2(channels // 2, channels // 2, 1)
        self.shuffle = Shuffle(2)

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, H, W]."""
        left, right = features.chunk(2, 1)
        return cast(Tensor, self.shuffle(torch.cat([left, self.convolved(right)], 1)))


class DownBlock(nn.Module):
    """Version 2, stride 2: two convolved branches of the whole input, shuffled."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.left = nn.Sequential(
            *conv_bn(in_channels, in_channels, 3, 2, groups=in_channels), *conv_bn(in_channels, half, 1), nn.ReLU()
        )
        self.right = _branch_v2(in_channels, half, 2)
        self.shuffle = Shuffle(2)

    def forward(self, features: Tensor) -> Tensor:
        """[B, C_in, H, W] → [B, C, H / 2, W / 2]."""
        return cast(Tensor, self.shuffle(torch.cat([self.left(features), self.right(features)], 1)))


class Shuffle(nn.Module):
    """Channel c of group g becomes channel g of group c."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, H, W]."""
        grouped: Tensor = features.unflatten(1, (self.groups, -1))  # [B, G, C / G, H, W]
        return grouped.transpose(1, 2).flatten(1, 2)


def _block_v2(in_channels: int, channels: int, stride: int) -> nn.Module:
    return DownBlock(in_channels, channels) if stride == 2 else SplitBlock(channels)


def _branch_v2(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        *conv_bn(in_channels, channels, 1),
        nn.ReLU(),
        *conv_bn(channels, channels, 3, stride, groups=channels),
        *conv_bn(channels, channels, 1),
        nn.ReLU(),
    )
