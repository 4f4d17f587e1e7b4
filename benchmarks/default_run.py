"""Does the default `kd run` show that distillation helps, at which seeds, and in what time?

`python -m benchmarks.default_run` counts on the shipped test images. Teacher, student, loss, recipe and the number of
labels were chosen with `--choose MNIST`: there the test part is MNIST's 55,000 training images that are not shipped.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import Failed, Runner, run

CLEAR = 1.0  # points of gain that a new user should see at any seed
STAGES = ("teacher", "baseline", "distilled")


@dataclass(frozen=True)
class Default:
    """What was measured.

    Args:
        gains: distilled minus baseline, points of test top-1, for each seed.
        top1: of each stage, mean test top-1 in percent.
        seconds: of `kd run` alone, from start to end; of a seed of the sweep.
    """

    gains: tuple[float, ...]
    top1: dict[str, float]
    seconds: float
    seconds_of_sweep: float

    def lines(self) -> list[str]:
        """As they are printed."""
        helped, clearly = (sum(gain > least for gain in self.gains) for least in (0, CLEAR))
        return [
            "test top-1: " + ", ".join(f"{stage} {top1:.2f}" for stage, top1 in self.top1.items()),
            f"gains: {', '.join(f'{gain:+.2f}' for gain in self.gains)}",
            f"mean {statistics.mean(self.gains):+.2f}, std {statistics.stdev(self.gains):.2f}",
            f"helped at {helped} of {len(self.gains)} seeds, by more than {CLEAR:.0f} point at {clearly}",
            f"kd run: {self.seconds:.1f} s; the sweep: {self.seconds_of_sweep:.0f} s",
        ]


def measure(seeds: int, words: Sequence[str], folder: Path, runner: Runner = run) -> Default:
    """Runs `kd run` with seed 0 alone, then a sweep over seeds.

    Args:
        seeds: two or more.
        words: overrides of both.
        folder: for runs and cache; empty.

    Raises:
        Failed: a run failed.
    """
    cache = folder / "cache"
    cache.mkdir()
    command = [sys.executable, "-m", "kd_cli", "run", "--json", f"outputs={folder / 'outputs'}", *words]
    alone = runner([*command, "seed=0"], cache=cache)
    sweep = runner([*command, "-m", f"seed=range({seeds})"], cache=cache)
    points: list[dict[str, Any]] = sweep.report["points"]
    top1 = {stage: statistics.mean(point[stage]["test_top1"] for point in points) for stage in STAGES}
    return Default(tuple(point["gain"] for point in points), top1, alone.seconds, sweep.seconds)


def choosing(root: Path, conf: Path) -> list[str]:
    """The words that put `mnist_choice` in the place of the default's data."""
    file = conf / "dataset" / "mnist_choice.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(f"defaults: [mnist_few, _self_]\nname: mnist_choice\nroot: '{root.resolve()}'\n")
    return [
        "--config-dir",
        str(conf),
        "dataset=mnist_choice",
        f"plugins=[{Path(__file__).resolve().with_name('mnist_choice.py')}]",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.default_run", description=__doc__)
    parser.add_argument("overrides", nargs="*", help="of kd run: what would another default do?")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--choose", type=Path, metavar="MNIST", help="folder that holds MNIST/raw: count on its images")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        words = [*given.overrides, *(choosing(given.choose, Path(folder, "conf")) if given.choose else [])]
        try:
            print("\n".join(measure(given.seeds, words, Path(folder)).lines()))
        except Failed as failure:
            sys.exit(f"{failure}\n{failure.detail}")


if __name__ == "__main__":
    main()
