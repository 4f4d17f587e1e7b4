"""The machine: how many cores and threads this process may use, which device, and how memory is kept."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kd_cli.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from kd_cli.training.parallel import Ranks

_ranks: Ranks | None = None


def ranks() -> Ranks | None:
    """The processes that train together and of which this is one; None where it trains alone."""
    return _ranks


def shard() -> tuple[int, int]:
    """Which of how many processes that train together this one is: (0, 1) where it trains alone."""
    return (0, 1) if _ranks is None else (_ranks.rank, _ranks.world)


def train_together(those: Ranks | None) -> None:
    """Says with whom this process trains."""
    global _ranks
    _ranks = those


def available_cores() -> int:
    """How many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # absent on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def given_threads() -> int | None:
    """OMP_NUM_THREADS, where the user set it."""
    text = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(text) if text.isdecimal() and int(text) > 0 else None


# Who starts many copies of a program tells each how many there are, and which it is.
_COPIES = {
    "WORLD_SIZE": "LOCAL_RANK",  # torchrun
    "SLURM_STEP_NUM_TASKS": "SLURM_PROCID",  # srun; a batch script, whatever it asks for, runs once and has none
    "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK",
    "PMI_SIZE": "PMI_RANK",
}


def is_copy() -> bool:
    """Whether torchrun or srun has started several copies of kd, and this is one of them."""
    names = ("WORLD_SIZE", "RANK", "MASTER_ADDR") if "RANK" in os.environ else ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID")
    found = [os.environ.get(name, "") for name in names]
    return all(found) and found[0] != "1" and "SLURM_PTY_PORT" not in os.environ


def check_single() -> None:
    """Raises a ConfigError in one of several copies of kd: each would train the same, in a folder of its own."""
    for size, rank in _COPIES.items():
        count = os.environ.get(size, "")
        interactive = "SLURM_PTY_PORT" in os.environ and size.startswith("SLURM")  # a shell in the first of the tasks
        if count.isdecimal() and int(count) > 1 and rank in os.environ and not interactive:
            raise ConfigError(
                f"this is one of {count} copies of kd ({size}={count}, {rank}={os.environ[rank]}), and each would "
                "train the same: kd trains in one process. Type the command without torchrun or mpirun, behind srun "
                "with --ntasks=1; several GPUs are used by the points of a sweep: kd … -m seed=0,1. "
                f"With devices={count} the copies of torchrun or srun train one network together"
            )


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


def return_freed_memory() -> None:
    """Gives what `keep_freed_memory` has kept back to the system: before a process is forked.

    Until the new process ends, whatever the old one writes to is copied page by page, memory that was free included.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def has_cuda_driver() -> bool:
    """Whether there may be a CUDA device; torch, which knows, takes long to import."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def pick_device(name: str) -> torch.device:
    """The device; `auto` is the fastest that is there. What is computed on it is exact, unless a training is not.

    Raises:
        ConfigError: a device that is unknown or not there.
    """
    device = _find_device(name)
    if device.type == "cuda":
        from kd_cli.arithmetic import start_cuda

        start_cuda()
    return device if _ranks is None else _ranks.device


def _find_device(name: str) -> torch.device:
    import torch

    there = ["mps"] if torch.backends.mps.is_available() else []
    there = [*(f"cuda:{index}" for index in range(torch.cuda.device_count())), *there, "cpu"]
    if name == "auto":
        return torch.device(there[0])
    if name not in (*there, *(kind.partition(":")[0] for kind in there)):
        known = ", ".join(["auto", *there])
        raise ConfigError(f"device: {name!r} is not on this machine; type device=… with one of {known}")
    return torch.device(name)


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """A CUDA stream that can be recorded: the current one, or, where that is the default stream, another.

    On other devices nothing.
    """
    import torch

    if device.type != "cuda" or torch.cuda.current_stream(device) != torch.cuda.default_stream(device):
        yield
        return
    before, stream = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    stream.wait_stream(before)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        before.wait_stream(stream)
