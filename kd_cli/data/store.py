"""Where pixels are: in memory as one tensor, or in files that worker processes decode. Both give the same batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, Union, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kd_cli.data.common import InMemory
from kd_cli.errors import DataError
from kd_cli.machine import available_cores
from kd_cli.storage.tensors import digest_tensor


class Streamed(Protocol):
    """Images that are read one by one."""

    image_shape: tuple[int, int, int]  # (H, W, C) of every image

    @property
    def digest(self) -> str: ...  # hex: which images these are, known without reading them

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Tensor: ...  # [H, W, C], uint8; DataError if it cannot be read


_Read = tuple[Tensor, dict[int, DataError]]
_CHUNK = 256  # images that a worker hands over at a time

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

    Attributes:
        resident: pixels are taken from a tensor on the device.
    """

    def __init__(self, images: Images, *, streamed: bool, workers: int) -> None:
        self.images = images
        self.resident = isinstance(images, Tensor) and not streamed
        self._workers = workers
        self._on_device: dict[torch.device, Tensor] = {}

    def batches(self, rows: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        """For each item of `rows` [B] its pixels [B, H, W, C], uint8, on `device`.

        Raises:
            DataError: an image cannot be read.
        """
        if not self.resident:
            for pixels, errors in _in_workers(_Decoded(self.images), rows, self._workers, pin=device.type == "cuda"):
                for error in errors.values():
                    raise error
                yield pixels.to(device, non_blocking=True)
            return
        for chosen in rows:
            yield self.take(chosen, device)

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


class _Decoded:
    """Rows → those that can be read [B, H, W, C], and by their places what is wrong with the others.

    An error is handed on as a value: raised in a worker, it would arrive wrapped in a traceback.
    """

    def __init__(self, images: Images) -> None:
        self.images = images

    def __call__(self, rows: Sequence[int]) -> _Read:
        pixels, errors = [], {}
        for place, row in enumerate(rows):
            try:
                pixels.append(self.images[row])
            except DataError as error:
                errors[place] = error
        empty = torch.empty((0, *shape_of(self.images)), dtype=torch.uint8)
        return torch.stack(pixels) if pixels else empty, errors


def read_all(images: Streamed, workers: int) -> Iterator[_Read]:
    """All images once, chunk by chunk: those that can be read [M, H, W, C], and row → what is wrong with another."""
    yield from each_chunk(_Decoded(images), len(images), workers)


def each_chunk(work: Callable[[Sequence[int]], _Read], size: int, workers: int) -> Iterator[_Read]:
    """What `work` makes of the rows 0 … size-1, some at a time; its errors by row."""
    chunks = torch.arange(size).split(_CHUNK)
    for chunk, (made, errors) in zip(chunks, _in_workers(work, chunks, workers, pin=False), strict=True):
        yield made, {int(chunk[place]): error for place, error in errors.items()}


def _in_workers(
    work: Callable[[Sequence[int]], _Read], batches: Sequence[Tensor], workers: int, *, pin: bool
) -> Iterator[_Read]:
    """What `work` makes of batches of rows, in worker processes, never more of them than processors; in order."""
    loader: DataLoader[Any] = DataLoader(
        _Rows(work),
        batch_sampler=_Lists(batches),
        num_workers=min(workers, available_cores()),
        collate_fn=cast(Any, _as_it_is),
        pin_memory=pin,
        generator=torch.Generator(),  # its own: the default would draw from the global one and change the run
    )
    with warnings.catch_warnings():
        # Python ≥ 3.12 warns of every fork of a process with threads; these workers only decode.
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork.*")
        iterator = iter(loader)
    try:
        yield from iterator
    finally:
        del iterator  # now: left to the garbage collector, its workers are waited for, five seconds


class _Rows(Dataset[Any]):
    """As DataLoader asks a data set for a whole batch."""

    def __init__(self, work: Callable[[Sequence[int]], _Read]) -> None:
        self._work = work

    def __getitems__(self, rows: list[int]) -> _Read:
        return self._work(rows)


class _Lists:
    """Batches of rows as lists, made one at a time: those of a million images would take 50 MB."""

    def __init__(self, batches: Sequence[Tensor]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        return (rows.tolist() for rows in self._batches)


def _as_it_is(read: _Read) -> _Read:
    return read
