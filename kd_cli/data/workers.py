"""Worker processes that read images, a batch at a time, in order."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from kd_cli.data.blocks import Blocks, blocks_for
from kd_cli.errors import DataError
from kd_cli.machine import available_cores, return_freed_memory

Errors = dict[int, DataError]
Read = tuple[Tensor, Errors]
_Job = tuple[range, int | None]  # places, and the block that their images are written to
_Handed = tuple[Tensor | tuple[int, ...], int | None, Errors]
_CHUNK = 256  # images that a worker hands over at a time


class Reader(Protocol):
    """What worker processes do.

    Attributes:
        num_bytes: of the images of a place; 0: it gives no images.
    """

    num_bytes: int

    def __len__(self) -> int: ...

    def read(self, places: Sequence[int]) -> tuple[Tensor | list[Tensor], Errors]:
        """Of some of the places 0 … M-1 one tensor or those to be stacked, and by number what is wrong with others."""


def each_chunk(reader: Reader, workers: int, chunk: int = _CHUNK) -> Iterator[Read]:
    """All that a reader gives, `chunk` at a time, and place → what is wrong with another."""
    sizes = [min(chunk, len(reader) - first) for first in range(0, len(reader), chunk)]
    for number, (read, errors) in enumerate(read_batches(reader, sizes, workers, pin=False)):
        yield read, {number * chunk + place: error for place, error in errors.items()}


def read_batches(reader: Reader, sizes: Sequence[int], workers: int, *, pin: bool) -> Iterator[Read]:
    """Reads batches of these sizes in worker processes, never more of them than processors; in order."""
    workers = min(workers, available_cores())
    # What is pinned is copied to memory of its own anyway.
    blocks = None if pin else blocks_for(workers, max(sizes) * reader.num_bytes)
    if workers:
        return_freed_memory()
    loader: DataLoader[Any] = DataLoader(
        _Work(reader, blocks),
        batch_sampler=cast(Any, _Jobs(sizes, blocks)),
        num_workers=workers,
        collate_fn=cast(Any, _as_it_is),  # the reader has made the batch
        pin_memory=pin,
        generator=torch.Generator(),  # its own: the default would draw from the global one and change the run
    )
    with warnings.catch_warnings():
        # Python ≥ 3.12 warns of every fork of a process with threads; these workers only decode.
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork.*")
        iterator = iter(loader)
    try:
        for _ in sizes[1:]:
            yield _taken(next(iterator), blocks)
        last = _taken(next(iterator), blocks)
    finally:
        # Now, before the last is used: left to the garbage collector, its workers are waited for, five seconds, and a
        # worker that is forked meanwhile finds them and takes them for its own.
        del iterator
    yield last


def _as_it_is(handed: _Handed) -> _Handed:
    return handed


def _taken(handed: _Handed, blocks: Blocks | None) -> Read:
    read, block, errors = handed
    if isinstance(read, Tensor):
        if blocks is not None and block is not None:
            blocks.give_back(block)
        return read, errors
    return cast(Blocks, blocks).take(cast(int, block), read), errors


class _Jobs:
    """Batches of neighbouring places, by their sizes: as many numbers as batches, however many images they have.

    Each with the block that it is to be written to, if one is free.
    """

    def __init__(self, sizes: Sequence[int], blocks: Blocks | None) -> None:
        self._sizes, self._blocks = sizes, blocks

    def __len__(self) -> int:
        return len(self._sizes)

    def __iter__(self) -> Iterator[_Job]:
        for pair in pairwise(accumulate(self._sizes, initial=0)):
            yield range(*pair), None if self._blocks is None else self._blocks.lend()


class _Work(Dataset[Any]):
    """What a worker does: it hands over a batch or its shape in a block, the block, and what is wrong with others."""

    def __init__(self, reader: Reader, blocks: Blocks | None) -> None:
        self._reader, self._blocks = reader, blocks

    def __getitems__(self, job: _Job) -> _Handed:
        places, block = job
        read, errors = self._reader.read(places)
        if isinstance(read, Tensor):
            return read, block, errors
        if self._blocks is None or block is None:  # a worker stacks them in memory that it shares
            return default_collate(read), block, errors
        return self._blocks.write(block, read), block, errors
