"""What several families share: convolution with BatchNorm, perceptrons, patches, first weights, names by size."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

from torch import Tensor, nn

from kd_cli.models.base import MODELS


def conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the size at stride 1: [B, C_in, H, W] → [B, C_out, H, W]."""
    return nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False
    )


def conv_bn(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """A convolution and its batch normalisation, to be put into a Sequential."""
    return conv(in_channels, out_channels, kernel_size, stride, groups), nn.BatchNorm2d(out_channels)


def stage(
    block: Callable[[int, int, int], nn.Module], blocks: int, in_channels: int, channels: int, stride: int
) -> nn.Sequential:
    """Blocks of one size, of which the first changes it: [B, C_in, H, W] → [B, C, H / stride, W / stride].

    Args:
        block: makes one from its input channels, output channels and stride.
    """
    return nn.Sequential(
        block(in_channels, channels, stride), *(block(channels, channels, 1) for _ in range(blocks - 1))
    )


def hidden_layers(widths: Sequence[int], dropout: float, *, dropout_first: bool) -> nn.Sequential:
    """Linear layers, each with a ReLU and a dropout behind it: [B, widths[0]] → [B, widths[-1]].

    Args:
        dropout: probability of zeroing a unit; 0 leaves the layer out.
        dropout_first: before the ReLU instead of behind it.

    Raises:
        ValueError: a dropout outside 0…1.
    """
    layers = nn.Sequential()
    for width, next_width in pairwise(widths):
        after = [nn.ReLU(), nn.Dropout(dropout)] if dropout else [nn.ReLU()]
        layers.append(nn.Linear(width, next_width))
        layers.extend(reversed(after) if dropout_first else after)
    return layers


def initialise(network: nn.Module, linear_std: float | None = None) -> None:
    """He initialisation, arXiv:1502.01852: convolutions normal with fan-out, their biases 0; BatchNorm is born 1 and 0.

    Args:
        linear_std: standard deviation of the linear layers' weights, with biases 0; None leaves PyTorch's defaults.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            # the literature counts the fan-out of all groups together
            fan_out = math.prod(module.kernel_size) * module.out_channels
            _normal(module, math.sqrt(2 / fan_out))
        elif isinstance(module, nn.Linear) and linear_std is not None:
            _normal(module, linear_std)


def _normal(layer: nn.Conv2d | nn.Linear, std: float) -> None:
    nn.init.normal_(layer.weight, 0.0, std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def register_sizes(network: Callable[..., nn.Module], sizes: Mapping[str, Mapping[str, Any]]) -> None:
    """Registers one family under a name per size: name → the arguments that make it."""
    for name, size in sizes.items():
        MODELS.register(name)(_sized(network, f"{network.__qualname__}.{name}", size))


def _sized(network: Callable[..., nn.Module], qualname: str, size: Mapping[str, Any]) -> Callable[..., nn.Module]:
    def build(num_classes: int, in_channels: int) -> nn.Module:
        return network(num_classes, in_channels, **size)

    # the registry tells two components of one name apart by these
    build.__module__, build.__qualname__ = network.__module__, qualname
    return build


class MLP(nn.Sequential):
    """Two layers and a GELU between them: [*, D] → [*, D]."""

    def __init__(self, width: int, hidden: int) -> None:
        named = {"fc1": nn.Linear(width, hidden), "act": nn.GELU(), "fc2": nn.Linear(hidden, width)}
        super().__init__(OrderedDict(named))


class Patches(nn.Module):
    """One token for each square of pixels: [B, C, H, W] → [B, N, D]."""

    def __init__(self, in_channels: int, width: int, size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, size, size)

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.proj(images).flatten(2).transpose(1, 2))


def patches_of(image_size: int, in_channels: int, width: int, size: int | None, *, small: int) -> tuple[Patches, int]:
    """The layer that makes an image D = `width` numbers for each of its N patches, and N. As `patch_size_for`."""
    size = patch_size_for(image_size, size, large=16, small=small)
    return Patches(in_channels, width, size), (image_size // size) ** 2


def patch_size_for(image_size: int, size: int | None, *, large: int, small: int) -> int:
    """Pixels of a patch's side: `size`; where none is given, `large` for images of 128 pixels and more, else `small`.

    Raises:
        ValueError: the image is no whole number of patches.
    """
    size = size or (large if image_size >= 128 else small)
    if image_size % size:
        other = max(each for each in range(1, min(size, image_size) + 1) if image_size % each == 0)
        raise ValueError(
            f"patch_size: images of {image_size} pixels are no whole number of patches of {size}; type "
            f"student.patch_size={other} (teacher.patch_size={other} for a teacher)"
        )
    return size
