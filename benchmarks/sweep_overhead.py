"""What a point of a sweep costs beside its training: kd's launchers beside Hydra's own, with very short points."""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import mean

from benchmarks import points
from benchmarks.measure import Done, Failed, Runner, run
from kd_cli.machine import available_cores

_ADOPT = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)
_POINT = (
    "dataset=synthetic",
    "dataset.num_train=300",
    "dataset.num_test=100",
    f"student.hidden=[{points.HIDDEN}]",
    f"trainer.epochs={points.EPOCHS}",
    f"trainer.batch_size={points.BATCH}",
)


@dataclass(frozen=True)
class Side:
    """A launcher.

    Args:
        words: the program and its arguments but the seeds.
        seeds: the argument with `{}` for how many.
        at_once: how many points run at the same time.
        needs: a package; empty: none.
        each_starts: every point starts Python and imports torch, so that a few tell what many take.
    """

    words: Sequence[str]
    seeds: str
    at_once: int
    needs: str = ""
    each_starts: bool = False


def sides(cores: int) -> Mapping[str, Side]:
    kd = ("kd_cli", "train-baseline", "-m", "--json", "student=mlp", *_POINT)
    mine, few = ("benchmarks.points", "-m"), f"hydra.sweeper.max_batch_size={cores}"
    local, one = "hydra/launcher=submitit_local", "hydra.launcher.cpus_per_task=1"
    plugin = "hydra_plugins.hydra_submitit_launcher"
    return {
        "kd, process": Side((*kd, f"hydra.launcher.n_jobs={cores}"), "seed=range({})", cores),
        "kd, ray": Side((*kd, "hydra/launcher=ray"), "seed=range({})", cores, "ray"),
        "kd, submitit_local": Side((*kd, local, one, few), "seed=range({})", cores, plugin, each_starts=True),
        "hydra, basic": Side(mine, "+seed=range({})", 1, each_starts=True),
        "hydra, submitit_local": Side((*mine, local, one, few), "+seed=range({})", cores, plugin, each_starts=True),
    }


@dataclass(frozen=True)
class Cost:
    """What a point took.

    Args:
        seconds: of the sweep by its points: with two at a time half of what each took.
        training: of that, training alone.
        cpu: seconds of processors, start and end of the sweep included.
    """

    seconds: float
    training: float
    cpu: float

    @property
    def overhead(self) -> float:
        return self.seconds - self.training


def measure(side: Side, count: int, folder: Path, runner: Runner = run) -> Cost:
    """Runs a sweep of so many points.

    Raises:
        Failed: not all of them were trained.
    """
    folder.mkdir()
    before = _processor_seconds()
    command = [sys.executable, "-m", *side.words, side.seeds.format(count)]
    done: Done = runner(command, cache=folder / "cache", variables={"OMP_NUM_THREADS": "1"})
    trained = [point["train_seconds"] for point in done.report["points"]]
    if len(trained) != count:
        raise Failed(f"{len(trained)} of {count} points were trained")
    training = mean(trained) / side.at_once
    return Cost(done.seconds / count, training, (_processor_seconds() - before) / count)


def adopt() -> None:
    """Makes this process the parent of those whose own has ended, or nobody would count what they took (Linux)."""
    with suppress(AttributeError):
        ctypes.CDLL(None).prctl(_ADOPT, 1, 0, 0, 0)


def _processor_seconds() -> float:
    """Of all processes that were started here and have ended."""
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(arguments: Sequence[str] | None = None) -> None:
    cores = available_cores()
    every = sides(cores)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep_overhead", description=__doc__)
    parser.add_argument("sides", nargs="*", help=f"{'; '.join(every)}; all unless some are given")
    parser.add_argument("--points", type=int, default=200, help="of a sweep (%(default)s)")
    parser.add_argument("--few", type=int, default=20, help="where each starts Python anew (%(default)s)")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.sides if name not in every]
    if unknown:
        parser.error(f"there is no side {unknown[0]!r}; there are {'; '.join(every)}")
    adopt()
    print(f"{cores} cores, load {os.getloadavg()[0]:.1f}; seconds per point")
    print(f"{'':24}{'points':>8}{'all':>8}{'training':>10}{'overhead':>10}{'CPU':>8}")
    for name in given.sides or every:
        side = every[name]
        count = given.few if side.each_starts else given.points
        if side.needs and find_spec(side.needs.partition(".")[0]) is None:
            print(f"{name:24}  {side.needs} is not installed")
            continue
        with tempfile.TemporaryDirectory(prefix="kd-overhead-") as folder:
            try:
                cost = measure(side, count, Path(folder).resolve() / "here")
            except Failed as error:
                print(f"{name:24}  {error}\n{error.detail}")
                continue
        numbers = f"{cost.seconds:>8.2f}{cost.training:>10.2f}{cost.overhead:>10.2f}{cost.cpu:>8.2f}"
        print(f"{name:24}{count:>8}{numbers}", flush=True)


if __name__ == "__main__":
    main()
