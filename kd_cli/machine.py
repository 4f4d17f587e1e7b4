"""How much of the machine this process may use."""

from __future__ import annotations

import os


def available_cores() -> int:
    """How many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # absent on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def given_threads() -> int | None:
    """OMP_NUM_THREADS, where the user set it."""
    text = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(text) if text.isdecimal() and int(text) > 0 else None
