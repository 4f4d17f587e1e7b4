"""Where pixels are: in memory as one tensor, or in files that worker processes decode. Both give the same batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any, Protocol, Union, cast

import torch
from torch import Tensor

from kd_cli.data.common import InMemory
from kd_cli.errors import DataError
from kd_cli.storage.tensors import digest_tensor

if TYPE_CHECKING:
    from kd_cli.data.kept import Kept
    from kd_cli.data.windows import Finish, Windows
    from kd_cli.data.workers import Read


class Streamed(Protocol):
    """Images that are read one by one."""

    image_shape: tuple[int, int, int]  # (H, W, C) of every image

    @property
    def digest(self) -> str: ...  # hex: which images these are, known without reading them

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Tensor: ...  # [H, W, C], uint8; DataError if it cannot be read


# [N, H, W, C], uint8: channels last, so that a batch needs no copy to be in that memory format.
Images = Union[Tensor, Streamed]  # noqa: UP007  (a Protocol cannot stand on the right of | at run time in Python 3.10)


def shape_of(images: Images) -> tuple[int, int, int]:
    """(H, W, C)."""
    height, width, channels = images.shape[1:] if isinstance(images, Tensor) else images.image_shape
    return height, width, channels


def check_part(name: str, part: str, images: Images, labels: Tensor, classes: int, *, least: int) -> None:
    """Checks that each image of a part has the label of one class.

    Args:
        name: of the data set.
        classes: K.
        least: images that must be there.

    Raises:
        DataError: several labels for an image, none, or one that is no class.
    """
    if labels.dim() != 1 or labels.dtype != torch.int64:
        kind = f"{str(labels.dtype).removeprefix('torch.')} {list(labels.shape)}"
        raise DataError(
            f"dataset {name!r}: kd is for single-label classification, one class for each image: labels are int64 [N], "
            f"0 … {classes - 1}, and those of {part} are {kind}"
        )
    if len(images) != len(labels) or len(labels) < least:
        raise DataError(f"dataset {name!r}: {part} has {len(images)} images and {len(labels)} labels")
    if len(labels) and (labels.min() < 0 or labels.max() >= classes):
        given = f"{int(labels.min())} … {int(labels.max())}"
        raise DataError(f"dataset {name!r}: {part} labels {given} do not fit {classes} classes")


def digest_of(images: Images) -> str:
    """BLAKE2b of shape and pixels, hex; for streamed images what they say of themselves."""
    return digest_tensor(images) if isinstance(images, Tensor) else images.digest


def fits_in_memory(num_bytes: int, in_memory: InMemory, memory_limit_gb: float) -> bool:
    """Whether decoded images are to be held in memory. 1 GB = 10⁹ bytes."""
    return num_bytes <= memory_limit_gb * 1e9 if in_memory == "auto" else bool(in_memory)


class Store:
    """Gives batches of pixels.

    Args:
        images: [N, H, W, C].
        streamed: read through worker processes although `images` may be a tensor.
        workers: how many; 0 decodes in this process.
        kept: bytes of decoded images that are kept once they were read, as many as fit; the others are read again.

    Attributes:
        resident: pixels are taken from a tensor on the device.
        keeps: some decoded images are kept.
    """

    def __init__(self, images: Images, *, streamed: bool, workers: int, kept: int = 0) -> None:
        self.images = images
        self.resident = isinstance(images, Tensor) and not streamed
        self._workers = workers
        self._on_device: dict[torch.device, Tensor] = {}
        self.keeps = kept > 0 and not isinstance(images, Tensor)
        self._kept = _room_for(images, kept) if self.keeps else None

    def batches(self, rows: Sequence[Tensor], device: torch.device, finish: Finish | None = None) -> Iterator[Tensor]:
        """For each item of `rows` [B] its pixels [B, H, W, C], uint8, on `device`.

        Args:
            finish: what is done to them where they are decoded, all of them: nothing is kept then.

        Raises:
            DataError: an image cannot be read.
        """
        if self.resident:
            yield from (self.take(chosen, device) for chosen in rows)
            return
        on_cpu = [chosen.cpu() for chosen in rows]
        missing = on_cpu if self._kept is None else [self._kept.missing(chosen) for chosen in on_cpu]
        read = self._read(_Reader(self.images, torch.cat(missing), finish) if missing else None, missing, device)
        for chosen, absent in zip(on_cpu, missing, strict=True):
            pixels = next(read) if len(absent) else torch.empty((0, *shape_of(self.images)), dtype=torch.uint8)
            yield (pixels if self._kept is None else self._kept.whole(chosen, absent, pixels)).to(
                device, non_blocking=True
            )

    def windows(
        self,
        rows: Sequence[Tensor],
        ids: Sequence[Tensor],
        windows: Windows,
        device: torch.device,
        finish: Finish | None = None,
    ) -> Iterator[Tensor]:
        """For each item its images' windows, those of an image one after another: [B × views, H, W, C], uint8.

        Args:
            rows, ids: [B] each.
            finish: what is done to them where they are decoded.

        Raises:
            DataError: an image cannot be read.
        """
        chosen = [each.cpu() for each in rows]
        reader = None
        if chosen:
            reader = _WindowReader(self.images, torch.cat(chosen), torch.cat(list(ids)).cpu(), windows, finish)
        yield from (pixels.to(device, non_blocking=True) for pixels in self._read(reader, chosen, device))

    def _read(self, reader: _Reader | None, batches: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        if reader is None or not len(reader):
            return
        from kd_cli.data.workers import read_batches

        sizes = [len(rows) for rows in batches if len(rows)]
        for pixels, errors in read_batches(reader, sizes, self._workers, pin=device.type == "cuda"):
            for error in errors.values():
                raise error
            yield pixels

    def take(self, rows: Tensor, device: torch.device) -> Tensor:
        """As `batches`, of resident pixels.

        Args:
            rows: [B], on `device`.
        """
        if device not in self._on_device:
            self._on_device[device] = cast(Tensor, self.images).to(device)
            if device.type == "cuda":  # other streams may read them before this one has copied them
                torch.cuda.current_stream(device).synchronize()
        return self._on_device[device].index_select(0, rows)


def _room_for(images: Images, num_bytes: int) -> Kept:
    from kd_cli.data.kept import Kept

    return Kept(len(images), shape_of(images), num_bytes)


class _Reader:
    """Gives the images of `rows` [M], a batch at a time.

    A worker's DataError is given as a value: raised there, it would arrive wrapped in a traceback.
    """

    def __init__(self, images: Images, rows: Tensor, finish: Finish | None = None) -> None:
        self.images, self.rows, self.finish = images, rows, finish
        self.num_bytes = prod(shape_of(images)) * (finish.views if finish is not None else 1)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, places: Sequence[int]) -> tuple[Tensor | list[Tensor], dict[int, DataError]]:
        """Of those at some places the ones that can be read, and by number what is wrong with the others."""
        read: list[Tensor] = []
        errors = {}
        for number, place in enumerate(places):
            try:
                pixels = self.pixels(int(self.rows[place]), place)
                read += pixels if self.finish is None else self.finish(pixels, place)
            except DataError as error:
                errors[number] = error
        return read or torch.empty((0, *shape_of(self.images)), dtype=torch.uint8), errors

    def pixels(self, row: int, place: int) -> Sequence[Tensor]:  # noqa: ARG002
        """One or more of [H, W, C]."""
        return [self.images[row]]


class _WindowReader(_Reader):
    """Gives windows of the images, as many as there are views."""

    def __init__(self, images: Images, rows: Tensor, ids: Tensor, windows: Windows, finish: Finish | None) -> None:
        super().__init__(images, rows, finish)
        self.ids, self.drawn = ids, windows
        self.num_bytes = prod(shape_of(images)) * len(windows.views)

    def pixels(self, row: int, place: int) -> Sequence[Tensor]:
        number = int(self.ids[place])
        return cast(Sequence[Tensor], cast(Any, self.images).windows(row, partial(self.drawn.boxes, number)))


def read_all(images: Streamed, workers: int) -> Iterator[Read]:
    """All images once, chunk by chunk: those that can be read [M, H, W, C], and row → what is wrong with another."""
    from kd_cli.data.workers import each_chunk

    yield from each_chunk(_Reader(images, torch.arange(len(images))), workers)
