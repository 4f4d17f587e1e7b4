"""Three ways to train several students of a sweep on this machine's cores; each prints the seconds of one step of one.

turns      one after the other, each with all threads
processes  one process of one thread for each core, side by side
stacked    in one process as one network with a leading dimension (torch.func.stack_module_state and vmap)
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from benchmarks.script import Student
from kd_cli.machine import keep_freed_memory

BATCH, WARM, STACKED = 128, 10, 5
Step = Callable[[], None]


def batch() -> tuple[Tensor, Tensor]:
    images = torch.randn(BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
    return images, torch.randint(10, (BATCH,))


def alone() -> Step:
    """A step of one student."""
    network = Student().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    images, labels = batch()

    def step() -> None:
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def together(count: int) -> Step:
    """A step of `count` students, stacked."""
    parameters, gradient = stacked([Student() for _ in range(count)], *batch())
    optimizer = torch.optim.Adam(parameters.values(), lr=1e-3, fused=True)

    def step() -> None:
        for name, value in gradient().items():
            parameters[name].grad = value
        optimizer.step()

    return step


def stacked(
    networks: Sequence[nn.Module], images: Tensor, labels: Tensor
) -> tuple[dict[str, Tensor], Callable[[], dict[str, Tensor]]]:
    """The parameters of several networks with a leading dimension, and what computes the gradients of all of them."""
    parameters, buffers = stack_module_state(networks)
    skeleton = copy.deepcopy(networks[0]).to("meta")

    def loss(one: dict[str, Tensor], constants: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(functional_call(skeleton, (one, constants), (images,)), labels)

    gradient = vmap(grad(loss), randomness="different")
    return parameters, lambda: gradient(parameters, buffers)


def seconds_of(step: Step, steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - start) / steps


def side_by_side(steps: int) -> float:
    """Starts one process per core, lets them begin together, and waits for the last."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    command = [sys.executable, "-m", "benchmarks.students", "member", "--steps", str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    members = [subprocess.Popen(command, **pipes) for _ in range(cores)]
    for member in members:
        member.stdout.readline()  # it is warm
    for member in members:
        member.stdin.write("go\n")
        member.stdin.flush()
    slowest = max(float(member.communicate()[0]) for member in members)
    return slowest / cores


def measure(way: str, steps: int) -> float:
    if way == "processes":
        return side_by_side(steps)
    step, students = (together(STACKED), STACKED) if way == "stacked" else (alone(), 1)
    seconds_of(step, WARM)
    if way == "member":
        print("warm", flush=True)
        sys.stdin.readline()
    return seconds_of(step, max(1, steps // students)) / students


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=("turns", "processes", "stacked", "member"))
    parser.add_argument("--steps", type=int, default=150)
    args = parser.parse_args(arguments)
    keep_freed_memory()  # as kd does
    seconds = measure(args.way, args.steps)
    print(seconds if args.way == "member" else json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
