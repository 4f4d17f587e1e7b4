"""Shards that are being written: each by one process, which another one carries on where it is killed."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from kd_cli.errors import DiskError
from kd_cli.storage.cache import Shards
from kd_cli.storage.files import guard_disk, sync
from kd_cli.storage.locks import wait_for


class Part:
    """The rows of a shard that are there already, and whoever adds the others.

    Args:
        shards: to which it belongs.
        number: of the shard.
        file: open to be read and written; what another process has left in it is kept as far as its sums are right.

    Attributes:
        size: bytes that are there.
    """

    def __init__(self, shards: Shards, number: int, file: BinaryIO) -> None:
        self._shards, self._number, self._file = shards, number, file
        self._path = part_of(shards, number)
        self._digest, self.size = shards.begun(number), 0
        self._sums = _opened(self._path.with_suffix(".sums"))
        self._go_on()

    def _go_on(self) -> None:
        most, right = self._shards.size(self._number), 0
        for line in self._sums.read(most + 2**20).splitlines(keepends=True):
            end, _, digest = line.decode(errors="replace").strip().partition(" ")
            size = int(end) if end.isdecimal() and len(end) < 20 else 0
            piece = self._file.read(size - self.size) if self.size < size <= most else b""
            longer = self._digest.copy()
            longer.update(piece)
            if not piece or len(piece) != size - self.size or longer.hexdigest() != digest:
                break
            self._digest, self.size, right = longer, size, right + len(line)
        for file, end_of in ((self._file, self.size), (self._sums, right)):
            file.seek(end_of)
            file.truncate()

    def add(self, rows: bytes) -> None:
        """Writes the next rows."""
        self._digest.update(rows)
        self.size += len(rows)
        with self._guarded():
            self._file.write(rows)
            self._file.flush()
            self._sums.write(f"{self.size} {self._digest.hexdigest()}\n".encode())
            self._sums.flush()

    def finish(self) -> None:
        """The shard is complete: it gets its name."""
        name = f"{self._number:04d}-{self._digest.hexdigest()}.rows"
        with self._guarded():
            if not _is_file(self._path, self._file):  # the cache was cleared, and another process has begun anew
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._path))
            sync(self._path)
            for path in self._shards.files(self._number):  # damaged ones
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            self._path.replace(self._path.with_name(name))
            self._path.with_suffix(".sums").unlink(missing_ok=True)
            sync(self._path.parent)

    def drop(self) -> None:
        """Nobody needs it."""
        for path in (self._path, self._path.with_suffix(".sums")):
            path.unlink(missing_ok=True)

    def _guarded(self) -> guard_disk:
        return guard_disk(self._path, self._shards.size(self._number))

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *_: object) -> None:
        _close(self._sums)


def part_of(shards: Shards, number: int) -> Path:
    """Where a shard is while it is written."""
    return shards.folder / f".{number:04d}.part"


@contextmanager
def writing(shards: Shards, number: int, *, wait: bool) -> Iterator[Part | None]:
    """The part of a shard that this process, and no other, adds to; None if another has it, or has just finished it.

    Args:
        wait: for the one who has it.

    Raises:
        DiskError: it cannot be written; nothing of it is left.
    """
    path = part_of(shards, number)
    with guard_disk(path, shards.size(number)):
        shards.describe()
        file = _opened(path)
    try:
        if not _taken(file, wait) or not _is_file(path, file):
            yield None
            return
        with guard_disk(path, shards.size(number)):
            part = Part(shards, number, file)
        with part:
            yield part
    except DiskError:  # of its own part: another process' is none of its business
        for each in (path, path.with_suffix(".sums")):
            with suppress(OSError):
                each.unlink(missing_ok=True)
        raise
    finally:
        _close(file)


def _opened(path: Path) -> BinaryIO:
    """Opens a file to be read and written, and makes it if there is none."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    handle = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(handle, "r+b")


def _close(file: BinaryIO) -> None:
    with suppress(OSError):  # it would write again what a full disk did not take
        file.close()


def _taken(file: BinaryIO, wait: bool) -> bool:
    """Whether this process may write; where the file system has no locks, any may: all of them write the same."""
    try:
        if wait:
            wait_for(file, "teacher    is being asked by another training; waiting for its answers")
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        return error.errno != errno.EACCES
    return True


def _is_file(path: Path, file: BinaryIO) -> bool:
    """Whether the name is still that of the open file: whoever finishes a shard gives it another one."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(file.fileno()))
    except OSError:
        return False
