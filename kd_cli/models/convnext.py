"""ConvNeXt with a stem for small images."""

from __future__ import annotations

from typing import cast

from torch import nn

from kd_cli.models.base import MODELS
from kd_cli.models.layers import patch_size_for
from kd_cli.ranges import Count

_WIDTHS, _BLOCKS = (48, 96, 192, 384), (2, 2, 6, 2)  # Liu et al. 2022 have no smaller one than 96, 192, …: timm's femto


@MODELS.register("convnext_femto")
def convnext_femto(
    num_classes: int, in_channels: int, image_size: int, *, patch_size: Count | None = None
) -> nn.Module:
    """Liu et al. 2022, arXiv:2201.03545: torchvision's ConvNeXt in the size that timm calls femto.

    Taps: `stage1`…`stage4` [B, C, H, W] at the size divided by `patch_size`, and a half, quarter and eighth of that;
    `embedding`, the normalised average of the last one [B, D].

    Args:
        patch_size: pixels of a side that the first convolution makes one of; None: 4, of images below 128 pixels 2,
            below 32 pixels 1.

    Raises:
        ValueError: patches that do not fill the image, or are too few for four stages.
    """
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    size = patch_size_for(image_size, patch_size, large=4, small=2 if image_size >= 32 else 1)
    if image_size // size < 8:
        raise ValueError(
            f"patch_size: images of {image_size} pixels have {image_size // size} patches of {size} on a side, and "
            "three stages halve that; type student.patch_size=1 (teacher.patch_size=1 for a teacher), or larger images"
        )
    following = [*_WIDTHS[1:], None]
    settings = [CNBlockConfig(*each) for each in zip(_WIDTHS, following, _BLOCKS, strict=True)]
    network = cast(nn.Module, ConvNeXt(settings, num_classes=num_classes))
    first = nn.Conv2d(in_channels, _WIDTHS[0], size, size)
    nn.init.trunc_normal_(first.weight, std=0.02)  # as torchvision does
    nn.init.constant_(first.get_parameter("bias"), 0)
    network.set_submodule("features.0.0", first)
    taps = {f"stage{i}": f"features.{2 * i - 1}" for i in (1, 2, 3, 4)} | {"embedding": "classifier.2:in"}
    network.taps = taps  # type: ignore[assignment]
    return network
