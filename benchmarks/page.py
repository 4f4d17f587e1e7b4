"""The page: the table, the machine, and how each number was made."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT
from benchmarks.rows import Row
from benchmarks.workplace import Sizes

COLUMNS = ("row", "kd", "opponent", "its time", "ratio", "target", "met", "peak MB, kd", "peak MB, opponent")


@dataclass
class Page:
    """Everything that is written.

    Args:
        command: as it was typed.
        repeats: of each row.
        facts: of the machine; see `machine`.
        problems: what could not be measured, and why.
    """

    command: str
    sizes: Sizes
    repeats: int
    facts: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def text(self) -> str:
        parts = ["# Benchmarks", _HEAD.format(repeats=self.repeats), table(self.rows)]
        parts += [f"**Not measured:** {problem}" for problem in self.problems]
        parts += ["## Where and how", "\n".join(f"- {name}: {fact}" for name, fact in self.facts.items())]
        parts += ["```sh\n" + self.command + "\n```"]
        parts += ["## What is compared", _notes(self.sizes)]
        return "\n\n".join(parts) + "\n"


def table(rows: Sequence[Row]) -> str:
    """A Markdown table."""
    lines = [COLUMNS, ("---", *("--:" if name != "opponent" else "---" for name in COLUMNS[1:]))]
    lines += [_cells(row) for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    sign = "≤" if row.at_most else "≥"
    target = "–" if row.target is None else f"{sign} {row.target:g}"
    met = {None: "–", True: "yes", False: "**no**"}[row.met]
    ratio = f"{row.ratio:.2f} [{min(row.ratios):.2f} – {max(row.ratios):.2f}]"
    times = (_time(row.kd.median), row.opponent, _time(row.other.median))
    return (row.title, *times, ratio, target, met, _megabytes(row.kd.peak_mb), _megabytes(row.other.peak_mb))


def _time(seconds: float) -> str:
    if seconds < 0.1:
        return f"{1000 * seconds:.2f} ms"
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"


def _megabytes(size: float | None) -> str:
    return "–" if size is None else f"{size:,.0f}"


def machine() -> dict[str, str]:
    """What the numbers depend on."""
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "torchvision"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS")
    return {
        "machine": f"{_processor()}, {cores} cores, {_memory_gb()}, {platform.system()} {platform.release()}",
        "load when it began": ", ".join(f"{load:.2f}" for load in os.getloadavg()) + " (1, 5, 15 minutes)",
        "threads": f"OMP_NUM_THREADS={threads}" if threads else "as each program takes them (OMP_NUM_THREADS is unset)",
        "versions": f"kd at commit {_commit()}, Python {platform.python_version()}, {packages}",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_gb() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB"


def _commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


_HEAD = """\
How long `kd` takes beside a plain PyTorch script ([benchmarks/script.py](../benchmarks/script.py)) and beside
`torchdistill`. Each number is the median of {repeats} repetitions in which the sides ran in turns on the same machine;
a ratio is the opponent's time by kd's of the same repetition (for the bare loop: kd's by the loop's), with the smallest
and the largest in brackets."""


def _notes(sizes: Sizes) -> str:
    facts: dict[str, Any] = {**vars(sizes), "points": len(sizes.points), "test": sizes.images // 5}
    return _NOTES.format(**facts)


_NOTES = """\
**Networks, recipe, data.** Those of `experiment=cifar10_kl`: the article's teacher and student, Adam at 1e-3, batches
of 128, KL at T = 2 (weights 0.25 and 0.75), float32, on the CPU. Every side trains on {images:,} JPEG images and tests
on {test:,}. Training time is linear in the images; start-up, and the check of the teacher that `kd distill` begins
with, are not, so that fewer images than CIFAR-10's 50,000 count against kd.

**The script** reads the tree with `ImageFolder` and transforms per image (`ToTensor`, `Normalize`; with augmentation
`RandomCrop(32, padding=4)` and `RandomHorizontalFlip`), through a `DataLoader` with {workers} workers, and asks the
teacher at every step. Its workers persist between epochs: most scripts do without, but with few images a start of the
workers in each epoch would count against it. It has no validation and saves nothing; it tests once, at its end.

**torchdistill** comes from PyPI into an environment of its own that shares PyTorch with this one. It has the script's
networks, data sets, loader options and teacher, and the loop of its own examples; it tests once too.

**kd** is the command line in a process of its own. It keeps {validation} images more than the others train on for
validation. In rows about whole jobs its time has everything in it: start-up, decoding all images (its cache is empty),
the check of the teacher, the teacher's pass, validation and a checkpoint after every epoch, and the test of the best
and the last epoch. All sides ask the same teacher, trained for one epoch before; that is in nobody's time.

- *An epoch* is training alone, loading included, validation excluded: the median of all epochs but the first of a run
  of {student_epochs} ({teacher_epochs} for the teacher).
- *Ten epochs of distillation, the sweep:* wall-clock time of the program. The script's sweep is extrapolated: one
  start-up and {points} times the work of one point, the mean of {measured_points} that were run; all its points do the
  same work. kd's is one command: `kd distill -m`, temperatures by presets of weights.
- *Crop and flip:* one `kd distill` whose cache another temperature has filled, as every point of a sweep but the first
  finds it; with its start-up, which a sweep has only once.
- *kd's loop:* kd's trainer and a bare loop over the same tensors in memory, with the same batches and operations
  (`channels_last`, bytes gathered and normalised per batch, fused Adam, the loss summed on the device), epoch by epoch
  in turns in one process.
- *A step of one of a sweep's students* (batch 128, a bare loop, random images): why the points of a sweep run in
  processes of one thread each. Time for one step of one student: of all steps, divided by the students.
- *Freed memory kept:* kd asks glibc to keep the memory of freed tensors for the next ones, and leaves it alone where
  one of its variables is set; beside it kd with `MALLOC_ARENA_TEST=8`, which is glibc's default. All other rows have
  kd as it is, and the opponents as their users have them; the bare loop and the steps of students have kd's setting.

**Memory** is the peak over the whole program with its child processes, loaders included, in 10⁶ bytes: the sum of the
proportional set sizes, in which a page that several processes share counts once. It is read ten times a second in a run
of its own before the timed ones, of two epochs. For the bare loop it is that of a process with one side only.
"""
