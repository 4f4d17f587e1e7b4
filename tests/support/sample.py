"""How much of what is repeated many times runs: a fixed sample, or with `KD_TEST_ALL=1` all of it."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

ALL = os.environ.get("KD_TEST_ALL", "") not in ("", "0")


def some(cases: Sequence[T], count: int) -> list[T]:
    """So many of the cases, evenly spread, the first and the last among them."""
    if ALL or count >= len(cases):
        return list(cases)
    return [cases[round(number * (len(cases) - 1) / (count - 1))] for number in range(count)]


def in_share(name: str) -> bool:
    """Whether a slow test is in the share that `KD_TEST_SLOW=NUMBER/OF` names, `0/8` the first eighth; all without."""
    number, _, of = os.environ.get("KD_TEST_SLOW", "0/1").partition("/")
    return zlib.crc32(name.encode()) % int(of) == int(number)


def times(every: int, quick: int) -> int:
    """How often something is repeated."""
    return every if ALL else quick
