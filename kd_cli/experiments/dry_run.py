"""`--dry-run`: what a command would do, when nothing was found that speaks against it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kd_cli.config.base import Config, Launch, Stage, stage_recipe
from kd_cli.config.plan import Training
from kd_cli.data.base import Data
from kd_cli.experiments.preflight import Ready, get_ready
from kd_cli.runs.metrics import read_metrics
from kd_cli.runs.records import sound_result
from kd_cli.storage.cache import untouched

_STAGES: Mapping[str, Stage | None] = {
    "run": None,
    "train-teacher": "teacher",
    "train-baseline": "baseline",
    "distill": "distilled",
}


def foresee(config: Config, launch: Launch) -> dict[str, Any]:
    """Does what the command does before its first step, writes nothing, and says what would be trained.

    Raises:
        ConfigError, DataError: as the command itself.
    """
    stage = _STAGES[launch.command]
    with untouched():
        ready = get_ready(config, launch, stage)
    place = {"run": str(launch.folder) if launch.exact else None, "outputs": str(launch.folder.parent)}
    if ready is None:
        return {"status": "completed", **place, "trainings": []}
    trainings = [_described(config, launch, training, ready, stage) for training in ready.trainings]
    return {"status": "ready", **place, "data": _sizes(ready.data), **_teacher(ready), "trainings": trainings}


def _sizes(data: Data) -> dict[str, Any]:
    return {"name": data.name, "train": data.size("train"), "val": data.size("val"), "test": data.size("test")}


def _teacher(ready: Ready) -> dict[str, Any]:
    """What teaches and is trained already."""
    if ready.facts is None:
        return {}
    return {"teachers": list(ready.facts["sources"]), "teacher_val_top1": ready.facts["val_top1"]}


def _described(config: Config, launch: Launch, training: Training, ready: Ready, stage: Stage | None) -> dict[str, Any]:
    recipe, folder = stage_recipe(config, training.stage), launch.folder
    folder = folder / training.name if stage is None else folder
    return {
        "name": training.name,
        "network": training.model["name"],
        "epochs": recipe.epochs,
        "epochs_done": len(read_metrics(folder)) if launch.exact else 0,
        "steps": ready.data.steps(recipe.batch_size, recipe.limit_train_batches),
        "batch_size": recipe.batch_size,
        "taught_by": list(training.teachers),
        "completed": launch.exact and sound_result(folder) is not None,
    }
