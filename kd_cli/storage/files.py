"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from kd_cli.errors import DataError, DiskError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # the disk, the user's share of it, what one file may have
_LOCKED = {errno.EROFS, errno.EACCES, errno.EPERM}
_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ESTALE}
_LARGEST_RECORD = 2**24  # bytes; a sweep of ten thousand points has less
_MOST_LEVELS = 50  # a record of a run has some twenty
_BRACKETS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)  # or a text, with its brackets


def open_regular(path: Path | str) -> BinaryIO:
    """Opens a file to be read.

    Raises:
        OSError: it cannot be read, or is a pipe, a device or a folder: these would be waited for, or never end.
    """
    handle, _ = open_handle(path)
    return io.BufferedReader(io.FileIO(handle))  # os.fdopen asks first whether it is a terminal


def open_handle(path: Path | str) -> tuple[int, os.stat_result]:
    """As `open_regular`: what the system calls the open file, and what it says of it."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return handle, status


@contextmanager
def without_empty_folders(folder: Path) -> Iterator[None]:
    """At the end the folder, and those above it that were not there before, are removed where nothing is in them."""
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        yield
    finally:
        with suppress(OSError):
            for each in new:
                each.rmdir()


def file_digest(path: Path) -> str:
    """SHA-256 of a file, however large; empty if there is none that can be read."""
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            while piece := file.read(2**20):
                digest.update(piece)
    except OSError:
        return ""
    return digest.hexdigest()


def read_text(path: Path, most: int = _LARGEST_RECORD) -> str:
    """The text of a file.

    Args:
        most: bytes that are read at the most.

    Raises:
        OSError: as `open_regular`.
        ValueError: it is larger, or not UTF-8.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ValueError(f"it has {size:,} bytes, more than {most:,}")
        return file.read(most).decode()


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file, or None if it is missing, not JSON, or so large or deep that kd did not write it."""
    try:
        text = read_text(path)
        value = None if _is_deep(text) else json.loads(text)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _is_deep(text: str) -> bool:
    """Whether more lists and objects stand inside one another than in anything that kd writes."""
    level = 0
    for bracket in _BRACKETS.finditer(text):
        level += {"[": 1, "{": 1, "]": -1, "}": -1}.get(bracket.group(), 0)
        if level > _MOST_LEVELS:
            return True
    return False


def read_record(path: Path, remedy: str) -> dict[str, Any] | None:
    """As `read_json`, for what must not be taken for missing.

    Args:
        remedy: what to do about a damaged one.

    Raises:
        DataError: it is there, but cannot be read or is no JSON object.
    """
    record = read_json(path)
    if record is None and os.path.lexists(path):
        raise DataError(f"{path} is damaged: it holds no JSON object. {remedy}")
    return record


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a file whole or not at all."""
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all: a temporary name, fsync, rename, fsync of the folder.

    Raises:
        DiskError: the disk is full or cannot be written; nothing is left behind.
    """
    temporary = unfinished(path)
    with guard_disk(path, len(content)):
        try:
            temporary.write_bytes(content)
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
        finally:
            with suppress(OSError):  # a disk that cannot be written has nothing to be removed
                temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Gives a temporary folder to fill with files; it takes the place of `path` when all of them are on the disk.

    Raises:
        OSError: the disk is full or cannot be written; nothing is left behind.
    """
    temporary, old = unfinished(path), unfinished(path).with_suffix(".old")
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class guard_disk:
    """Turns a full or unwritable disk into an error that says what did not get there.

    Args:
        path: what is written.
        size: its bytes, where they are known.
        go_on: what to type once the disk can be written again.
    """

    def __init__(self, path: Path, size: int | None = None, go_on: str = "") -> None:
        self._path, self._size, self._go_on = path, size, go_on

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError):
            raise not_written(self._path, self._size, error, self._go_on) from error


def not_written(path: Path, size: int | None, error: OSError, go_on: str = "") -> DiskError:
    """The error for what did not get onto the disk: where, how much, why, what to do, and what to type then."""
    if isinstance(error, DiskError):  # it names the file itself
        text = str(error)
    else:
        wanted = f"; {size:,} bytes were to be written" if size is not None else ""
        text = f"{path} cannot be written: {error.strerror or error}{wanted}{_room(path, error)}."
    if go_on:
        text += f" What was written before is whole. {_remedy(error)}, then go on with:\n{go_on}"
    return DiskError(text, error.errno, error.strerror or "")


def is_full(error: OSError) -> bool:
    """Whether room is what is missing."""
    return error.errno in _FULL


def _room(path: Path, error: OSError) -> str:
    """How much of it there is; where there is enough, something else has a limit."""
    there = next((folder for folder in path.absolute().parents if folder.is_dir()), Path("/"))
    if error.errno in _GONE:
        return f"; the folder has vanished, {there} is what is left of its path"
    if error.errno not in _FULL:
        return ""
    with suppress(OSError):
        free = os.statvfs(there)
        more = {errno.EFBIG: ", and ulimit -f limits a file", errno.EDQUOT: ", and the quota is used up"}
        files = ", and no more files can be made there" if not free.f_favail else ""
        return f", {free.f_bavail * free.f_frsize:,} are free{more.get(error.errno or 0, files)}"
    return ""


def _remedy(error: OSError) -> str:
    if error.errno in _GONE:
        return "Bring the folder back"
    return "Make it writable" if error.errno in _LOCKED else "Make room"


def unfinished(path: Path) -> Path:
    """A name beside a file or folder until it is whole, which no thread, process or machine gives another time."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def matching(folder: Path, pattern: str) -> list[Path]:
    """What a folder has of such names, sorted; none if another process removes the folder meanwhile."""
    with suppress(OSError):  # glob looks whether there is a folder, and then into it
        return sorted(folder.glob(pattern))
    return []


def remove_unfinished(folder: Path, older_than: float = 0) -> None:
    """Removes what killed processes have left half written in a folder.

    Args:
        older_than: seconds without a byte, where others may be writing.
    """
    for path in matching(folder, ".*.tmp"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime >= older_than:
                path.unlink()


def sync(path: Path) -> None:
    """fsync of a file or a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
