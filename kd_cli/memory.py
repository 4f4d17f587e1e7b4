"""How the process keeps memory."""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # mallopt(3)


def keep_freed_memory() -> None:
    """Makes glibc keep the memory of freed tensors for the next ones.

    By default a large block is given back to the system when it is freed, and the next batch's feature maps are
    made of pages that the system has to clear again: half of the time of a small convolutional network's epoch, a
    third of a larger one's (`python -m benchmarks allocator`). Nothing is done where another C library or allocator is
    used, or where the user tunes glibc's by its own variables (MALLOC_…_).
    """
    tuned = any(name.startswith("MALLOC_") or name == "LD_PRELOAD" for name in os.environ)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and not tuned:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
