"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from kd_cli.errors import DataError, KDError

_LARGEST_RECORD = 2**24  # bytes; a sweep of ten thousand points has less


def open_regular(path: Path) -> BinaryIO:
    """Opens a file to be read.

    Raises:
        OSError: it cannot be read, or is a pipe, a device or a folder: these would be waited for, or never end.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(handle, "rb")


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


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file, or None if it is missing or not JSON."""
    try:
        with open_regular(path) as file:
            content = file.read(_LARGEST_RECORD + 1)
        value = json.loads(content) if len(content) <= _LARGEST_RECORD else None
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


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
    """Writes a file whole or not at all: a temporary name, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Gives a temporary folder to fill with files; it takes the place of `path` when all of them are on the disk.

    Raises:
        OSError: the disk is full or cannot be written; nothing is left behind.
    """
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    shutil.rmtree(temporary, ignore_errors=True)
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
    """Turns a full or unwritable disk into a KDError that says so."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError) and not isinstance(error, FileExistsError):
            raise KDError(
                f"{self.folder} cannot be written: {error.strerror or error}. What was written before is whole; "
                "make room, then give the same command again with hydra.run.dir set to this run's folder."
            ) from error


def sync(path: Path) -> None:
    """fsync of a file or a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
