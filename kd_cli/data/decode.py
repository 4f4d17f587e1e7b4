"""Image files that are decoded one by one."""

from __future__ import annotations

import copy
import hashlib
import inspect
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor

from kd_cli.data.resize import resize_as_pil, square_size
from kd_cli.data.store import read_all
from kd_cli.errors import DataError
from kd_cli.storage.files import open_regular

if TYPE_CHECKING:
    from PIL import Image

Mode = Literal["rgb", "gray"]
CHANNELS: dict[Mode, int] = {"rgb": 3, "gray": 1}
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")  # PIL knows others, and runs programs for some of them
MOST_PIXELS = 89_000_000  # of one image; a file of some kB may claim more than there is memory for
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b";"}  # of a whole file
_TURNED = range(5, 9)  # EXIF orientations that swap width and height
_STAMPED = 2**14  # bytes


class Unreadable(DataError):
    """An image file that cannot be read."""


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
        DataError: none of the files can be read.
    """

    def __init__(
        self, root: Path, names: Sequence[str], sizes: Sequence[int], image_size: int | None, mode: Mode
    ) -> None:
        self.root, self.names, self.sizes = root, names, sizes
        self.image_size, self.mode = image_size, mode
        self._first, self.image_shape = self._first_shape()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> Tensor:
        """[H, W, C], uint8. Raises DataError: the file cannot be read, or has another size."""
        path = self.root / self.names[row]
        pixels = read_image(path, self.mode)
        self.check_size(path, *pixels.shape[:2])
        return pixels if pixels.shape == self.image_shape else resize_as_pil(pixels, self.image_shape)

    def check_size(self, path: Path, height: int, width: int) -> None:
        """Raises DataError: all images must have one size, and this one has another."""
        wanted = self.image_shape
        if self.image_size is None and (height, width) != wanted[:2]:
            raise DataError(
                f"{path} has {width}×{height} pixels, {self._first} {wanted[1]}×{wanted[0]}; "
                f"type dataset.image_size={square_size(*wanted[:2])} (or another size) to bring all to one"
            )

    @property
    def digest(self) -> str:
        """Of names, file sizes, mode and image size; the files are not read."""
        rows = [f"{name}\t{size}" for name, size in zip(self.names, self.sizes, strict=True)]
        return hashlib.sha256("\n".join([self.mode, str(self.image_shape), *rows]).encode()).hexdigest()

    def subset(self, rows: Sequence[int]) -> Files:
        """Some of them, in the order given."""
        chosen = copy.copy(self)
        chosen.names, chosen.sizes = [self.names[row] for row in rows], [self.sizes[row] for row in rows]
        return chosen

    def decode(self, workers: int) -> tuple[Tensor, dict[int, DataError]]:
        """All that can be read: [M, H, W, C], and the rows of the others with what is wrong with each.

        Raises:
            DataError: a file has another size.
        """
        images, done = torch.empty((len(self), *self.image_shape), dtype=torch.uint8), 0
        errors: dict[int, DataError] = {}
        for decoded, wrong in read_all(self, workers):
            images[done : done + len(decoded)] = decoded
            done += len(decoded)
            errors |= _only_unreadable(wrong)
        return images[:done], errors

    def check(self, workers: int) -> tuple[Tensor, dict[int, DataError]]:
        """As `decode`, by the headers alone: a stamp of each file's first bytes [M]."""
        stamps: list[Tensor] = []
        errors: dict[int, DataError] = {}
        for read, wrong in read_all(_Headers(self), workers):
            stamps.append(read.view(torch.int64).flatten())
            errors |= _only_unreadable(wrong)
        return torch.cat(stamps), errors

    def _first_shape(self) -> tuple[Path, tuple[int, int, int]]:
        first = self.root / self.names[0]
        if self.image_size is not None:
            return first, (self.image_size, self.image_size, CHANNELS[self.mode])
        for name in self.names:
            with suppress(Unreadable):
                height, width, channels = read_image(self.root / name, self.mode).shape
                return self.root / name, (height, width, channels)
        raise DataError(f"none of the {len(self):,} files can be read as an image ({first}, …); mend or remove them")


