"""Processes that train together, for tests: each calls one function and gives back what that returns."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing

from kd_cli.machine import train_together


def on_ranks(world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What a function of this module's importers gives in each of so many gloo processes.

    They are forked from this one, which has imported everything; not where it has a GPU, whose threads no fork has.
    """
    method = "spawn" if torch.cuda.is_available() else "fork"
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python ≥ 3.12, of pytest-xdist's threads
        multiprocessing.start_processes(_rank, (world, folder, function, args), nprocs=world, start_method=method)
        return [torch.load(Path(folder) / f"said-{rank}", weights_only=True) for rank in range(world)]


def _rank(rank: int, world: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    from kd_cli.training.parallel import Ranks

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    meeting = {"init_method": f"file://{folder}/meeting", "rank": rank, "world_size": world}
    ranks = Ranks.join("cpu", **meeting)
    train_together(ranks)
    torch.save(function(*args), Path(folder) / f"said-{rank}")
    ranks.leave()
