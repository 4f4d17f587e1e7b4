"""Which files a pattern of shards means: `train-{0000..0009}.tar`, `*train*.tar`, several of them with `::`."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from kd_cli.data.base import Part
from kd_cli.errors import DataError, listed

log = logging.getLogger("kd")

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})")
_MOST = 100_000  # files


def find_shards(root: Path, patterns: Mapping[Part, str | None]) -> dict[Part, list[str]]:
    """The files of each part, relative to the root, in the order of the patterns; what belongs to no part is told.

    Raises:
        DataError: a pattern means no file, one that is not there, or one of another part.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; type dataset.root=DIR, the folder of the tar files")
    shards = {part: _matching(root, part, pattern) for part, pattern in patterns.items() if pattern}
    every = [name for names in shards.values() for name in names]
    twice = sorted({name for name in every if every.count(name) > 1}) if len(set(every)) < len(every) else []
    if twice:
        raise DataError(f"{root}: {listed(twice)} would be read twice; type other patterns for {', '.join(shards)}")
    others = sorted({path.name for path in root.glob("*.tar")} - set(every))
    if others:
        log.warning("%s: in no part: %s (dataset.train, dataset.val and dataset.test say which)", root, listed(others))
    return shards


def _matching(root: Path, part: Part, pattern: str) -> list[str]:
    found: list[str] = []
    for name in (name for each in pattern.split("::") for name in expand(each)):
        matches = sorted(glob.glob(name, root_dir=root)) if glob.has_magic(name) else [name]  # noqa: PTH207
        found += matches
        missing = [match for match in matches if not (root / match).is_file()]
        if missing or not matches:
            there = listed(sorted(path.name for path in root.glob("*.tar") if path.is_file())) or "none"
            raise DataError(
                f"dataset.{part}={pattern}: no file {[*missing, name][0]} in {root}. Tar files there: {there}"
            )
    return found


def expand(pattern: str) -> list[str]:
    """All that a pattern with braces means, in order: `a{08..10}` is a08, a09, a10.

    Raises:
        DataError: too many.
    """
    names = [pattern]
    while match := _BRACES.search(names[0]):
        pieces = list(_pieces(match[1]))
        if len(pieces) * len(names) > _MOST:
            raise DataError(f"{pattern!r} means more than {_MOST:,} files; shorten its ranges")
        names = [_BRACES.sub(piece.replace("\\", r"\\"), name, count=1) for name in names for piece in pieces]
    return names


def _pieces(body: str) -> Sequence[str] | Iterator[str]:
    ends = _RANGE.fullmatch(body)
    if not ends:
        return body.split(",")
    first, last = ends.groups()
    step = 1 if int(first) <= int(last) else -1
    numbers = range(int(first), int(last) + step, step)
    width = max(len(first), len(last)) if "0" in (first[0], last[0]) and len(first) > 1 else 0
    return (f"{number:0{width}}" for number in numbers[: _MOST + 1])
