"""A finished training that goes on for more epochs, with the bits that it would have had with as many from the start.

It goes on in a folder of its own, from copies of its checkpoints: what is finished stays as it is, whatever happens.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd_cli.config.base import STAGE_TRAINER, Config, Launch, stage_recipes
from kd_cli.config.recipe import Recipe
from kd_cli.errors import ConfigError
from kd_cli.experiments.build import ASKED_FROM
from kd_cli.experiments.setup import Setup
from kd_cli.runs.checkpoint import Checkpoints, owner
from kd_cli.runs.folder import RunDir
from kd_cli.runs.identity import flatten
from kd_cli.runs.provenance import go_on, rerun_line
from kd_cli.runs.records import read_config, run_record, run_result


def check_extension(setup: Setup, launch: Launch) -> None:
    """Refuses more epochs where a training from the start would have gone another way.

    Raises:
        ConfigError: why, and what to type to train from the start.
        DataError: the record of the finished run is damaged.
    """
    assert launch.extends is not None
    assert setup.stage is not None
    source, result, config = launch.extends, run_result(launch.extends), read_config(launch.extends)
    if result is None:
        raise ConfigError(f"{source} is not finished; type kd resume {source} first, and more epochs then")
    recipe = setup.recipes[setup.stage]
    planned = stage_recipes(config)[setup.stage].epochs
    reason = _hindrance(source, recipe, planned, result, _other_differences(config, setup.recorded))
    if reason:
        line = rerun_line({"command": launch.command, "arguments": launch.arguments})
        raise ConfigError(
            f"trainer.epochs={recipe.epochs}: {source} cannot go on to it: {reason}; from the start it is\n{line}"
        )


def _hindrance(source: Path, recipe: Recipe, planned: int, result: Mapping[str, Any], others: list[str]) -> str | None:
    """Why a finished run cannot go on; None: it can."""
    if run_record(source).get("probe"):
        return "its classifier is a linear probe (teacher.probe=true), which has no epochs"
    if recipe.epochs <= planned:
        return f"it was to have {planned}, and fewer are another training"
    if recipe.schedule in ("cosine", "onecycle"):
        return f"trainer.schedule={recipe.schedule} spreads the learning rate over all epochs, from the first on"
    if recipe.swa_epochs is not None:
        return f"trainer.swa_epochs={recipe.swa_epochs} has averaged what would not be the last epochs any more"
    if result["epochs"] < planned:
        return f"trainer.early_stopping={recipe.early_stopping} ended it at epoch {result['epochs']}, and would again"
    if others:
        return f"{', '.join(others[:3])} would be another, too"
    return None


def _other_differences(before: Config, now: Config) -> list[str]:
    """The options that differ beside the number of epochs, and where it is logged."""
    epochs = {f"{where}.epochs" for where in ("trainer", *STAGE_TRAINER.values())}
    old, new = flatten(before), flatten(now)
    differing = [key for key in {**old, **new} if old.get(key, ...) != new.get(key, ...)]
    return [key for key in differing if key not in epochs and not key.startswith("logger.")]


def take_over(source: Path, run: RunDir, identity: Mapping[str, Any]) -> None:
    """Gives a new run the checkpoints of a finished one, and records where they are from; once.

    Raises:
        DataError: they are damaged or missing.
        DiskError: as `RunDir`.
    """
    if run.checkpoints.newest() is not None:
        return
    before, result = run_record(source), run_result(source) or {}
    there = Checkpoints(source / "checkpoints", owner(before))
    last = there.after(result["epochs"])
    facts = {"run": str(source), "epochs": result["epochs"], "weights_sha256": result["weights_sha256"]}
    asked = {key: before[key] for key in (ASKED_FROM,) if key in before}
    run.note(extended=facts | go_on(before, identity), **asked)
    for checkpoint in (there.after(result["best_epoch"]), last):  # the last one last: a training goes on from it
        tensors = {stem: checkpoint.tensors(stem) for stem in ("model", "training")}
        with run.there():
            run.checkpoints.save(checkpoint.place, tensors, checkpoint.plain)
