"""Encoded images, wherever they lie, that are decoded one by one."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from kd_cli.data.decode import (
    CHANNELS,
    STAMPED,
    Mode,
    Opening,
    Unreadable,
    read_header,
    read_image,
    read_scaled,
    usual_header,
)
from kd_cli.data.geometry import Box, Geometry, scaled_box
from kd_cli.data.resize import square_size
from kd_cli.data.sources import Source
from kd_cli.data.store import read_all
from kd_cli.data.workers import each_chunk
from kd_cli.errors import DataError

_HEADERS = 2**10  # that a worker reads at a time, 16 MB of files; to hand over takes as long as to read some twenty


class Files:
    """Encoded images, all of one shape once decoded.

    Args:
        source: where they lie.
        geometry: how they are brought to one size.
        mode: colour or grey.

    Raises:
        DataError: none of the images can be read.
    """

    def __init__(self, source: Source, geometry: Geometry, mode: Mode) -> None:
        self.source, self.geometry, self.mode = source, geometry, mode
        self.resizes = geometry.image_size is not None
        self._first, self.image_shape = self._first_shape()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: int) -> Tensor:
        """[H, W, C], uint8. Raises DataError: the image cannot be read, or has another size."""
        name, geometry = self.source.name(row), self.geometry
        if geometry.shorter is not None:
            return read_fitted(name, self.mode, self.source.open(row), geometry)
        pixels = read_image(name, self.mode, self.source.open(row))
        self.check_size(name, *pixels.shape[:2])
        return geometry.fitted(pixels)

    def windows(self, row: int, boxes: Callable[[int, int], Sequence[Box]]) -> list[Tensor]:
        """Several windows of an image that is decoded once: R of [H, W, C], uint8.

        Args:
            boxes: from height and width, pixels, the R windows.

        Raises:
            DataError: the image cannot be read.
        """
        geometry = self.geometry
        drawn: list[Box] = []

        def scales(height: int, width: int) -> set[int]:
            drawn[:] = boxes(height, width)
            return {geometry.window_scale(box) for box in drawn}

        size, decoded = read_scaled(self.source.name(row), self.mode, self.source.open(row), scales)
        cut = []
        for box in drawn or boxes(*size):
            scale = geometry.window_scale(box)
            pixels = decoded.get(scale, decoded[min(decoded)])
            cut.append(geometry.window(pixels, scaled_box(box, scale if scale in decoded else 1, *pixels.shape[:2])))
        return cut

    def check_size(self, name: str, height: int, width: int) -> None:
        """Raises DataError: all images must have one size, and this one has another."""
        wanted = self.image_shape
        if not self.resizes and (height, width) != wanted[:2]:
            raise DataError(
                f"{name} has {width}×{height} pixels, {self._first} {wanted[1]}×{wanted[0]}; "
                f"type dataset.image_size={square_size(*wanted[:2])} (or another size) to bring all to one"
            )

    @property
    def digest(self) -> str:
        """Of names, bytes, mode and geometry; the images are not read."""
        how = [self.mode, str(self.image_shape), *map(str, self.geometry.record().values())]
        digest = hashlib.sha256("\n".join(how).encode())
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
        for read, wrong in each_chunk(_Headers(self), workers, _HEADERS):
            stamps.append(read)
            errors |= _only_unreadable(wrong)
        return torch.cat(stamps), errors

    def _first_shape(self) -> tuple[str, tuple[int, int, int]]:
        first = self.source.name(0)
        if self.geometry.image_size is not None:
            return first, (self.geometry.image_size, self.geometry.image_size, CHANNELS[self.mode])
        for row in range(len(self)):
            name = self.source.name(row)
            with suppress(Unreadable):
                height, width, channels = read_image(name, self.mode, self.source.open(row)).shape
                return name, (height, width, channels)
        raise DataError(f"none of the {len(self):,} files can be read as an image ({first}, …); mend or remove them")


class _Headers:
    """The stamps of images that are sound as far as their headers tell [M], int64."""

    num_bytes = 0

    def __init__(self, files: Files) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def read(self, rows: Sequence[int]) -> tuple[Tensor, dict[int, DataError]]:
        stamps, errors, source = [], {}, self._files.source
        edges = source.edges(rows, STAMPED)  # first all that is asked of the system: in turns, both take longer
        for number, (row, read) in enumerate(zip(rows, edges, strict=True)):
            try:
                usual = usual_header(*read) if read else None
                height, width, stamp = usual or read_header(source.name(row), partial(source.open, row))
                if not self._files.resizes:
                    self._files.check_size(source.name(row), height, width)
                stamps.append(stamp)
            except DataError as error:
                errors[number] = error
        return torch.tensor(stamps, dtype=torch.int64), errors


def read_fitted(path: Path | str, mode: Mode, opening: Opening, geometry: Geometry) -> Tensor:
    """An image as evaluation sees it: [H, W, C], uint8. Raises DataError: it cannot be read."""
    _, decoded = read_scaled(path, mode, opening, lambda height, width: {geometry.scale(height, width)})
    return geometry.fitted(next(iter(decoded.values())))


def _only_unreadable(errors: Mapping[int, DataError]) -> Mapping[int, DataError]:
    """Raises what else is wrong, at once: no file that is left out mends that."""
    other = next((error for error in errors.values() if not isinstance(error, Unreadable)), None)
    if other is not None:
        raise other
    return errors
