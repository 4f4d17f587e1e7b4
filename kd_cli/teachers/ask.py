"""A frozen teacher's answers to one view of the images go to the disk batch by batch, shard by shard."""

from __future__ import annotations

import errno
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from mmap import mmap
from pathlib import Path

from torch import Tensor

from kd_cli import console
from kd_cli.errors import DiskError
from kd_cli.storage.cache import Shards, folder_size, make_room
from kd_cli.storage.parts import Part, writing
from kd_cli.teachers.outputs import WHOLE, Entry

log = logging.getLogger("kd")

Ask = Callable[[range], Iterable[Tensor]]  # which rows → them, [B, bytes] for each batch


def complete(entry: Entry, shards: Shards, found: dict[int, mmap], ask: Ask) -> str:
    """Finds or writes all shards that are not there yet; several processes each write some of them.

    Where the cache cannot be written, those that are missing are put into a temporary folder, for this process alone.

    Args:
        found: the shards that are there; the others are added.
        ask: the teacher.

    Returns:
        Why they are not all there, or nothing.
    """
    missing = sum(shards.size(number) for number in range(shards.count) if number not in found)
    needed = missing + sum(map(len, found.values()))
    if folder_size(entry.path) - folder_size(shards.folder) + needed > entry.limit:
        kept, limit = f"{needed / 1e9:.3g} GB", f"teacher_cache_gb={entry.limit / 1e9:g}"
        per = "" if shards.folder.name == WHOLE else " for each view"
        return f"its answers take {kept}{per}, more than {limit} leaves; a larger number keeps them"
    make_room(entry.path, entry.limit - missing)
    watched = _watched(ask, missing // shards.about["row_bytes"])
    try:
        _fill(shards, found, watched)
    except DiskError as error:
        log.warning("%s It will be made again next time", error)
        return _fill_elsewhere(entry, shards, found, watched)
    return ""


def _watched(ask: Ask, count: int) -> Ask:
    progress = console.Counted("teacher    was asked about", count)

    def watched(wanted: range) -> Iterator[Tensor]:
        for rows in ask(wanted):
            yield rows
            progress.add(len(rows))

    return watched


def _fill_elsewhere(entry: Entry, shards: Shards, found: dict[int, mmap], ask: Ask) -> str:
    try:
        with tempfile.TemporaryDirectory(prefix="kd-") as folder:
            there = replace(entry, root=Path(folder)).path / shards.folder.name
            _fill(replace(shards, folder=there), found, ask)
    except OSError as error:
        return str(error)
    return ""


def _fill(shards: Shards, found: dict[int, mmap], ask: Ask) -> None:
    for wait in (False, True):  # first what no other process is writing
        for number in range(shards.count):
            rows = None if number in found else _shard(shards, number, ask, wait)
            if rows is not None:
                found[number] = rows


def _shard(shards: Shards, number: int, ask: Ask, wait: bool) -> mmap | None:
    """A shard; None if another process is writing it, who is not to be waited for."""
    while True:
        with writing(shards, number, wait=wait) as part:
            found = shards.find(number, quiet=True)  # somebody may just have finished it
            if part is not None and found is None:
                return _write(shards, number, part, ask)
            if part is not None:
                part.drop()
        if found is not None or not wait:
            return found


def _write(shards: Shards, number: int, part: Part, ask: Ask) -> mmap:
    missing = shards.rows(number)[part.size // shards.about["row_bytes"] :]
    for rows in ask(missing) if missing else ():  # a killed process may have left it just short of its name
        part.add(rows.numpy().tobytes())
    part.finish()
    found = shards.find(number)
    if found is None:
        raise DiskError(f"{shards.folder} does not keep what is written there.", errno.EIO)
    return found
