"""From uint8 pixels to what a network sees: augmentation, then normalisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd_cli.data.augment import Augment, Spec
from kd_cli.errors import ConfigError

# Numbers of an image from which on a batch is normalised without threads (by numpy): photographs are normalised while
# processes decode others on the same cores, and threads wait for each other to get one.
_LARGE = 2**15
_ALIGNED = 64  # bytes


class Prepare:
    """Augments and normalises batches of one image shape.

    Args:
        augmentation: what is configured.
        mean: per channel, of values 0 … 1; one number serves all channels.
        std: likewise.
        image_shape: (H, W, C).
        cropped: windows are cut out where the images are decoded, not here.
        geometry: of image files, as a record has it.

    Raises:
        ConfigError: as `Augment`, and where mean or std have neither one number nor one per channel.
    """

    def __init__(
        self,
        augmentation: Spec,
        mean: Sequence[float],
        std: Sequence[float],
        image_shape: tuple[int, int, int],
        *,
        cropped: bool = False,
        geometry: Mapping[str, Any] | None = None,
    ) -> None:
        height, width, channels = image_shape
        self.augmentation = Augment(augmentation, image_shape, cropped=cropped)
        self.geometry = geometry or {}
        self.mean = _per_channel("mean", mean, channels)
        self.std = _per_channel("std", std, channels)
        self.image_size = (height, width)
        deviation = torch.tensor(self.std, dtype=torch.float64)
        # (x / 255 − mean) / std as x · scale + bias. Expanded to a whole image, so that the innermost loop is long.
        scale = (1 / (255 * deviation)).float().repeat(height, width, 1)
        bias = (-torch.tensor(self.mean, dtype=torch.float64) / deviation).float().repeat(height, width, 1)
        self._on_device = {scale.device: (scale, bias)}  # where a recorded step finds them, they stay

    def record(self) -> dict[str, Any]:
        """What was done to the images, as plain JSON values."""
        return {
            "mean": self.mean,
            "std": self.std,
            "augment": self.augmentation.recorded,
            "image_size": list(self.image_size),
            **self.geometry,
        }

    def table(self, size: int, seed: int, views: Sequence[int], device: torch.device) -> Tensor:
        """The random numbers of some views, for each a row for each training image: [views × N, columns]."""
        return torch.cat([self.augmentation.draw(size, seed, view) for view in views]).to(device)

    def made(self, pixels: Tensor, table: Tensor) -> Tensor:
        """[B, H, W, C], uint8, and their rows of the table → [B, C, H, W], augmented, normalised, not yet mixed."""
        return self.normalise(self.augmentation.apply(pixels, table))

    def normalise(self, pixels: Tensor) -> Tensor:
        """[B, H, W, C], uint8 → [B, C, H, W], float32, channels last in memory."""
        device = pixels.device
        if device not in self._on_device:
            scale, bias = next(iter(self._on_device.values()))
            self._on_device[device] = scale.to(device), bias.to(device)
        scale, bias = self._on_device[device]
        # Two steps, each rounded once: a fused kernel may round the tail of a batch otherwise than its body.
        if device.type == "cpu" and scale.numel() >= _LARGE:
            made = _room(pixels.shape)
            np.multiply(pixels.numpy(), scale.numpy(), out=made.numpy())
            np.add(made.numpy(), bias.numpy(), out=made.numpy())
            return made.permute(0, 3, 1, 2)
        return pixels.float().mul_(scale).add_(bias).permute(0, 3, 1, 2)


def _room(shape: Sequence[int]) -> Tensor:
    """Memory for a batch, float32, aligned as PyTorch has it.

    By numpy: PyTorch asks glibc for aligned memory, which does not find its own freed blocks again, and a process grew
    by a batch at each of its first steps.
    """
    count = prod(shape)
    spare = np.empty(count + _ALIGNED // 4, dtype=np.float32)
    first = -spare.ctypes.data % _ALIGNED // 4
    return torch.from_numpy(spare[first : first + count]).view(*shape)


def _per_channel(option: str, values: Sequence[float], channels: int) -> list[float]:
    if len(values) not in (1, channels):
        middle, spread = (",".join([each] * channels) for each in ("0.5", "0.25"))
        raise ConfigError(
            f"dataset.{option}={list(values)} has {len(values)} numbers, the images have {channels} channels; "
            f"type dataset.mean=[{middle}] dataset.std=[{spread}]"
        )
    return [float(value) for value in values] * (channels if len(values) == 1 else 1)
