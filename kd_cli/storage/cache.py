"""Tensors on disk that can be made again: whatever is wrong with a file, whoever made it makes it anew."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_cli.errors import DataError
from kd_cli.storage.files import guard_disk, remove_unfinished, sync
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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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


def entry_name(facts: Mapping[str, Any]) -> str:
    """How the folder is called that has what depends on these facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def folder_size(folder: Path) -> int:
    """Bytes of a file, or of all files below a folder; 0 if there is none."""
    total = 0
    for path in [folder] if folder.is_file() else folder.rglob("*"):
        with suppress(OSError):  # another process has just removed it
            total += path.stat().st_size
    return total


def make_room(keep: Path, limit: int) -> None:
    """Removes the folders beside `keep`, those first that were not used for longest, until all take `limit` bytes."""
    sizes = {folder: folder_size(folder) for folder in keep.parent.glob("*") if folder.is_dir()}
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