class _Headers:
    """The stamps of files that are sound as far as their headers tell, as images of eight bytes."""

    image_shape = (1, 1, 8)
    digest = ""

    def __init__(self, files: Files) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, row: int) -> Tensor:
        path = self._files.root / self._files.names[row]
        height, width, stamp = read_header(path)
        self._files.check_size(path, height, width)
        return torch.tensor([stamp]).view(torch.uint8).view(self.image_shape)


def _only_unreadable(errors: Mapping[int, DataError]) -> Mapping[int, DataError]:
    """Raises what else is wrong, at once: no file that is left out mends that."""
    other = next((error for error in errors.values() if not isinstance(error, Unreadable)), None)
    if other is not None:
        raise other
    return errors


def read_image(path: Path, mode: Mode) -> Tensor:
    """One file, as `open_image` sees it: [H, W, C], uint8. Raises DataError: it cannot be read."""
    image, _ = open_image(path)
    return pixels_of(image, mode)


def open_image(path: Path) -> tuple[Image.Image, str]:
    """One file as it is meant to be seen, in PIL's mode `L` or `RGB`, and how it is stored: `16-bit grey`.

    It is turned as its EXIF orientation says, what is transparent shows white, 16 bits become 8, and of an animation
    the first frame is taken.

    Raises:
        Unreadable: it cannot be read.
    """
    with _opened(path) as (image, _):
        return as_meant(image)


def as_meant(image: Image.Image) -> tuple[Image.Image, str]:
    """An opened image as `open_image` gives it. Raises ValueError: nothing says what its numbers mean."""
    return _opaque(_eight_bits(_upright(image))), _stored_as(image)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Image.Image, BinaryIO]]:
    """An image whose header is read, and its file; all that goes wrong meanwhile makes it unreadable."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings(), open_regular(path) as file:
            warnings.simplefilter("ignore")  # PIL's remarks on palettes and metadata; what cannot be read is an error
            image = Image.open(file, formats=FORMATS)
            _check_size(image)
            yield image, file
    except Unreadable:
        raise
    except UnidentifiedImageError as error:  # whose message names the open file by a number
        raise Unreadable(f"{path} cannot be read as an image (it is of no known format); mend or remove it") from error
    except Exception as error:  # each format has its own kinds
        reason = " ".join(str(error).split())
        raise Unreadable(f"{path} cannot be read as an image ({reason}); mend or remove it") from error


def is_image(path: str) -> bool:
    """Whether a file's content begins as an image of one of `FORMATS` does, whatever it is called."""
    if not os.path.isfile(path):  # noqa: PTH113  (to open a device may do something)
        return False
    try:
        with _opened(Path(path)):
            return True
    except Unreadable:
        return False


def read_header(path: Path) -> tuple[int, int, int]:
    """Height and width, pixels, as it will be seen, and a stamp of its first bytes; decoded only where it may be cut.

    Raises:
        Unreadable: it cannot be read.
    """
    with _opened(path) as (image, file):
        width, height = image.size[::-1] if _is_turned(image) else image.size
        if not _ends_whole(image.format, file):
            image, _ = open_image(path)
            width, height = image.size
        file.seek(0)
        digest = hashlib.blake2b(file.read(_STAMPED), digest_size=8).digest()
    return height, width, int.from_bytes(digest, "big", signed=True)


def _is_turned(image: Image.Image) -> bool:
    if image.format == "PNG" and "exif" not in image.info:  # to look further PIL would decode it
        return False
    try:
        return image.getexif().get(0x0112) in _TURNED
    except Exception:  # as in `_upright`
        return False


def _ends_whole(kind: str | None, file: BinaryIO) -> bool:
    end = _ENDS.get(str(kind))
    if end is None:  # the format has none
        return False
    file.seek(-len(end), os.SEEK_END)
    return file.read() == end


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"it has {image.width}×{image.height} pixels, more than {MOST_PIXELS:,} in all")


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


def reading_source() -> str:
    """The code that makes an opened image one as it is meant to be seen, for a script that runs without kd."""
    functions = (_check_size, _upright, _eight_bits, _opaque, _is_transparent)
    constants = f"FORMATS = {FORMATS}\nMOST_PIXELS = {MOST_PIXELS:_}\n"
    return "\n\n".join([constants, *map(inspect.getsource, functions)])
