"""Pixels of another size or another number of channels than a network was made for. [B, H, W, C], uint8."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Mode = Literal["bilinear", "nearest"]


def fitted(pixels: Tensor, image_shape: tuple[int, int, int]) -> Tensor:
    """Pixels in the shape (C, H, W): resized bilinearly; grey is repeated, colour becomes its luma.

    Raises:
        ValueError: a number of channels that is neither 1 nor 3, and another is wanted.
    """
    channels, height, width = image_shape
    return resized(_recoloured(pixels, channels), height, width, "bilinear")


def square_size(height: int, width: int) -> int:
    """H = W, pixels, that suits images of a size: what most networks can halve five times, and not above ImageNet's."""
    shorter = min(height, width)
    return shorter if shorter < 32 else min(224, shorter // 32 * 32)


def resized(pixels: Tensor, height: int, width: int, mode: Mode) -> Tensor:
    """Stretched to a size; `bilinear` with antialiasing, which matters where images get smaller."""
    if pixels.shape[1:3] == (height, width):
        return pixels
    planes = pixels.permute(0, 3, 1, 2).float()
    if mode == "nearest":
        stretched = functional.interpolate(planes, size=(height, width), mode="nearest-exact")
    else:
        stretched = functional.interpolate(planes, size=(height, width), mode="bilinear", antialias=True)
    return rounded(stretched).permute(0, 2, 3, 1).contiguous()


def rounded(values: Tensor) -> Tensor:
    """Numbers, which it changes, as bytes. (PyTorch makes bytes of int16 in a fifth of the time that float32 takes.)"""
    return values.round_().clamp_(0, 255).to(torch.int16).to(torch.uint8)


def resize_as_pil(pixels: Tensor, image_shape: tuple[int, int, int]) -> Tensor:
    """[H, W, C] → `image_shape`, stretched, bilinear with antialiasing: one image, as files of data sets are."""
    from PIL import Image

    height, width, _ = image_shape
    image = Image.fromarray(pixels.squeeze(-1).contiguous().numpy())
    return torch.from_numpy(np.array(image.resize((width, height), Image.Resampling.BILINEAR))).view(image_shape)


def _recoloured(pixels: Tensor, channels: int) -> Tensor:
    given = pixels.shape[-1]
    if given == channels:
        return pixels
    if {given, channels} != {1, 3}:
        raise ValueError(f"images of {given} channels cannot become images of {channels}")
    return pixels.expand(*pixels.shape[:-1], 3) if given == 1 else luma(pixels).to(torch.uint8)


def luma(pixels: Tensor) -> Tensor:
    """Luma in whole numbers (ITU-R 601 in 16 bits, as PIL has it): [B, H, W, 1]. Sums of it are exact in any order."""
    if pixels.shape[-1] != 3:
        return pixels.int().sum(dim=-1, keepdim=True) // pixels.shape[-1]
    red, green, blue = pixels.int().unbind(dim=-1)
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).unsqueeze(-1)
