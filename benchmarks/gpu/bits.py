"""Are the bits the same: of two runs, resumed, weight 0 and baseline, cached and live teacher, graph and eager?"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.gpu.lab import NEEDED, Broken, Lab, bits, broken_off, options
from kd_cli import console
from kd_cli.losses.base import LOSSES

EVERY_STEP = {"trainer.checkpoint_minutes": 0.0}
NO_WEIGHT = {"loss.weight": 0.0, "loss.ce_weight": 1.0}
BREAK = 8  # the second epoch's second step


def twice(lab: Lab, loss: str) -> bool:
    """The same command again."""
    return lab.bits(loss) == bits(lab.train("distill", loss=loss))


def resumed(lab: Lab, loss: str) -> bool:
    """Broken off in the middle of the second epoch, and gone on with."""
    folder = lab.folder / f"resumed-{loss}"
    with suppress(Broken), broken_off(BREAK):
        lab.train("distill", EVERY_STEP, loss=loss, to=folder)
    assert not (folder / "result.json").exists(), "it was not broken off"
    return bits(lab.train("distill", EVERY_STEP, loss=loss, to=folder)) == lab.bits(loss)


def weight_zero(lab: Lab, loss: str) -> bool:
    """With loss.weight=0 it is the baseline; columns of metrics are named otherwise."""
    plain = loss if loss in NEEDED else "kd"
    ours, baseline = lab.bits(loss, NO_WEIGHT), lab.bits(plain, command="train-baseline")
    return all(ours[part] == baseline[part] for part in ("weights", "predictions"))


def cached(lab: Lab, loss: str) -> bool:
    """The teacher's kept answers, and the teacher asked at every step."""
    return lab.bits(loss) == lab.bits(loss, {"teacher_cache": False})


def graph(lab: Lab, loss: str) -> bool:
    """The step as one CUDA graph, where it can be captured, and eagerly."""
    return lab.bits(loss) == lab.bits(loss, {"trainer.cuda_graphs": False})


CHECKS: Mapping[str, Callable[[Lab, str], bool]] = {
    check.__name__: check for check in (twice, resumed, weight_zero, cached, graph)
}


def check_all(lab: Lab, losses: Sequence[str], seconds: float) -> dict[str, dict[str, bool | str]]:
    """Check → loss → whether the bits are the same, or what went wrong. It ends when the seconds are spent."""
    end = time.monotonic() + seconds
    checks = {name: check for name, check in CHECKS.items() if name != "graph" or "cuda_graphs" in options()}
    found: dict[str, dict[str, bool | str]] = {name: {} for name in checks}
    for loss in losses:
        for name, check in checks.items():
            if time.monotonic() > end:
                return found
            try:
                found[name][loss] = check(lab, loss)
            except Exception as error:  # the others are checked all the same
                found[name][loss] = f"{type(error).__name__}: {error}"
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--losses", nargs="*", default=LOSSES.names())
    parser.add_argument("--seconds", type=float, default=90.0)
    args = parser.parse_args(arguments)
    console.setup(as_json=True)  # what it says goes to standard error
    found = check_all(Lab(args.folder, args.device), args.losses, args.seconds)
    print(json.dumps({"losses": len(args.losses), "checks": found}))


if __name__ == "__main__":
    main()
