"""Where a teacher's answers are kept on disk, and how they lie in a row.

<cache>/teacher/<key>/about.json           what the key was made of
<cache>/teacher/<key>/train/               its answers, a row for each training image, in shards
<cache>/teacher/<key>/seed-0-view-0003/    the same where images are augmented: anew for every view
<cache>/teacher/<key>/seed-0-view-0003-first-960-of-epoch-0003/     of those alone that an epoch uses
<cache>/teacher/<key>/val.safetensors      its logits for the validation images

N training images, B per batch.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from mmap import mmap
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from kd_cli.errors import ConfigError
from kd_cli.storage.cache import Shards, cache_folder, entry_name
from kd_cli.storage.files import read_json, write_json
from kd_cli.storage.locks import wait_for
from kd_cli.types import Outputs

LOGITS = "logits"
WHOLE = "train"  # the name of the only view of images that are not augmented

_MOST_SHARDS = 16  # of a view: as many processes can ask at the same time
_LEAST_ROWS = 8192  # of a shard, where there are more than one
_MOST_BYTES = 2**30  # of a shard: what is asked again if it is damaged
_WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


@dataclass(frozen=True)
class Kept:
    """How answers are kept; by default they are exact.

    Args:
        top_k: so many logits of an image, the highest ones, and the log-sum-exp of all; None: all of them.
        dtype: `float16` or `bfloat16`; None: what the teacher computes in.
    """

    top_k: int | None = None
    dtype: str | None = None

    def __bool__(self) -> bool:
        return self.top_k is not None or self.dtype is not None


EXACT = Kept()


class Coding(Protocol):
    """How one output [B, …] lies in columns [B, …], and how it is made of them again."""

    about: Mapping[str, Any]  # all that the columns mean

    def encode(self, output: Tensor) -> dict[str, Tensor]: ...

    def decode(self, columns: Mapping[str, Tensor]) -> Tensor: ...


class Plain:
    """One column, in the memory format in which the teacher gave the output.

    Args:
        tap: the column's name.
        output: [B, …], an example.
        dtype: of the column; None: the output's own.
    """

    def __init__(self, tap: str, output: Tensor, dtype: torch.dtype | None = None) -> None:
        self._tap, self._given, self._kept = tap, output.dtype, dtype or output.dtype
        self._order = (0, *sorted(range(1, output.dim()), key=output.stride, reverse=True))
        self._back = [self._order.index(dimension) for dimension in range(output.dim())]
        self.about: Mapping[str, Any] = {"tap": tap, "order": self._order, "given": str(self._given)}

    def encode(self, output: Tensor) -> dict[str, Tensor]:
        column = output.permute(self._order).to(self._kept)
        if self._kept != self._given and (column.isinf() & output.permute(self._order).isfinite()).any():
            name, most = str(self._kept).removeprefix("torch."), output.abs().max()
            raise ConfigError(
                f"teacher_cache_dtype: {name} cannot hold {most:.3g}, which is among the teacher's {self._tap}; "
                "type teacher_cache_dtype=null"
            )
        return {self._tap: column}

    def decode(self, columns: Mapping[str, Tensor]) -> Tensor:
        return columns[self._tap].to(self._given).permute(self._back)


class Layout:
    """How all outputs for an image lie in a row of so many bytes.

    Args:
        codings: of each output, logits first.
        example: what they make of an example, [B, …] each.
    """

    def __init__(self, codings: Sequence[Coding], example: Outputs) -> None:
        self.codings = codings
        # Those of large numbers first: each then begins at a multiple of its own size.
        columns = sorted(self.encode(example).items(), key=lambda each: -each[1].element_size())
        self._columns = [(name, column.dtype, tuple(column.shape[1:])) for name, column in columns]
        self._sizes = [prod(shape) * dtype.itemsize for _, dtype, shape in self._columns]
        width = self._columns[0][1].itemsize
        self.row_bytes = -(-sum(self._sizes) // width) * width
        self.word = _WORDS.get(width, torch.int64)  # rows are gathered as words, not as bytes
        self.words = self.row_bytes // self.word.itemsize

    @property
    def about(self) -> dict[str, Any]:
        """All that the bytes of a row mean, as plain JSON values."""
        columns = [{"name": name, "dtype": str(dtype), "shape": shape} for name, dtype, shape in self._columns]
        return {"row_bytes": self.row_bytes, "columns": columns, "codings": [each.about for each in self.codings]}

    def encode(self, said: Outputs) -> dict[str, Tensor]:
        """The columns of what the teacher says."""
        outputs = (said.logits, *said.features.values())
        coded = (coding.encode(output) for coding, output in zip(self.codings, outputs, strict=True))
        return {name: column for columns in coded for name, column in columns.items()}

    def decode(self, columns: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits [B, K] and features."""
        logits, *features = (coding.decode(columns) for coding in self.codings)
        return logits, dict(zip((coding.about["tap"] for coding in self.codings[1:]), features, strict=True))

    def through(self, said: Outputs) -> Outputs:
        """What is left of what the teacher says when it was kept."""
        return Outputs(*self.decode(self.encode(said)), said.classifier)

    def pack(self, columns: Mapping[str, Tensor]) -> Tensor:
        """Rows [B, bytes], uint8, on the CPU."""
        size = len(next(iter(columns.values())))
        parts = [columns[name].reshape(size, -1).contiguous().view(torch.uint8).cpu() for name, _, _ in self._columns]
        filling = torch.zeros(size, self.row_bytes - sum(self._sizes), dtype=torch.uint8)
        return torch.cat([*parts, filling], dim=1)

    def mapped(self, rows: mmap) -> Tensor:
        """A shard's rows [n, words], which stay in their file."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that they cannot be written
            return torch.frombuffer(rows, dtype=torch.uint8).view(self.word).view(-1, self.words)

    def unpack(self, rows: Tensor) -> dict[str, Tensor]:
        """The columns of rows [B, words], where they are."""
        columns, place, content = {}, 0, rows.view(torch.uint8)
        for (name, dtype, shape), size in zip(self._columns, self._sizes, strict=True):
            column = content[:, place : place + size].contiguous().view(dtype)
            columns[name] = column.view(len(rows), *shape)
            place += size
        return columns


def make_layout(said: Outputs, kept: Kept) -> Layout:
    """How what a teacher says is kept.

    Args:
        said: an example, [B, …].

    Raises:
        ConfigError: the type is too small for it.
    """
    dtype = None if kept.dtype is None else getattr(torch, kept.dtype)
    logits: Coding = Plain(LOGITS, said.logits, dtype)
    if kept.top_k is not None:
        from kd_cli.teachers.top_k import TopK

        logits = TopK(LOGITS, said.logits, kept.top_k, dtype)
    features: list[Coding] = [Plain(tap, feature, dtype) for tap, feature in said.features.items()]
    return Layout([logits, *features], said)


def rows_per_shard(size: int, row_bytes: int, batch_size: int) -> int:
    """How many of `size` rows are in a shard: full batches, and few shards unless they become very large."""
    wanted = min(max(-(-size // _MOST_SHARDS), _LEAST_ROWS), max(1, _MOST_BYTES // row_bytes))
    return max(1, wanted // batch_size) * batch_size


class Resident:
    """Rows on the device.

    Args:
        values: [rows, words].
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def take(self, rows: Tensor) -> Tensor:
        """Those rows [B], as words [B, …]."""
        return self.values.index_select(0, rows)


