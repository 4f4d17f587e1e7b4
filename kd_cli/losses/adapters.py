"""What makes features of two networks comparable: a learned projection, and the smaller of two sizes."""

from __future__ import annotations

from collections.abc import Sequence

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


def matching(student_feature: Tensor, teacher_feature: Tensor) -> nn.Module:
    """What gives the student's feature the teacher's channels: a projection, or nothing where it has as many."""
    channels = teacher_feature.shape[1]
    return nn.Identity() if student_feature.shape[1] == channels else projection(student_feature, channels)


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


def check_same_kind(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Refuses a map beside a vector.

    Raises:
        ValueError: unless student and teacher have as many dimensions in every pair.
    """
    for ours, theirs in pairs:
        if ours.ndim != theirs.ndim:
            raise ValueError(
                f"taps: {list(ours.shape)} of the student cannot be compared with {list(theirs.shape)} of the teacher; "
                "take two feature maps or two vectors"
            )


def check_positions(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Refuses maps of which normalising over positions would leave nothing: those of a single pixel.

    Raises:
        ValueError: unless all features are [B, C, H, W] and one pair at least has more than one position in common.
    """
    check_maps(*(feature for pair in pairs for feature in pair))
    if all(min(ours.shape[i], theirs.shape[i]) == 1 for ours, theirs in pairs for i in (2, 3)):
        raise ValueError(
            "taps: all maps are compared at a single pixel, where they are always alike; take shallower ones"
        )


def check_stages(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Refuses less than two stages where successive ones are compared.

    Raises:
        ValueError: unless there are two pairs at least, all of [B, C, H, W].
    """
    check_maps(*(feature for pair in pairs for feature in pair))
    if len(pairs) < 2:
        raise ValueError(f"taps: successive stages are compared, and both networks need two of them, not {len(pairs)}")
