"""What makes features of two networks comparable: a learned projection, and the smaller of two sizes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def projection(feature: Tensor, channels: int) -> nn.Module:
    """A layer without bias that gives `feature` another number of channels; it is learned with the student.

    Args:
        feature: an example, [B, C, H, W] (1×1 convolution) or [B, D] (linear layer).
        channels: that it shall have.

    Raises:
        ValueError: any other shape.
    """
    if feature.ndim == 4:
        return nn.Conv2d(feature.shape[1], channels, 1, bias=False)
    if feature.ndim == 2:
        return nn.Linear(feature.shape[1], channels, bias=False)
    raise ValueError(f"taps: a feature must be [B, C, H, W] or [B, D], not {list(feature.shape)}")


def same_size(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Two feature maps [B, C, H, W], averaged over areas to the smaller height and the smaller width of the two.

    Vectors [B, D] are left as they are.
    """
    if one.ndim != 4 or other.ndim != 4 or one.shape[2:] == other.shape[2:]:
        return one, other
    size = (min(one.shape[2], other.shape[2]), min(one.shape[3], other.shape[3]))
    return F.adaptive_avg_pool2d(one, size), F.adaptive_avg_pool2d(other, size)


def check_maps(*features: Tensor) -> None:
    """Refuses vectors where feature maps are needed.

    Raises:
        ValueError: unless every feature is [B, C, H, W].
    """
    for feature in features:
        if feature.ndim != 4:
            raise ValueError(f"taps: the method reads feature maps [B, C, H, W], not {list(feature.shape)}")
