"""`--dry-run`: what a command would do, when nothing was found that speaks against it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from kd_cli.config.base import Config, Launch, Stage
from kd_cli.config.plan import Training
from kd_cli.data.base import Data, Part
from kd_cli.experiments.preflight import Ready, get_ready
from kd_cli.experiments.setup import Setup, make_setup
from kd_cli.runs.metrics import read_metrics
from kd_cli.runs.records import network_name, sound_result
from kd_cli.storage.cache import untouched

_STAGES: Mapping[str, Stage | None] = {
    "run": None,
    "train-teacher": "teacher",
    "train-baseline": "baseline",
    "distill": "distilled",
}


def dry_run(config: Config, launch: Launch) -> dict[str, Any]:
    """Does what the command does before its first step, writes no run, and says what would be trained.

    Raises:
        ConfigError, DataError: as the command itself.
    """
    with untouched():
        setup = make_setup(config, _STAGES[launch.command])
        ready = get_ready(setup, launch)
    place = {"run": str(launch.folder) if launch.exact else None, "outputs": str(launch.folder.parent)}
    if ready is None:
        return {"status": "completed", **place, "trainings": []}
    trainings = [_described(setup, launch, training, ready.data) for training in setup.trainings]
    data = {"name": ready.data.name, **{part: ready.data.size(part) for part in get_args(Part)}}
    devices = {"devices": setup.devices} if setup.devices > 1 else {}
    return {"status": "ready", **place, **devices, "data": data, **_teacher(ready), "trainings": trainings}


def _teacher(ready: Ready) -> dict[str, Any]:
    """What teaches and is trained already."""
    if ready.teacher is None:
        return {}
    facts = ready.teacher.facts
    return {"teachers": list(facts["sources"]), "teacher_val_top1": facts["val_top1"]}


def _described(setup: Setup, launch: Launch, training: Training, data: Data) -> dict[str, Any]:
    recipe = setup.recipes[training.stage]
    folder = launch.folder / training.name if setup.stage is None else launch.folder
    return {
        "name": training.name,
        "network": network_name(training.model),
        "epochs": recipe.epochs,
        "epochs_done": len(read_metrics(folder)) if launch.exact else 0,
        "steps": data.steps(recipe.batch_size, recipe.limit_train_batches),
        "batch_size": recipe.batch_size,
        "taught_by": list(training.teachers),
        "completed": launch.exact and sound_result(folder) is not None,
    }
