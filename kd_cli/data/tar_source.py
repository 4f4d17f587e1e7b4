"""Images inside tar files, read where they lie: nothing is ever extracted, and no name of a member becomes a path."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd_cli.data.decode import Opening, Unreadable
from kd_cli.data.names import CHUNK, Names
from kd_cli.data.sources import Edges, Unopened
from kd_cli.errors import DataError
from kd_cli.storage.files import open_regular

_TAIL = 2**20  # bytes that are looked at behind the last member


@dataclass(frozen=True)
class Member:
    """A regular file of a tar file: its name, where its bytes begin, and how many there are."""

    name: str
    offset: int
    size: int


def members_of(path: Path, read: Callable[[Member], bool]) -> Iterator[tuple[Member, bytes]]:
    """The regular files in a tar file, in their order; folders, links, devices and sparse files are passed over.

    Args:
        read: which of them are read; of the others the content is empty.

    Raises:
        DataError: it is no tar file, is compressed, cut, or damaged, also where Python's tarfile would take that for
            its end.
    """
    try:
        with open_regular(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            end, before = os.fstat(file.fileno()).st_size, -1
            every: Any = archive
            while (member := archive.next()) is not None:
                every.members.clear()  # a million of them would take a gigabyte
                if archive.offset <= before or member.offset_data + member.size > end:
                    raise tarfile.ReadError(f"the member {member.name!r} is not where it should be")
                before = archive.offset
                if member.isreg() and not member.issparse():
                    found = Member(member.name, member.offset_data, member.size)
                    yield found, os.pread(file.fileno(), found.size, found.offset) if read(found) else b""
            _check_end(file.fileno(), archive.offset)
    except (OSError, tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        raise DataError(
            f"{path} cannot be read as a tar file ({error or type(error).__name__}){_hint(path)}"
        ) from error


def _check_end(file: int, offset: int) -> None:
    """Empty blocks, and nothing else, end a tar file. Raises ReadError: something else, or nothing."""
    rest = os.pread(file, _TAIL, offset)
    if rest.strip(b"\0"):
        raise tarfile.ReadError(
            f"after byte {offset:,} comes neither a member nor the end; a part was damaged or added"
        )
    if not rest:
        raise tarfile.ReadError(
            "it has no end, so that members may be missing; if it is whole, truncate -s +1024 ends it"
        )


def _hint(path: Path) -> str:
    try:
        with open_regular(path) as file:
            packed = file.read(4).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zX", b"\x28\xb5\x2f\xfd"))
    except OSError:
        return ""
    return "; it is compressed, which allows no reading out of order: unpack it once to a plain .tar" if packed else ""


class TarSource:
    """Members of tar files.

    Args:
        root: what messages begin with, and what the files' names are relative to.
        shards: the tar files, relative to `root`.
        states: bytes and time (ns) of each [S, 2], int64: others are refused when they are read.
        names: of the members.
        places: shard, offset and bytes of each [N, 3], int64.
    """

    def __init__(self, root: Path, shards: Names, states: Tensor, names: Names, places: Tensor) -> None:
        self.root, self.shards, self.states, self.names, self.places = root, shards, states, names, places
        self.sizes = places[:, 2].contiguous()

    def __len__(self) -> int:
        return len(self.names)

    def name(self, row: int) -> str:
        """The tar file and the member."""
        return f"{self.root}/{self.shards[int(self.places[row, 0])]}/{self.names[row]}"

    def open(self, row: int) -> Opening:
        """The member."""
        shard, offset, size = self.places[row].tolist()
        return self._unopened(shard, (offset, size))

    def edges(self, rows: Sequence[int], count: int) -> list[Edges]:
        """Of the members."""
        places = self.places[list(rows)].tolist()
        return [self._unopened(shard).edges(offset, size, count) for shard, offset, size in places]

    def _unopened(self, shard: int, part: tuple[int, int] | None = None) -> Unopened:
        state = tuple(self.states[shard].tolist())
        return Unopened(f"{self.root}/{self.shards[shard]}", partial(_check_state, state), part)

    def described(self) -> Iterator[bytes]:
        """Names of the tar files and the members, and the members' sizes."""
        shards = [os.fsencode(self.shards[number]) for number in range(len(self.shards))]
        for number, names in enumerate(self.names.chunks()):
            rows = self.places[number * CHUNK : (number + 1) * CHUNK].tolist()
            yield b"".join(
                b"\n%s/%s\t%d" % (shards[shard], name, size) for name, (shard, _, size) in zip(names, rows, strict=True)
            )

    def subset(self, rows: Tensor) -> TarSource:
        """Some of them, in the order given."""
        return TarSource(self.root, self.shards, self.states, self.names.take(rows), self.places[rows])


def _check_state(state: tuple[int, ...], path: str, status: os.stat_result) -> None:
    if (status.st_size, status.st_mtime_ns) != state:
        raise Unreadable(f"{path} was written anew while kd read it; type the command again")


def as_states(states: list[list[int]]) -> Tensor:
    """[S, 2], int64."""
    return torch.tensor(states, dtype=torch.int64).view(-1, 2)
