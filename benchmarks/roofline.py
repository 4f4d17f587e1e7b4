"""What this machine can do at most, and what one image of each network asks of it."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.script import Student, Teacher


def best(work: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of several runs."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def training_gflop(network: nn.Module) -> float:
    """Of one image forwards and backwards; a multiplication and an addition are two operations."""
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(network(torch.randn(2, 3, 32, 32)), torch.tensor([0, 1])).backward()
    return counter.get_total_flops() / 2 / 1e9


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=2048, help="rows of the square matrices that are multiplied")
    parser.add_argument("--megabytes", type=int, default=512, help="that are copied")
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args(arguments)
    one, other = torch.randn(2, args.size, args.size)
    source = torch.ones(args.megabytes * 10**6 // 4)
    target = torch.empty_like(source)
    report = {
        "threads": torch.get_num_threads(),
        "gflops": 2 * args.size**3 / best(lambda: one @ other, args.repeats) / 1e9,
        "gigabytes_per_second": 2 * source.nbytes / best(lambda: target.copy_(source), args.repeats) / 1e9,
        "student_gflop": training_gflop(Student()),
        "teacher_gflop": training_gflop(Teacher()),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
