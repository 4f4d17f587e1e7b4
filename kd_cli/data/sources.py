"""Where encoded images lie: in files of their own, or in a part of a larger one."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from torch import Tensor

from kd_cli.data.decode import Opening, Unreadable
from kd_cli.data.names import CHUNK, Names
from kd_cli.errors import DataError
from kd_cli.storage.files import open_handle

Edges = tuple[bytes, bytes] | None  # none: the image cannot be read, or is not what it was; `Source.open` says why


class Source(Protocol):
    """Where N encoded images lie. Workers get a copy, forked or pickled, so it holds no open file and no long list."""

    sizes: Tensor  # bytes of each [N], int64

    def __len__(self) -> int: ...

    def name(self, row: int) -> str:
        """What messages call an image."""

    def open(self, row: int) -> Opening:
        """What gives the bytes of an image, seekable. It raises where it is entered, not before."""

    def edges(self, rows: Sequence[int], count: int) -> list[Edges]:
        """Of each image the first `count` bytes and the last two, in as few calls as can be."""

    def described(self) -> Iterator[bytes]:
        """What tells these images from others, without reading them; the same images give the same bytes."""

    def subset(self, rows: Tensor) -> Source:
        """Some of them, in the order given."""


class Checked(Protocol):
    """Raises DataError where a file is another one than it was."""

    def __call__(self, path: str, status: os.stat_result) -> None: ...


class Unopened:
    """A file, or a part of one, that is opened when it is entered. (A generator takes as long as the opening.)

    Args:
        path: of the file.
        check: what it must be.
        part: offset and bytes; none: all of it.
    """

    def __init__(self, path: str, check: Checked, part: tuple[int, int] | None = None) -> None:
        self._path, self._check, self._part = path, check, part

    def __enter__(self) -> BinaryIO:
        self._handle = self._opened()
        raw = io.FileIO(self._handle, closefd=False) if self._part is None else _Part(self._handle, *self._part)
        return cast(BinaryIO, io.BufferedReader(raw))

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    def _opened(self) -> int:
        handle, status = open_handle(self._path)
        try:
            self._check(self._path, status)
        except BaseException:
            os.close(handle)
            raise
        return handle

    def edges(self, offset: int, size: int, count: int) -> Edges:
        """The first `count` bytes of a part and its last two."""
        try:
            handle = self._opened()
        except (OSError, DataError):
            return None
        try:
            head = os.pread(handle, min(count, size), offset)
            return head, head[-2:] if size <= count else os.pread(handle, 2, offset + size - 2)
        except OSError:
            return None
        finally:
            os.close(handle)


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
        return self._unopened(row, int(self.sizes[row]))

    def edges(self, rows: Sequence[int], count: int) -> list[Edges]:
        """Of the files."""
        sizes = zip(rows, self.sizes[list(rows)].tolist(), strict=True)
        return [self._unopened(row, size).edges(0, size, count) for row, size in sizes]

    def _unopened(self, row: int, size: int) -> Unopened:
        return Unopened(self.name(row), partial(_check_size, size))

    def described(self) -> Iterator[bytes]:
        """Names and sizes."""
        for number, names in enumerate(self.names.chunks()):
            sizes = self.sizes[number * CHUNK : (number + 1) * CHUNK].tolist()
            yield (b"\n%s\t%d" * len(names)) % tuple(chain.from_iterable(zip(names, sizes, strict=True)))

    def subset(self, rows: Tensor) -> FolderSource:
        """Some of them, in the order given."""
        return FolderSource(self.root, self.names.take(rows), self.sizes[rows])


def _check_size(size: int, path: str, status: os.stat_result) -> None:
    if status.st_size != size:
        raise Unreadable(
            f"{path} has {status.st_size:,} bytes, and had {size:,} when kd looked at its folder: it was written anew "
            f"meanwhile. Type the command again; if that says the same: touch {os.path.dirname(path)}"  # noqa: PTH120
        )


class _Part(io.RawIOBase):
    """A part of an open file, as a file of its own."""

    def __init__(self, handle: int, start: int, size: int) -> None:
        self._handle, self._start, self._size, self._place = handle, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        if origin + offset < 0:
            raise OSError("before the beginning")
        self._place = origin + offset
        return self._place

    def readall(self) -> bytes:
        return self._take(self._size - self._place)

    def readinto(self, buffer: Any) -> int:
        content = self._take(min(len(buffer), self._size - self._place))
        buffer[: len(content)] = content
        return len(content)

    def _take(self, count: int) -> bytes:
        content = os.pread(self._handle, max(count, 0), self._start + self._place)
        self._place += len(content)
        return content


def state_of(path: Path) -> list[int]:
    """Bytes and time (ns) of a file. Raises DataError: it is not there."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); type dataset.root=DIR") from error
    return [status.st_size, status.st_mtime_ns]
