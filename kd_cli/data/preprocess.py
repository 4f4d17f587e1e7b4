"""From uint8 pixels to what a network sees: augmentation, then normalisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kd_cli.data.augment import Augment, Spec
from kd_cli.errors import ConfigError

# Numbers that PyTorch does not yet share among threads, which it does from 2**15 on: photographs are normalised while
# processes decode others on the same cores, and threads would wait for each other to get one.
_PIECE = 2**15 - 2**6


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
        if device.type == "cpu" and scale.numel() > _PIECE:
            made = torch.empty(pixels.shape)
            for some, out in zip(pixels, made, strict=True):
                pieces = (each.flatten().split(_PIECE) for each in (some, out, scale, bias))
                for values, its, factor, shift in zip(*pieces, strict=True):
                    its.copy_(values).mul_(factor).add_(shift)
            return made.permute(0, 3, 1, 2)
        return pixels.float().mul_(scale).add_(bias).permute(0, 3, 1, 2)


def _per_channel(option: str, values: Sequence[float], channels: int) -> list[float]:
    if len(values) not in (1, channels):
        example = ",".join(["0.5"] * channels)
        raise ConfigError(
            f"dataset.{option}={list(values)} has {len(values)} numbers, the images have {channels} channels; "
            f"type dataset.{option}=[{example}]"
        )
    return [float(value) for value in values] * (channels if len(values) == 1 else 1)
