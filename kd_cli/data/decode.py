"""One encoded image: what it is, and its pixels."""

from __future__ import annotations

import hashlib
import inspect
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, cast

import numpy as np
import torch
from torch import Tensor

from kd_cli.data.jpeg import usual_size
from kd_cli.errors import DataError
from kd_cli.storage.files import open_regular

if TYPE_CHECKING:
    from PIL import Image

Mode = Literal["rgb", "gray"]
Opening = AbstractContextManager[BinaryIO]  # what gives the encoded bytes once it is entered, seekable
CHANNELS: dict[Mode, int] = {"rgb": 3, "gray": 1}
_CHANNELS_OF: dict[str, Mode] = {"RGB": "rgb", "L": "gray"}  # PIL's modes that need no conversion
Header = tuple[int, int, int]  # height and width, pixels, and a stamp of the first bytes
Scaled = tuple[tuple[int, int], dict[int, Tensor]]  # (height, width) of the whole image; scale → [H, W, C], uint8
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")  # PIL knows others, and runs programs for some of them
MOST_PIXELS = 89_000_000  # of one image; a file of some kB may claim more than there is memory for
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b";"}  # of a whole file
_TURNED = range(5, 9)  # EXIF orientations that swap width and height
STAMPED = 2**14  # bytes


class Unreadable(DataError):
    """An image file that cannot be read."""


def read_image(path: Path | str, mode: Mode, opening: Opening | None = None) -> Tensor:
    """One image, as `open_image` sees it: [H, W, C], uint8. Raises DataError: it cannot be read."""
    image, _ = open_image(path, opening)
    return pixels_of(image, mode)


def open_image(path: Path | str, opening: Opening | None = None) -> tuple[Image.Image, str]:
    """One image as it is meant to be seen, in PIL's mode `L` or `RGB`, and how it is stored: `16-bit grey`.

    It is turned as its EXIF orientation says, what is transparent shows white, 16 bits become 8, and of an animation
    the first frame is taken.

    Args:
        path: of the file, or what messages call the image.
        opening: gives its bytes; none: the file's.

    Raises:
        Unreadable: it cannot be read.
    """
    with _opened(path, opening) as (image, _):
        return as_meant(image)


def as_meant(image: Image.Image) -> tuple[Image.Image, str]:
    """An opened image as `open_image` gives it. Raises ValueError: nothing says what its numbers mean."""
    return _opaque(_eight_bits(_upright(image))), _stored_as(image)


def read_scaled(path: Path | str, mode: Mode, opening: Opening, scales: Callable[[int, int], set[int]]) -> Scaled:
    """One image, as `open_image` sees it, decoded at one or several scales.

    Args:
        scales: from height and width, pixels, those of 1, 2, 4 and 8 that are wanted of a JPEG; other formats have 1.

    Raises:
        Unreadable: it cannot be read.
    """
    with _reading(path, opening) as file:
        plain = _plain_jpeg(file.read(), mode, scales)
        if plain is not None:
            return plain
        file.seek(0)
        image = _open(file)
        width, height = image.size[::-1] if _is_turned(image) else image.size
        wanted = scales(height, width) if image.format == "JPEG" else {1}
        return (height, width), {scale: _decoded(image, file, mode, scale) for scale in sorted(wanted)}


def _plain_jpeg(content: bytes, mode: Mode, scales: Callable[[int, int], set[int]]) -> Scaled | None:
    """As `read_scaled`, without PIL's look at the header; None: it is no JPEG like most, or not wanted at full size."""
    size = usual_size(content)
    if size is None or size[2] != CHANNELS[mode] or size[0] * size[1] > MOST_PIXELS or scales(*size[:2]) != {1}:
        return None
    decoded = _decode_jpeg(content, mode)
    return None if decoded is None else (size[:2], {1: decoded})


def _decoded(image: Image.Image, file: BinaryIO, mode: Mode, scale: int) -> Tensor:
    """[H, W, C]; a plain JPEG of full size by torchvision, which gives PIL's bits in less time."""
    from PIL import Image

    file.seek(0)
    if scale == 1 and image.format == "JPEG" and not _orientation(image) and _CHANNELS_OF.get(image.mode) == mode:
        decoded = _decode_jpeg(file.read(), mode)
        if decoded is not None:
            return decoded
    file.seek(0)
    again = Image.open(file, formats=FORMATS)
    if scale > 1:
        again.draft(None, (again.width // scale, again.height // scale))
    return pixels_of(_opaque(_eight_bits(_upright(again))), mode)


def _decode_jpeg(content: bytes, mode: Mode) -> Tensor | None:
    """None: it is not sound, and PIL says why."""
    from torchvision.io import ImageReadMode, decode_jpeg

    wanted = ImageReadMode.RGB if mode == "rgb" else ImageReadMode.GRAY
    try:
        planes = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), wanted)
    except RuntimeError:
        return None
    return cast(Tensor, planes).permute(1, 2, 0)


@contextmanager
def _opened(path: Path | str, opening: Opening | None = None) -> Iterator[tuple[Image.Image, BinaryIO]]:
    """An image whose header is read, and its file."""
    with _reading(path, opening) as file:
        yield _open(file), file


def _open(file: BinaryIO) -> Image.Image:
    from PIL import Image

    image = Image.open(file, formats=FORMATS)
    _check_size(image)
    return image


@contextmanager
def _reading(path: Path | str, opening: Opening | None) -> Iterator[BinaryIO]:
    """An image's file; all that goes wrong meanwhile makes it unreadable."""
    from PIL import UnidentifiedImageError

    try:
        with warnings.catch_warnings(), opening or open_regular(Path(path)) as file:
            warnings.simplefilter("ignore")  # PIL's remarks on palettes and metadata; what cannot be read is an error
            yield file
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
        with _opened(path):
            return True
    except Unreadable:
        return False


def read_header(path: Path | str, opening: Callable[[], Opening] | None = None) -> Header:
    """Height and width, pixels, as it will be seen, and a stamp of its first bytes; decoded only where it may be cut.

    Args:
        path, opening: as of `open_image`; it is opened a second time to be decoded.

    Raises:
        Unreadable: it cannot be read.
    """
    opening = opening or (lambda: open_regular(path))
    with _opened(path, opening()) as (image, file):
        width, height = image.size[::-1] if _is_turned(image) else image.size
        if not _ends_whole(image.format, file):
            whole, _ = open_image(path, opening())
            width, height = whole.size
        file.seek(0)
        return height, width, _stamp(file.read(STAMPED))


def usual_header(head: bytes, end: bytes) -> Header | None:
    """As `read_header`, of a whole JPEG that is like most; PIL takes five times as long. None: it is another image.

    Args:
        head: the first `STAMPED` bytes.
        end: the last two.
    """
    size = usual_size(head)
    if size is None or size[0] * size[1] > MOST_PIXELS or end != _ENDS["JPEG"]:
        return None
    return *size[:2], _stamp(head)


def _stamp(head: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(head, digest_size=8).digest(), "big", signed=True)


def _is_turned(image: Image.Image) -> bool:
    return _orientation(image) in _TURNED


def _orientation(image: Image.Image) -> int:
    """EXIF's, if it is another than upright; otherwise 0."""
    if image.format == "PNG" and "exif" not in image.info:  # to look further PIL would decode it
        return 0
    try:
        given = image.getexif().get(0x0112)
        return int(given or 0) if given in range(2, 9) else 0
    except Exception:  # as in `_upright`
        return 0


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
