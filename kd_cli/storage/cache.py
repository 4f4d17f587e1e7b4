"""Tensors on disk that can be made again: whatever is wrong with a file, whoever made it makes it anew."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import mmap
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_cli.errors import DataError
from kd_cli.storage.files import (
    guard_disk,
    matching,
    open_regular,
    read_text,
    remove_unfinished,
    sync,
    unfinished,
    write_text,
)
from kd_cli.storage.tensors import read_sealed, sealed

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("kd")

_DEAD_AFTER = 3600  # seconds without a byte: whoever wrote this file was killed

_untouched = False


@contextmanager
def untouched() -> Iterator[None]:
    """While this is open, no runs and no answers of teachers are kept; decoded images are, for the run that follows."""
    global _untouched
    _untouched = True
    try:
        yield
    finally:
        _untouched = False


def is_untouched() -> bool:
    """Whether no answers of teachers may be kept now."""
    return _untouched


def cache_folder() -> Path:
    """KD_CACHE, else kd/ in XDG_CACHE_HOME, else ~/.cache/kd."""
    own, shared = os.environ.get("KD_CACHE"), os.environ.get("XDG_CACHE_HOME")
    folder = own or (shared and Path(shared, "kd")) or Path("~/.cache/kd")
    return Path(folder).expanduser().absolute()


def read_cached(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """The tensors of a file and the facts beside them; None, with a notice, if it is damaged or another file."""
    if not os.path.lexists(path):
        return None
    try:
        return read_sealed(path, _place(path))
    except DataError as error:
        log.warning("of the cache %s: it is not used", error)
        return None


def write_cached(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """Writes beside the destination and renames, so that a cache file is whole or not there.

    Where that is not possible there is a notice, and next time the tensors are made again.
    """
    temporary = unfinished(path)
    try:
        with guard_disk(path, sum(tensor.nbytes for tensor in tensors.values())):
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_unfinished(path.parent, older_than=_DEAD_AFTER)
            _write(temporary, tensors, sealed(_place(path), tensors, facts))
            temporary.replace(path)
    except OSError as error:
        log.warning("%s It will be made again next time", error)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata=dict(facts))
    except SafetensorError as error:  # it has the system's error as a text only: `… (os error 28)`
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error)) from error
    sync(path)


def _place(path: Path) -> str:
    """What a file says of itself: a file of another entry, epoch or data set is not taken for it."""
    return f"{path.parent.name}/{path.name}"


@dataclass(frozen=True)
class Shards:
    """Rows of a fixed size in a few files, each of which is whole or not there, and is read through the memory map.

    <folder>/manifest.json         what the rows are
    <folder>/0003-<digest>.rows    one shard's rows, one after the other; the digest is of manifest, place and rows
    <folder>/.0003.part, .sums     what has been written of one, and its digest after each batch (`storage.parts`)

    Args:
        folder: theirs alone.
        manifest: JSON with at least `rows`, `rows_per_shard` and `row_bytes`.
    """

    folder: Path
    manifest: str

    @property
    def about(self) -> dict[str, Any]:
        """What the manifest says."""
        about: dict[str, Any] = json.loads(self.manifest)
        return about

    @property
    def count(self) -> int:
        """How many shards there are."""
        about = self.about
        return int(-(-about["rows"] // about["rows_per_shard"]))

    def rows(self, number: int) -> range:
        """Which rows a shard has."""
        about = self.about
        first = number * about["rows_per_shard"]
        return range(first, min(first + about["rows_per_shard"], about["rows"]))

    def size(self, number: int) -> int:
        """Bytes of a shard."""
        return len(self.rows(number)) * int(self.about["row_bytes"])

    def begun(self, number: int) -> Any:
        """The hash of a shard without rows."""
        place = f"{self.folder.parent.name}/{self.folder.name}/{number}\n{self.manifest}\n"
        return hashlib.blake2b(place.encode(), digest_size=16)

    def files(self, number: int | None = None) -> list[Path]:
        """Of one shard, or of all."""
        return matching(self.folder, "*.rows" if number is None else f"{number:04d}-*.rows")

    def find(self, number: int, *, quiet: bool = False) -> mmap.mmap | None:
        """The rows of a shard; None if there is none. A damaged one is told, unless it was told before."""
        for path in self.files(number):
            found = _whole(path, self.size(number), self.begun(number))
            if isinstance(found, mmap.mmap):
                return found
            if not quiet:
                log.warning("of the cache %s is damaged (%s): it is not used", path, found)
        return None

    def all(self) -> dict[int, mmap.mmap]:
        """The rows of every shard that is there and whole, by its number."""
        found = {number: self.find(number) for number in range(self.count)}
        return {number: rows for number, rows in found.items() if rows is not None}

    def describe(self) -> None:
        """Writes the manifest, unless it is there."""
        path = self.folder / "manifest.json"
        if _text(path) != self.manifest:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(path, self.manifest)

    def remove(self) -> None:
        """All of them, and what is being written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def is_complete(self) -> bool:
        """Whether there is a file of each shard; what is in them is not looked at."""
        try:
            return {f"{number:04d}" for number in range(self.count)} <= {path.name[:4] for path in self.files()}
        except (ValueError, TypeError, KeyError, ArithmeticError):
            return False

    def is_whole(self) -> bool:
        """Whether every file that is there is what was written, for a manifest that anybody may have made."""
        try:
            numbers = [int(path.name.partition("-")[0]) for path in self.files()]
            sound = all(number < self.count and self.find(number) for number in numbers)
        except (ValueError, TypeError, KeyError, ArithmeticError, MemoryError, RecursionError):
            return False
        return sound and len(set(numbers)) == len(numbers)


def shards_in(folder: Path) -> Shards:
    """What a folder says that it has; its manifest may be of anybody."""
    return Shards(folder, _text(folder / "manifest.json"))


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError):
        return ""


def _whole(path: Path, size: int, digest: Any) -> mmap.mmap | str:
    """A file's bytes if they are those of its name, else what is wrong with it."""
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size != size:
                return "of another size"
            rows = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError from error
        return str(error.strerror)
    digest.update(rows)
    return rows if path.stem.partition("-")[2] == digest.hexdigest() else "wrong checksum"


def entry_name(facts: Mapping[str, Any]) -> str:
    """How the folder is called that has what depends on these facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def folder_size(folder: Path) -> int:
    """Bytes of a file, or of all files below a folder; 0 if there is none."""
    total = 0
    below = (Path(at, name) for at, _, names in os.walk(folder) for name in names)
    for path in [folder] if folder.is_file() else below:
        with suppress(OSError):  # another process has just removed it
            total += path.stat().st_size
    return total


def make_room(keep: Path, limit: int) -> None:
    """Removes the folders beside `keep`, those first that were not used for longest, until all take `limit` bytes."""
    sizes = {folder: folder_size(folder) for folder in matching(keep.parent, "*") if folder.is_dir()}
    for folder in sorted(sizes, key=last_used):
        if sum(sizes.values()) <= limit:
            return
        if folder != keep:
            shutil.rmtree(folder, ignore_errors=True)
            del sizes[folder]


def last_used(entry: Path) -> float:
    """When the answers in a folder, or a file, were used last: seconds since 1970."""
    marker = entry / "about.json" if entry.is_dir() else entry
    try:
        return marker.stat().st_mtime
    except OSError:
        return 0.0
