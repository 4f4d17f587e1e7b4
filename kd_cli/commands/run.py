"""kd run: the main job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kd_cli import console
from kd_cli.launch.hydra_command import hydra_command

PANEL = "Experiments"
JOB = "kd_cli.experiments.experiment:compare"

_COLUMNS = ("network", "test %", "last %", "val %", "epoch", "parameters", "gain")


def present(result: Mapping[str, Any]) -> None:
    """The table of the three."""
    from kd_cli.config.recipe import chosen_by

    parts = {name: part for name, part in result.items() if isinstance(part, Mapping) and "test_top1" in part}
    rows = [_row(name, part, result["gain"] if name == "distilled" else None) for name, part in parts.items()]
    scores = [chosen_by(part, part.get("select_by", "top1")) for part in parts.values()]
    columns = (*_COLUMNS, *(["chosen by"] if any(scores) else []))
    cells = [(*row, *([score or None] if any(scores) else [])) for row, score in zip(rows, scores, strict=True)]
    console.say()
    console.table("Top-1 accuracy on the test and validation images", columns, cells, left=("network", "chosen by"))
    console.say("test: at the epoch that was best on validation; last: at the last epoch.")
    console.say(
        f"gain: distilled − baseline in percentage points, seed {result['seed']}. "
        "One seed proves little: kd run -m seed=0,1,2,3,4"
    )
    for key, (baseline, distilled) in result.get("recipe_differences", {}).items():
        console.notice(
            f"the gain is not distillation's alone: {key} is {baseline} for the baseline, {distilled} for the student"
        )
    console.say(f"{result['seconds']:.0f} seconds; everything is in {console.short_path(result['run'])}")


def _row(stage: str, result: Mapping[str, Any], gain: float | None) -> tuple[Any, ...]:
    return (
        stage,
        result["test_top1"],
        result["test_top1_last"],
        result["val_top1"],
        f"{result['best_epoch']}/{result['epochs']}",
        result["parameters"],
        None if gain is None else f"{gain:+.2f}",
    )


command = hydra_command("run", "Train teacher, baseline student and distilled student, and compare them.", JOB, present)
