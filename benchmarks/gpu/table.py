"""From raw numbers to the table of the targets."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from benchmarks.gpu.session import Sizes
from benchmarks.measure import Measured
from benchmarks.page import table
from benchmarks.rows import Row

Raw = Mapping[str, Any]
STUDENT, TEACHER = "an epoch of the student, validation included", "an epoch of the teacher"


def text(raw: Raw, skipped: Mapping[str, str], sizes: Sizes) -> str:
    """The table, the counts of equal bits, and what was not measured."""
    lines = [table(rows(raw, sizes)), *_bits(raw)]
    if "sweep" in raw:
        lines.append(f"the sweep's {len(raw['sweep']['points'])} points ran in {raw['sweep']['processes']} process(es)")
    lines += [f"start-up to the first step, {name}: {each:.1f} s" for name, each in raw.get("start-up", {}).items()]
    lines += [f"not measured, {name}: {why.splitlines()[0]}" for name, why in skipped.items()]
    return "\n".join(lines)


def rows(raw: Raw, sizes: Sizes) -> list[Row]:
    """Those whose two sides were measured."""
    ours, before = raw.get("epochs", {}), raw.get("before epochs", {})
    student, eager = _middle(ours, "student"), _middle(ours, "student, eager")
    found = [
        _row("a step of the student, deterministic", "not deterministic", *_steps(ours, "student"), 1.10, at_most=True),
        _row("a step of the teacher, deterministic", "not deterministic", *_steps(ours, "teacher"), 1.10, at_most=True),
        _row(STUDENT, "the build before", student, _middle(before, "student"), 5),
        _row(STUDENT, "kd without graphs", student, eager),
        *(
            _row(STUDENT, f"script, {workers} workers", student, _scaled(each, sizes), 8 if workers == "12" else None)
            for workers, each in raw.get("script", {}).items()
        ),
        *(_teacher(precision, ours, before) for precision in ("fp32", "tf32", "bf16")),
        *_sweeps(raw),
        _row(
            "a step of the student", "bare captured loop", _middle(ours, "student", "training"), _loop(raw), 1.10, True
        ),
    ]
    return [row for row in found if row is not None]


def _row(
    title: str, opponent: str, kd: float | None, other: float | None, target: float | None = None, at_most: bool = False
) -> Row | None:
    if kd is None or other is None:
        return None
    return Row(title, opponent, Measured(None, [kd]), Measured(None, [other]), target, at_most)


def _middle(epochs: Raw, name: str, kind: str = "all") -> float | None:
    """The median epoch of a setting; the first is not counted."""
    return median(epochs[name][kind][1:]) if name in epochs else None


def _steps(epochs: Raw, role: str) -> tuple[float | None, float | None]:
    """Training without validation: so many steps each, deterministic and not."""
    return _middle(epochs, role, "training"), _middle(epochs, f"{role}, not deterministic", "training")


def _teacher(precision: str, ours: Raw, before: Raw) -> Row | None:
    name = "teacher" if precision == "fp32" else f"teacher, {precision}"
    target = None if precision == "fp32" else 2.5
    return _row(f"{TEACHER}, {precision}", "the build before", _middle(ours, name), _middle(before, "teacher"), target)


def _sweeps(raw: Raw) -> list[Row | None]:
    """Points that the other build was spared, which runs one after the other, took as long as its last one."""
    kd, found = raw.get("sweep"), []
    for name, opponent, target in (("default", "default", 10), ("8 jobs", "n_jobs=8", 3)):
        other = raw.get(f"before {name}")
        if kd and other:
            points, done = len(kd["points"]), len(other["points"])
            seconds = other["seconds"] + (points - done) * other["points"][-1]
            measured = f", {done} points measured" if done < points else ""
            opponent = f"the build before, {opponent}{measured}"
            found.append(_row(f"a sweep of {points} points", opponent, kd["seconds"], seconds, target))
    return found


def _scaled(script: Raw, sizes: Sizes) -> float:
    """The script's epoch of all training images."""
    return median(script["epochs"][1:]) * sizes.train / script["images"]


def _loop(raw: Raw) -> float | None:
    return median(raw["loop"]["seconds"][1:]) if "loop" in raw else None


def _bits(raw: Raw) -> list[str]:
    """One line for each check; what is not the same is named."""
    report = raw.get("bits", {"checks": {}})
    return [f"identical bits, {name}: {_count(each, report['losses'])}" for name, each in report["checks"].items()]


def _count(found: Mapping[str, bool | str], losses: int) -> str:
    wrong = [loss for loss, same in found.items() if same is not True]
    unknown = f"; {losses - len(found)} not checked" if len(found) < losses else ""
    return f"{len(found) - len(wrong)} of {losses} losses{unknown}" + (f"; not {', '.join(wrong)}" if wrong else "")
