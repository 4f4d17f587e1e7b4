"""A composed configuration: checked before torch is imported, then handed on as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kd_cli.config.recipe import Recipe, make_recipe

OPEN = "kwargs"  # an option that is a mapping of what a function of others takes; empty mappings are open, too
TRIAL = "KD_TRIAL"  # the variable that tells a point's process which trial of a search it is
Config = dict[str, Any]
Stage = Literal["teacher", "baseline", "distilled"]

STAGE_TRAINER: dict[Stage, str] = {
    "teacher": "teacher_trainer",
    "baseline": "baseline_trainer",
    "distilled": "distill_trainer",
}


@dataclass(frozen=True)
class Launch:
    """How a job was started.

    Args:
        command: `run`, `train-teacher`, …
        arguments: what the user typed behind the command, complete enough to type it again.
        given: the keys of the overrides among them: `{"trainer.epochs", "loss"}`.
        folder: where the run is to be.
        exact: the user named that folder.
        trial: the address of the trial of a search that this is, as `TRIAL` holds it.
        extends: the finished run that goes on here with more epochs.
    """

    command: str
    arguments: tuple[str, ...]
    given: frozenset[str]
    folder: Path
    exact: bool
    trial: str | None = None
    extends: Path | None = None


def stage_recipes(config: Config) -> dict[Stage, Recipe]:
    """How each stage is trained: `teacher_trainer` and its like, which say what `trainer` says where nothing is set.

    Raises:
        ConfigError: an option that does not exist, or a value that is not possible.
    """
    recipes: dict[Stage, Recipe] = {}
    for stage, key in STAGE_TRAINER.items():
        same = (recipes[other] for other in recipes if config[STAGE_TRAINER[other]] == config[key])
        recipes[stage] = next(same, None) or make_recipe(config[key], key)
    return recipes


def recipe_differences(baseline: Recipe, distilled: Recipe) -> dict[str, list[Any]]:
    """What the baseline's and the distilled student's recipes do not share: such a gain is not distillation's alone."""
    others = vars(distilled)
    return {key: [value, others[key]] for key, value in vars(baseline).items() if value != others[key]}
