"""Runs programs, times them in turns, and watches how much memory they take."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parent.parent
NOTHING: Mapping[str, str] = {}
_LOOK = 0.1  # seconds between two looks at the memory


class Failed(Exception):
    """A row cannot be measured.

    Args:
        text: one line.
        detail: what else is known, for the screen.
    """

    def __init__(self, text: str, detail: str = "") -> None:
        super().__init__(text)
        self.detail = detail


@dataclass(frozen=True)
class Done:
    """A program that has ended.

    Args:
        seconds: from its start to its end.
        report: the JSON object that it printed.
        peak_mb: 10⁶ bytes; None where it was not watched.
    """

    seconds: float
    report: dict[str, Any]
    peak_mb: float | None = None


class Runner(Protocol):
    """Runs one program to its end: `run`, or what takes its place in a test."""

    def __call__(
        self, command: Sequence[str], *, cache: Path, watch: bool = False, variables: Mapping[str, str] = NOTHING
    ) -> Done: ...


def run(
    command: Sequence[str],
    *,
    cache: Path,
    watch: bool = False,
    variables: Mapping[str, str] = NOTHING,
    limit: float | None = None,
) -> Done:
    """Runs a program in a process of its own.

    Args:
        cache: the folder of kd's cache.
        watch: look at its memory, which takes time.
        variables: of its environment, beside those that are here.
        limit: seconds after which it is ended; None: none.

    Raises:
        Failed: with the end of what it printed, or that it took too long.
    """
    environment = {**os.environ, "PYTHONPATH": before_others(ROOT), "KD_CACHE": str(cache), **variables}
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        with subprocess.Popen(command, stdout=printed, stderr=errors, env=environment, cwd=cache.parent) as process:
            try:
                peak = _watch(process) if watch else None
                code = process.wait(limit)
            except subprocess.TimeoutExpired as error:
                process.terminate()
                raise Failed(f"{' '.join(command[1:4])} … was ended after {limit:.0f} seconds") from error
            except BaseException:  # Ctrl-C or SIGTERM: nothing goes on without us
                process.terminate()
                raise
        seconds = time.perf_counter() - start
        printed.seek(0)
        errors.seek(0)
        if code:
            tail = errors.read().strip().splitlines()[-15:]
            what = f"{' '.join(command[1:4])} … ended with exit code {code}: {' '.join(tail[-1:])}"
            raise Failed(what, "\n".join([" ".join(command), *tail]))
        return Done(seconds, json.loads(printed.read()), peak)


def before_others(folder: Path) -> str:
    """PYTHONPATH with a folder before those that are in it."""
    return os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))


def _watch(process: subprocess.Popen[bytes]) -> float | None:
    """The largest memory that a process and its descendants had together, until it ends."""
    peak = None
    while process.poll() is None:
        now = _tree_mb(process.pid)
        peak = now if peak is None else max(peak, now or 0.0)
        time.sleep(_LOOK)
    return peak


def _tree_mb(pid: int) -> float | None:
    """Proportional set size: a page that several processes share counts once. None where there is no /proc."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        children = [child for task in Path(f"/proc/{pid}/task").iterdir() for child in _words(task / "children")]
    except OSError:
        return None
    own = sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return own * 1024 / 1e6 + sum(_tree_mb(int(child)) or 0.0 for child in children)


def _words(path: Path) -> list[str]:
    return path.read_text().split()


@dataclass(frozen=True)
class Sample:
    """What one side did once.

    Args:
        seconds: of what the row is about.
        images: passed through training, to see that all sides did the same work.
        peak_mb: of the whole program; None where it was not watched.
    """

    seconds: float
    images: int
    peak_mb: float | None = None


Side = Callable[[bool], Sample]  # the argument: this is the run before the others, for the caches and the memory


@dataclass
class Measured:
    """What came of one side.

    Args:
        seconds: one number per repetition.
        peak_mb: of the first, untimed run.
    """

    peak_mb: float | None = None
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return median(self.seconds)


def interleave(sides: Mapping[str, Side], repeats: int) -> dict[str, Measured]:
    """Runs all sides in turns, forwards and backwards, so that what the machine does meanwhile meets all of them.

    Before that each side runs once, untimed: it fills the file cache, and its memory is watched (which takes time).

    Raises:
        Failed: a side failed, or did not train on as many images as the others.
    """
    first = _round(sides, list(sides), warm=True)
    measured = {name: Measured(sample.peak_mb) for name, sample in first.items()}
    for repetition in range(repeats):
        names = list(sides) if repetition % 2 == 0 else list(reversed(sides))
        for name, sample in _round(sides, names, warm=False).items():
            measured[name].seconds.append(sample.seconds)
    return measured


def _round(sides: Mapping[str, Side], names: Sequence[str], *, warm: bool) -> dict[str, Sample]:
    samples = {name: sides[name](warm) for name in names}
    if len({sample.images for sample in samples.values()}) > 1:
        counts = ", ".join(f"{name} {sample.images:,}" for name, sample in samples.items())
        raise Failed(f"the sides trained on different numbers of images: {counts}")
    return samples
