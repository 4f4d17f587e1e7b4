"""How a machine is divided among the points of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from kd_cli.config.base import TRIAL
from kd_cli.errors import ConfigError
from kd_cli.sweeps import worker
from kd_cli.sweeps.fork_server import fork
from kd_cli.sweeps.worker import Devices, Environment, Work


@dataclass(frozen=True)
class Share:
    """How a machine is divided among the points of a sweep.

    Args:
        processes: at the same time; where each is one point's, 1 stands for all points in this process.
        threads: of each of them.
        slots: the environment of each device; the processes take them in turn.
        at_once: points, where processes are shared by several; None: as many as the memory of their devices takes.
        device: that the points of one process share.
        fewer: what to type for fewer points at once.
    """

    processes: int
    threads: int
    slots: Sequence[Environment] = ({},)
    at_once: int | None = 1
    device: str = "cpu"
    fewer: str = "hydra.launcher.n_jobs=1"

    @property
    def here(self) -> bool:
        """All points in this process, one after the other."""
        return self.processes == 1 and not self.joins

    @property
    def joins(self) -> bool:
        """Whether points share a process."""
        return self.at_once is None or self.at_once > self.processes

    def of(self, slot: int) -> Share:
        """The share of one of the processes."""
        if self.at_once is None:
            return self
        return replace(self, at_once=(self.at_once + self.processes - 1 - slot) // self.processes)


class Task(NamedTuple):
    """A point to be run.

    Args:
        name: `point 1 of 3`.
    """

    name: str
    work: Work


def check_n_jobs(n_jobs: Any) -> None:
    """Raises a ConfigError if it is neither null nor a whole number ≥ 1."""
    if n_jobs is not None and (not isinstance(n_jobs, int) or isinstance(n_jobs, bool) or n_jobs < 1):
        raise ConfigError(
            f"hydra.launcher.n_jobs: {n_jobs!r} is not possible; type how many points run at the same time, a whole "
            "number ≥ 1 (1: one after the other), or null: as many as there are cores, or a GPU's memory takes"
        )


def divide(
    points: int,
    n_jobs: int | None,
    ask_devices: Callable[[], Devices],
    *,
    cores: int,
    threads: int | None,
    cuda: bool = False,
) -> Share:
    """As many points at once as there are cores and devices for, or as many as were asked for.

    Args:
        n_jobs: asked for; None: one point for each core, and as many as fit on each CUDA device.
        ask_devices: called only where the answer matters: torch must be imported for it.
        threads: that each process shall have; None: its share of the cores.
        cuda: there may be a CUDA device.
    """
    most = n_jobs or cores // (threads or 1)
    if points < 2 or n_jobs == 1 or (most < 2 and not cuda):
        return Share(1, threads or cores)
    devices = ask_devices()
    slots = devices.slots or ({},)
    if devices.kind.startswith("cuda"):
        processes = min(points, n_jobs or points, len(slots))
        return Share(processes, threads or max(1, cores // processes), slots, n_jobs, devices.kind)
    processes = max(1, min(points, n_jobs or min(most, len(devices.slots) or most)))
    return Share(processes, threads or max(1, cores // processes), slots)


def ask_devices(device: str) -> Devices:
    """What points of this `device=…` can be divided among; torch is imported in another process."""
    process, receiver = fork(worker.find_devices, device)
    with receiver:
        try:
            devices: Devices = receiver.recv()
        except EOFError:  # the points will say what is wrong
            devices = Devices()
    process.join()
    return devices


def group(tasks: Sequence[Task], share: Share) -> list[list[Task]]:
    """The points of each process; those that share one have the same environment."""
    if not share.joins:
        return [[task] for task in tasks]
    alike: dict[frozenset[tuple[str, str]], list[Task]] = {}
    for task in tasks:
        own = {name: value for name, value in task.work.environment.items() if name != TRIAL}
        alike.setdefault(frozenset(own.items()), []).append(task)
    parts = [each[first :: share.processes] for each in alike.values() for first in range(share.processes)]
    return [part for part in parts if part]
