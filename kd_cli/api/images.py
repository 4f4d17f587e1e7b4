"""Images as programs have them: files, PIL's images, arrays and tensors, all of bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kd_cli.data.decode import as_meant, open_image
from kd_cli.errors import DataError

_FLOATS = (
    "{where} is {kind}, and kd normalises images itself: give bytes, 0 … 255 (without ToTensor, ToDtype and Normalize; "
    "torchvision's PILToTensor makes such tensors), and say {how}"
)


def opened(images: Any) -> Iterator[tuple[Image.Image, str]]:
    """One image, several in a list, or a batch of them, each as `open_image` gives a file.

    Raises:
        DataError: what cannot be read, or is no image of bytes.
    """
    batch = isinstance(images, Tensor | np.ndarray) and images.ndim == 4
    several = batch or (isinstance(images, Sequence) and not isinstance(images, str))
    for place, image in enumerate(images if several else [images]):
        if isinstance(image, str | PathLike):
            yield open_image(Path(image).expanduser())
        else:
            yield _as_meant(
                picture(image, f"image {place}", "nothing more: the network knows its normalisation"), place
            )


def _as_meant(image: Image.Image, place: int) -> tuple[Image.Image, str]:
    try:
        return as_meant(image)
    except ValueError as error:
        raise DataError(f"image {place} cannot be read ({error})") from error


def picture(image: Any, where: str, how: str) -> Image.Image:
    """What a program calls an image, as PIL's: its own, or what `array` takes; raises as `array`."""
    return image if isinstance(image, Image.Image) else Image.fromarray(array(image, where, how))


def array(image: Any, where: str, how: str) -> np.ndarray:
    """An array [H, W] or [H, W, C], or a tensor [H, W] or [C, H, W], of uint8: [H, W], or [H, W, C] with C = 3 or 4.

    Args:
        where: it is, for the message: `train[3]`.
        how: its normalisation is said instead.

    Raises:
        DataError: it is something else, or has another shape or other values than bytes.
    """
    if not isinstance(image, Tensor | np.ndarray):
        kind = type(image).__name__
        raise DataError(
            f"{where} is of the type {kind}; an image is a PIL image, an array [H, W, C] or a tensor [C, H, W]"
        )
    if image.dtype not in (torch.uint8, np.uint8):
        raise DataError(_FLOATS.format(where=where, kind=f"of {image.dtype}", how=how))
    pixels = image
    if isinstance(image, Tensor):
        pixels = (image.permute(1, 2, 0) if image.ndim == 3 else image).cpu().numpy()
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim != 2 and pixels.shape[2:] not in ((3,), (4,)):
        raise DataError(
            f"{where} has the shape {list(image.shape)}; arrays are [H, W, C], tensors [C, H, W], C = 1 or 3"
        )
    return np.array(pixels, order="C")  # a copy: it may be read-only, or overwritten by the next image
