"""Image files that are decoded one by one."""

from __future__ import annotations

import copy
import hashlib
import inspect
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from kd_cli.data.store import Store
from kd_cli.errors import DataError
from kd_cli.storage.files import open_regular

if TYPE_CHECKING:
    from PIL import Image

Mode = Literal["rgb", "gray"]
CHANNELS: dict[Mode, int] = {"rgb": 3, "gray": 1}
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")  # PIL knows others, and runs programs for some of them
MOST_PIXELS = 89_000_000  # of one image; a file of some kB may claim more than there is memory for


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
        """[H, W, C], uint8. Raises DataError: the file cannot be read, or has another size."""
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
        """All of them: [N, H, W, C]. Raises DataError: as `__getitem__`."""
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
    """One file, as `open_image` sees it: [H, W, C], uint8. Raises DataError: it cannot be read."""
    image, _ = open_image(path)
    return pixels_of(image, mode)


def open_image(path: Path) -> tuple[Image.Image, str]:
    """One file as it is meant to be seen, in PIL's mode `L` or `RGB`, and how it is stored: `16-bit grey`.

    It is turned as its EXIF orientation says, what is transparent shows white, 16 bits become 8, and of an animation
    the first frame is taken.

    Raises:
        DataError: it cannot be read.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings(), open_regular(path) as file:
            warnings.simplefilter("ignore")  # PIL's remarks on palettes and metadata; what cannot be read is an error
            image = Image.open(file, formats=FORMATS)
            _check_size(image)
            return _opaque(_eight_bits(_upright(image))), _stored_as(image)
    except UnidentifiedImageError as error:  # whose message names the open file by a number
        raise DataError(f"{path} cannot be read as an image (it is of no known format); mend or remove it") from error
    except Exception as error:  # each format has its own kinds
        raise DataError(
            f"{path} cannot be read as an image ({' '.join(str(error).split())}); mend or remove it"
        ) from error


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"it has {image.width}×{image.height} pixels, more than {MOST_PIXELS:,} in all")


def walk_images(folder: Path) -> Iterator[str]:
    """The paths of the files below a folder that are called like images, each folder once however links lead to it."""
    seen: set[tuple[int, int]] = set()
    for parent, below, names in os.walk(folder, followlinks=True):
        status = Path(parent).stat()
        if (status.st_dev, status.st_ino) in seen:
            below.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        yield from (
            os.path.join(parent, name)  # noqa: PTH118  (60,000 Path objects take longer than all the rest)
            for name in names
            if os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122
        )


def file_status(path: str) -> os.stat_result:
    """Size and time of an image file; a link is what it leads to, wherever that is.

    Raises:
        DataError: it is a device, a pipe or a link to nothing.
    """
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError as error:
        raise DataError(f"{path} is no file ({error.strerror}); mend or remove it") from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path} is a device or a pipe, not a file; remove it")
    return status


def pixels_of(image: Image.Image, mode: Mode) -> Tensor:
    """[H, W, C], uint8, in colour or grey."""
    pixels = torch.from_numpy(np.array(image.convert("RGB" if mode == "rgb" else "L")))
    return pixels if mode == "rgb" else pixels.unsqueeze(-1)


def _upright(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    image.load()  # damaged pixels are an error here, and damaged metadata below are none
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # the orientation is not legible; the pixels are
        return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """Numbers of 16 bits as 8; PIL would cut off everything above 255."""
    from PIL import Image

    if not image.mode.startswith(("I", "F")):
        return image
    numbers = np.array(image)
    if image.mode == "F" or numbers.min() < 0 or numbers.max() > 65535:
        raise ValueError("nothing says which of its numbers is white; save it with 8 or 16 bits")
    return Image.fromarray(((numbers.astype(np.int64) + 128) // 257).astype(np.uint8))


def _opaque(image: Image.Image) -> Image.Image:
    from PIL import Image

    grey = image.mode in ("1", "L", "LA", "La")
    if _is_transparent(image):
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
    return image.convert("L" if grey else "RGB")


def _is_transparent(image: Image.Image) -> bool:
    return "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La")


def _stored_as(image: Image.Image) -> str:
    if image.mode.startswith("I"):
        return "16-bit grey"
    kinds = {"1": "black and white", "L": "grey", "LA": "grey", "La": "grey", "P": "palette", "PA": "palette"}
    kind = kinds.get(image.mode, "CMYK" if image.mode == "CMYK" else "colour")
    return f"{kind} with transparency" if _is_transparent(image) else kind


def resize(pixels: Tensor, image_shape: tuple[int, int, int]) -> Tensor:
    """[H, W, C] → `image_shape`, stretched, bilinear with antialiasing."""
    from PIL import Image

    height, width, _ = image_shape
    image = Image.fromarray(pixels.squeeze(-1).contiguous().numpy())
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).view(image_shape)


def _pixels(shape: Sequence[int]) -> str:
    return f"{shape[1]}×{shape[0]}"


def reading_source() -> str:
    """The code that makes an opened image one as it is meant to be seen, for a script that runs without kd."""
    functions = (_check_size, _upright, _eight_bits, _opaque, _is_transparent)
    constants = f"FORMATS = {FORMATS}\nMOST_PIXELS = {MOST_PIXELS:_}\n"
    return "\n\n".join([constants, *map(inspect.getsource, functions)])
