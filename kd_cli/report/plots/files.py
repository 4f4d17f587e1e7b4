"""Colours, and charts as files: drawn by Altair and vl-convert, without a browser or a network."""

from __future__ import annotations

import base64
import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_cli.errors import ConfigError, KDError
from kd_cli.storage.files import write_bytes

if TYPE_CHECKING:
    from PIL import Image

# Okabe and Ito 2008: told apart by the colour-blind, and of different lightness for prints in grey.
COLOURS = ("#0072B2", "#999999", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
_USUAL = dict(zip(("teacher", "baseline", "distilled"), COLOURS, strict=False))
_SUFFIXES = (".png", ".svg")
_DRAWING = {"altair": "altair", "vl_convert": "vl-convert-python"}  # module → its name for pip
SCALE = 2  # pixels of a .png for each of the chart's


def colours_of(networks: Sequence[str]) -> list[str]:
    """A colour for each name; teacher, baseline and distilled have theirs in every picture."""
    others = iter(COLOURS[len(_USUAL) :] * (1 + len(networks)))
    return [_USUAL.get(name) or next(others) for name in networks]


def check_drawing(what: str) -> None:
    """Refuses, before anything is computed, what draws charts where the packages for it are missing.

    Args:
        what: the command or the option.

    Raises:
        ConfigError: Altair or vl-convert is not installed.
    """
    missing = [name for module, name in _DRAWING.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ConfigError(f"{what} draws charts and needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def check_picture(path: Path, option: str) -> None:
    """Refuses, before anything is computed, a file that could not be written.

    Args:
        option: of the command line: `--grid`.

    Raises:
        ConfigError: neither .png nor .svg, no such folder, or nothing is installed to draw with.
    """
    check_drawing(option)
    if path.suffix.lower() not in _SUFFIXES:
        raise ConfigError(f"{option}: {path} is neither .png nor .svg; type {option} {path.with_suffix('.png')}")
    check_folder(path, option)


def check_folder(path: Path, option: str) -> None:
    """Refuses a file in a folder that is not there.

    Raises:
        ConfigError: it is not there, or `path` is a folder itself.
    """
    if path.is_dir():
        raise ConfigError(f"{option}: {path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise ConfigError(f"{option}: there is no folder {path.parent}; make it, or name another file")


def save_file(path: Path, content: bytes) -> None:
    """Writes a file that the user named, whole or not at all.

    Raises:
        KDError: the disk is full or not writable.
    """
    try:
        write_bytes(path, content)
    except OSError as error:
        raise KDError(
            f"{path} cannot be written: {error.strerror or error}; make room, or name another file"
        ) from error


def save_picture(chart: Any, path: Path) -> None:
    """Writes an Altair chart as .png or .svg."""
    import vl_convert

    specification = chart.to_dict()
    if path.suffix.lower() == ".svg":
        save_file(path, vl_convert.vegalite_to_svg(specification).encode())
    else:
        save_file(path, _smaller(vl_convert.vegalite_to_png(specification, scale=SCALE)))


def data_url(image: Image.Image) -> str:
    """An image as the text of a link."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _smaller(png: bytes) -> bytes:
    """The same pixels in a quarter of the bytes: vl-convert hardly compresses."""
    from PIL import Image

    file = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").save(file, "PNG", optimize=True)
    return file.getvalue()