class Mapped:
    """Rows in files, as one after the other.

    Args:
        maps: of each view the words of each shard, [n, words] on the CPU.
        device: where they are wanted.
    """

    def __init__(self, maps: Sequence[Sequence[Tensor]], device: torch.device) -> None:
        self._maps, self._device = [each for view in maps for each in view], device
        self._size, self._per = sum(map(len, maps[0])), len(maps[0][0])
        self._shards = len(maps[0])

    @property
    def dtype(self) -> torch.dtype:
        """Of the words."""
        return self._maps[0].dtype

    @property
    def shape(self) -> tuple[int, int]:
        """Of all rows."""
        return len(self._maps) // self._shards * self._size, self._maps[0].shape[1]

    @property
    def nbytes(self) -> int:
        """Of all rows."""
        return sum(each.nbytes for each in self._maps)

    def take(self, rows: Tensor) -> Tensor:
        """Those rows [B], as words [B, …] on the device: nothing else is read."""
        rows = rows.cpu()
        view, row = rows // self._size, rows % self._size
        shard, row = view * self._shards + row // self._per, row % self._per
        taken = torch.empty(len(rows), self._maps[0].shape[1], dtype=self.dtype)
        for number in shard.unique().tolist():
            wanted = (shard == number).nonzero().flatten()
            taken[wanted] = self._maps[number].index_select(0, row[wanted])
        return taken.to(self._device)

    def copy_to(self, values: Tensor) -> None:
        """Fills [rows, words] on any device, a shard at a time."""
        for part, each in zip(values.split([len(each) for each in self._maps]), self._maps, strict=True):
            part.copy_(each)


@dataclass(frozen=True)
class Entry:
    """Where the answers of one teacher to one kind of question are.

    Args:
        facts: all that they depend on but seed and view, as plain JSON values.
        limit: bytes that this and all other entries may take.
        kept: what is kept of an answer.
        per_shard: rows in a file, whole batches; None: as many as `rows_per_shard` says.
        root: the folder in which its own is; None: the cache's.
    """

    facts: Mapping[str, Any]
    limit: int
    kept: Kept = EXACT
    per_shard: int | None = None
    root: Path | None = None

    @property
    def path(self) -> Path:
        """Its folder."""
        return (self.root or cache_folder()) / "teacher" / entry_name(self.facts)

    def shards(self, name: str, layout: Layout, size: int, batch_size: int) -> Shards:
        """The files of `size` rows, whole batches in each."""
        per_shard = self.per_shard or rows_per_shard(size, layout.row_bytes, batch_size)
        about = {"rows": size, "rows_per_shard": per_shard, **layout.about}
        return Shards(self.path / name, json.dumps(about, sort_keys=True))

    def sign(self) -> None:
        """Says what the entry is of, and that it is used."""
        with self.locked():
            pass

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process asks the teacher while the others wait; where files have no locks, each asks."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("a")
        except OSError:
            yield
            return
        with lock:
            with suppress(OSError):  # this file system has no locks
                wait_for(lock, "teacher    is being asked by another training; waiting for its answers")
            with suppress(OSError):
                if entry_name(read_json(self.path / "about.json") or {}) != self.path.name:  # missing or damaged
                    write_json(self.path / "about.json", self.facts)
                os.utime(self.path / "about.json")  # used now: others make room first
            yield
