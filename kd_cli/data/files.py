"""Encoded images, wherever they lie, that are decoded one by one."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol

import torch
from torch import Tensor

from kd_cli.data.decode import CHANNELS, Mode, Opening, Unreadable, read_header, read_image
from kd_cli.data.names import CHUNK, Names
from kd_cli.data.resize import resize_as_pil, square_size
from kd_cli.data.store import each_chunk, read_all
from kd_cli.errors import DataError
from kd_cli.storage.files import open_regular


class Source(Protocol):
    """Where N encoded images lie. Workers get a copy, forked or pickled, so it holds no open file and no long list."""

    sizes: Tensor  # bytes of each [N], int64

    def __len__(self) -> int: ...

    def name(self, row: int) -> str:
        """What messages call an image."""

    def open(self, row: int) -> Opening:
        """What gives the bytes of an image, seekable. It raises where it is entered, not before."""

    def described(self) -> Iterator[bytes]:
        """What tells these images from others, without reading them; the same images give the same bytes."""

    def subset(self, rows: Tensor) -> Source:
        """Some of them, in the order given."""


class _Unopened:
    """A file that is opened when it is entered. (A generator would take half as long as all the rest.)"""

    def __init__(self, path: str, size: int) -> None:
        self._path, self._size = path, size

    def __enter__(self) -> BinaryIO:
        self._file = open_regular(self._path)
        size = os.fstat(self._file.fileno()).st_size
        if size != self._size:
            self._file.close()
            raise Unreadable(
                f"{self._path} has {size:,} bytes, and had {self._size:,} when kd looked at its folder: it was written "
                f"anew meanwhile. Type the command again; if that says the same: touch {Path(self._path).parent}"
            )
        return self._file

    def __exit__(self, *_: object) -> None:
        self._file.close()


class FolderSource:
    """The files below a folder.

    Args:
        root: that `names` are relative to.
        names: of the files.
        sizes: bytes of each [N], int64.
    """

    def __init__(self, root: Path, names: Names, sizes: Tensor) -> None:
        self.root, self.names, self.sizes = root, names, sizes

    def __len__(self) -> int:
        return len(self.names)

    def name(self, row: int) -> str:
        """The path."""
        return f"{self.root}/{self.names[row]}"

    def open(self, row: int) -> Opening:
        """The file."""
        return _Unopened(self.name(row), int(self.sizes[row]))

    def described(self) -> Iterator[bytes]:
        """Names and sizes."""
        for number, names in enumerate(self.names.chunks()):
            sizes = self.sizes[number * CHUNK : (number + 1) * CHUNK].tolist()
            yield b"".join(b"\n%s\t%d" % pair for pair in zip(names, sizes, strict=True))

    def subset(self, rows: Tensor) -> FolderSource:
        """Some of them, in the order given."""
        return FolderSource(self.root, self.names.take(rows), self.sizes[rows])


class Files:
    """Encoded images, all of one shape once decoded.

    Args:
        source: where they lie.
        image_size: H = W, pixels, to which others are stretched (bilinear, antialiased); none: all images must be as
            large as the first.
        mode: colour or grey.

    Raises:
        DataError: none of the images can be read.
    """

    def __init__(self, source: Source, image_size: int | None, mode: Mode) -> None:
        self.source, self.image_size, self.mode = source, image_size, mode
        self._first, self.image_shape = self._first_shape()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: int) -> Tensor:
        """[H, W, C], uint8. Raises DataError: the image cannot be read, or has another size."""
        name = self.source.name(row)
        pixels = read_image(name, self.mode, self.source.open(row))
        self.check_size(name, *pixels.shape[:2])
        return pixels if pixels.shape == self.image_shape else resize_as_pil(pixels, self.image_shape)

    def check_size(self, name: str, height: int, width: int) -> None:
        """Raises DataError: all images must have one size, and this one has another."""
        wanted = self.image_shape
        if self.image_size is None and (height, width) != wanted[:2]:
            raise DataError(
                f"{name} has {width}×{height} pixels, {self._first} {wanted[1]}×{wanted[0]}; "
                f"type dataset.image_size={square_size(*wanted[:2])} (or another size) to bring all to one"
            )

    @property
    def digest(self) -> str:
        """Of names, bytes, mode and image size; the images are not read."""
        digest = hashlib.sha256(f"{self.mode}\n{self.image_shape}".encode())
        for piece in self.source.described():
            digest.update(piece)
        return digest.hexdigest()

    def subset(self, rows: Tensor) -> Files:
        """Some of them, in the order given."""
        chosen = copy.copy(self)
        chosen.source = self.source.subset(rows)
        return chosen

    def decode(self, workers: int) -> tuple[Tensor, dict[int, DataError]]:
        """All that can be read: [M, H, W, C], and the rows of the others with what is wrong with each.

        Raises:
            DataError: an image has another size.
        """
        images, done = torch.empty((len(self), *self.image_shape), dtype=torch.uint8), 0
        errors: dict[int, DataError] = {}
        for decoded, wrong in read_all(self, workers):
            images[done : done + len(decoded)] = decoded
            done += len(decoded)
            errors |= _only_unreadable(wrong)
        return images[:done], errors

    def check(self, workers: int) -> tuple[Tensor, dict[int, DataError]]:
        """As `decode`, by the headers alone: a stamp of each image's first bytes [M]."""
        stamps: list[Tensor] = []
        errors: dict[int, DataError] = {}
        for read, wrong in each_chunk(self._headers, len(self), workers):
            stamps.append(read)
            errors |= _only_unreadable(wrong)
        return torch.cat(stamps), errors

    def _headers(self, rows: Sequence[int]) -> tuple[Tensor, dict[int, DataError]]:
        """Stamps of those that are sound as far as their headers tell [M], and by place what is wrong with others."""
        stamps, errors = [], {}
        for place, row in enumerate(rows):
            name = self.source.name(row)
            try:
                height, width, stamp = read_header(name, partial(self.source.open, row))
                self.check_size(name, height, width)
                stamps.append(stamp)
            except DataError as error:
                errors[place] = error
        return torch.tensor(stamps, dtype=torch.int64), errors

    def _first_shape(self) -> tuple[str, tuple[int, int, int]]:
        first = self.source.name(0)
        if self.image_size is not None:
            return first, (self.image_size, self.image_size, CHANNELS[self.mode])
        for row in range(len(self)):
            name = self.source.name(row)
            with suppress(Unreadable):
                height, width, channels = read_image(name, self.mode, self.source.open(row)).shape
                return name, (height, width, channels)
        raise DataError(f"none of the {len(self):,} files can be read as an image ({first}, …); mend or remove them")


def _only_unreadable(errors: Mapping[int, DataError]) -> Mapping[int, DataError]:
    """Raises what else is wrong, at once: no file that is left out mends that."""
    other = next((error for error in errors.values() if not isinstance(error, Unreadable)), None)
    if other is not None:
        raise other
    return errors
