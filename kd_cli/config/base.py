"""A composed configuration: checked before torch is imported, then handed on as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kd_cli.config.recipe import Recipe, make_recipe

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
        trial: the address of the trial of a search that this is (see pruning).
    """

    command: str
    arguments: tuple[str, ...]
    given: frozenset[str]
    folder: Path
    exact: bool
    trial: str | None = None


def stage_recipe(config: Config, stage: Stage) -> Recipe:
    """The recipe of one stage: `teacher_trainer` and its like, which say what `trainer` says where nothing else is set.

    Raises:
        ConfigError: an option that does not exist, or a value that is not possible.
    """
    return make_recipe(config[STAGE_TRAINER[stage]], STAGE_TRAINER[stage])


def recipe_differences(config: Config) -> dict[str, list[Any]]:
    """What the baseline's and the distilled student's recipes do not share: such a gain is not distillation's alone."""
    baseline, distilled = (vars(stage_recipe(config, stage)) for stage in ("baseline", "distilled"))
    return {key: [value, distilled[key]] for key, value in baseline.items() if value != distilled[key]}


def to_yaml(config: Mapping[str, Any]) -> str:
    """A configuration as yaml, in the order of its keys."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(dict(config)))
