"""Residual networks for 32×32 images: in the sizes of the distillation literature, and ImageNet's with another stem."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, cast

from torch import Tensor, nn
from torch.nn import functional as F

from kd_cli.models.base import MODELS
from kd_cli.models.layers import conv, conv_bn, initialise, register_sizes, stage

NARROW = (16, 16, 32, 64)
TIMES4 = (32, 64, 128, 256)


class ResNet(nn.Module):
    """He et al. 2015, arXiv:1512.03385, §4.2, of depth 6n + 2.

    The paper's shortcuts are free of parameters (option A), and so are those of published CIFAR-10 weights; the
    distillation literature (Tian et al. 2019, arXiv:1910.10699) has a 1×1 convolution with BatchNorm wherever the shape
    changes (option B).
    Taps: `stage1`…`stage3` [B, C, H, W] at full, half and quarter size, after the ReLU; `preact1`…`preact3` before
    it; `embedding` [B, D].

    Args:
        depth: layers, 6n + 2.
        widths: channels of the first convolution and of the three stages.
        shortcut: where the shape changes, as He et al. call it.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        *,
        depth: int,
        widths: Sequence[int] = NARROW,
        shortcut: Literal["A", "B"] = "B",
    ) -> None:
        super().__init__()
        blocks, block = (depth - 2) // 6, partial(BasicBlock, shortcut=shortcut)
        self.conv1 = conv(in_channels, widths[0], 3)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.layer1 = stage(block, blocks, widths[0], widths[1], 1)
        self.layer2 = stage(block, blocks, widths[1], widths[2], 2)
        self.layer3 = stage(block, blocks, widths[2], widths[3], 2)
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

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: str = "B") -> None:
        super().__init__()
        self.conv1 = conv(in_channels, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = conv(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = nn.Sequential()
        if stride != 1 or in_channels != channels:
            padded = (Padded(stride, channels - in_channels),)
            self.downsample.extend(padded if shortcut == "A" else conv_bn(in_channels, channels, 1, stride))
        self.relu2 = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """[B, C_in, H, W] → [B, C, H / stride, W / stride]."""
        residual = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(features)))))
        return cast(Tensor, self.relu2(residual + self.downsample(features)))


class Padded(nn.Module):
    """Option A: every `stride`-th pixel, with channels of zeros before and behind.

    Args:
        channels: how many are new. The paper does not say where they are; published weights have half of them on each
            side.
    """

    def __init__(self, stride: int, channels: int) -> None:
        super().__init__()
        self.stride, self.before, self.behind = stride, channels // 2, channels - channels // 2

    def forward(self, features: Tensor) -> Tensor:
        """[B, C_in, H, W] → [B, C_in + channels, H / stride, W / stride]."""
        kept = features[:, :, :: self.stride, :: self.stride]
        return F.pad(kept, (0, 0, 0, 0, self.before, self.behind))


_DEPTHS = (8, 14, 20, 32, 44, 56, 110)

register_sizes(
    ResNet,
    {
        **{f"resnet{depth}": {"depth": depth} for depth in _DEPTHS},
        **{f"resnet{depth}_a": {"depth": depth, "shortcut": "A"} for depth in _DEPTHS if depth >= 20},
        "resnet8x4": {"depth": 8, "widths": TIMES4},
        "resnet32x4": {"depth": 32, "widths": TIMES4},
    },
)


def _for_imagenet(model: str) -> Callable[..., nn.Module]:
    def build(
        num_classes: int, in_channels: int, image_size: int, *, stem: Literal["cifar", "imagenet"] = "cifar"
    ) -> nn.Module:
        """Torchvision's, He et al. 2015, arXiv:1512.03385, table 1.

        Taps: `stage1`…`stage4` [B, C, H, W] at full to an eighth of the size (with ImageNet's stem at a quarter of
        those), after the ReLU; `preact1`…`preact4` before it; `embedding` [B, D].

        Args:
            stem: `cifar`: a 3×3 convolution; `imagenet`: 7×7 at stride 2 and a max pooling.
        """
        from kd_cli.models.torchvision import torchvision

        network = torchvision(num_classes, in_channels, image_size, model=model, stem=stem)
        for module in network.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False  # what a tap has read stays what it was
        return network

    build.__qualname__ = model  # the registry tells two components of one name apart by it
    return build


for _name in ("resnet18", "resnet34", "resnet50"):
    MODELS.register(_name)(_for_imagenet(_name))
