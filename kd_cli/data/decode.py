"""Image files that are decoded one by one."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kd_cli.data.store import Store
from kd_cli.errors import DataError

Mode = Literal["rgb", "gray"]
CHANNELS: dict[Mode, int] = {"rgb": 3, "gray": 1}
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})


class Files:
    """Images in files, all of one shape once decoded.

    Args:
        root: folder that `names` are relative to.
        names: of the files.
        sizes: bytes of each file.
        image_size: H = W, pixels, to which others are stretched (bilinear, antialiased); none: all files must be as
            large as the first.
        mode: colour or grey.

    Raises:
        DataError: the first file cannot be read.
    """

    def __init__(
        self, root: Path, names: Sequence[str], sizes: Sequence[int], image_size: int | None, mode: Mode
    ) -> None:
        self.root, self.names, self.sizes = root, names, sizes
        self.image_size, self.mode = image_size, mode
        self._first = root / names[0]
        self.image_shape = self._first_shape()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> Tensor:
        """[H, W, C], uint8.

        Raises:
            DataError: the file cannot be read, or has another size.
        """
        path = self.root / self.names[row]
        pixels = read_image(path, self.mode)
        if pixels.shape != self.image_shape and self.image_size is None:
            raise DataError(
                f"{path} has {_pixels(pixels.shape)} pixels, {self._first} {_pixels(self.image_shape)}; "
                "type dataset.image_size=32 (or another size) to bring all to one"
            )
        return pixels if pixels.shape == self.image_shape else resize(pixels, self.image_shape)

    @property
    def digest(self) -> str:
        """Of names, file sizes, mode and image size; the files are not read."""
        listed = [f"{name}\t{size}" for name, size in zip(self.names, self.sizes, strict=True)]
        return hashlib.sha256("\n".join([self.mode, str(self.image_shape), *listed]).encode()).hexdigest()

    def subset(self, rows: Sequence[int]) -> Files:
        """Some of them, in the order given."""
        chosen = copy.copy(self)
        chosen.names, chosen.sizes = [self.names[row] for row in rows], [self.sizes[row] for row in rows]
        return chosen

    def decode(self, workers: int) -> Tensor:
        """All of them: [N, H, W, C].

        Raises:
            DataError: as `__getitem__`.
        """
        images = torch.empty((len(self), *self.image_shape), dtype=torch.uint8)
        chunks = list(torch.arange(len(self)).split(256))
        pixels = Store(self, streamed=True, workers=workers).batches(chunks, torch.device("cpu"))
        for chunk, decoded in zip(chunks, pixels, strict=True):
            images[int(chunk[0]) : int(chunk[-1]) + 1] = decoded
        return images

    def _first_shape(self) -> tuple[int, int, int]:
        if self.image_size is not None:
            return self.image_size, self.image_size, CHANNELS[self.mode]
        height, width, channels = read_image(self._first, self.mode).shape
        return height, width, channels


def read_image(path: Path, mode: Mode) -> Tensor:
    """One file: [H, W, C], uint8.

    Raises:
        DataError: it cannot be read.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")  # PIL's remarks on palettes and metadata; what cannot be read is an error
            pixels = torch.from_numpy(np.array(image.convert("RGB" if mode == "rgb" else "L")))
    except Exception as error:  # each format has its own kinds
        raise DataError(
            f"{path} cannot be read as an image ({' '.join(str(error).split())}); mend or remove it"
        ) from error
    return pixels if mode == "rgb" else pixels.unsqueeze(-1)


def resize(pixels: Tensor, image_shape: tuple[int, int, int]) -> Tensor:
    """[H, W, C] → `image_shape`, bilinear with antialiasing."""
    from PIL import Image

    height, width, _ = image_shape
    image = Image.fromarray(pixels.squeeze(-1).contiguous().numpy())
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).view(image_shape)


def _pixels(shape: Sequence[int]) -> str:
    return f"{shape[1]}×{shape[0]}"
