"""Networks that were made for large images, on small ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kd_cli import console
from kd_cli.errors import offer
from kd_cli.taps import GROUPS, Tapped, published_taps

_LARGEST = 64  # pixels of a side, up to which an image is small
_LEAST = 16  # and from which on it is more than a digit of 8×8
_PATCHES = 7  # of a side, as ImageNet's networks have at the end


def note_stem(role: str, options: Mapping[str, Any], network: nn.Module, images: Tensor) -> None:
    """A notice where little is left of small images before a network's first stage, or at its end.

    That is a convolution with stride 2 and a pooling, or patches of 4 pixels and more, behind which further stages
    halve the map; or fewer than 7×7 tokens. The right stem for 32 pixels was worth 5 points and more on CIFAR-10, where
    methods of distillation gained 0.3 at the most (arXiv:2605.31191).

    Args:
        role: the configuration key of the network.
        options: of the network.
        images: as all networks see them, [B, C, H, W].
    """
    shown = getattr(network, "seen_as", None)
    side = min((shown and shown.sides) or images.shape[2:])
    if not _LEAST <= side <= _LARGEST or not any(tap.startswith(GROUPS["stages"]) for tap in published_taps(network)):
        return
    sizes = _sizes(network, images)
    first, last = sizes[0], sizes[-1]
    large = first < _PATCHES if first == last else 4 * first <= side or last == 1
    if not large:
        return
    seen = ", ".join(f"{size}×{size}" for size in dict.fromkeys(sizes))
    console.notice(
        f"{role}={options['name']} is made for larger images: of {side}×{side} pixels its stages see {seen}, and that "
        f"usually costs more accuracy than distillation gains; {_remedy(role, options, network, side, first == last)}"
    )


def _sizes(network: nn.Module, images: Tensor) -> list[int]:
    """Pixels of the shorter side of each stage's map, from shallow to deep."""
    was_training = network.training
    with torch.no_grad():
        features = Tapped(network.eval(), ["stages"])(images[:1]).features
    network.train(was_training)
    return [min(feature.shape[2:]) for feature in features.values() if feature.dim() == 4] or [_LARGEST]


def _remedy(role: str, options: Mapping[str, Any], network: nn.Module, side: int, one_size: bool) -> str:
    if options.get("stem") == "imagenet" and type(network).__name__ == "ResNet":
        return f"type {offer(f'{role}.stem', 'cifar')}"
    if "patch_size" in options:
        most = side // _PATCHES if one_size else side // 16
        size = max(each for each in range(1, max(most, 1) + 1) if side % each == 0)
        return f"type {offer(f'{role}.patch_size', size)}"
    larger, other = offer(f"{role}.image_size", 4 * side), offer(role, "resnet18")
    return f"type {larger}, and it is shown the same images enlarged, or a network for small images, {other}"
