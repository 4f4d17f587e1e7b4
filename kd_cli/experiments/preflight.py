"""Before the first step: everything that can be wrong with a command is looked for, and nothing is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kd_cli import console
from kd_cli.config.base import Config, Launch, Stage, stage_recipe
from kd_cli.config.plan import Training, check_procedure, given_paths, members, model_options, plan, procedures, single
from kd_cli.data.base import Data, check_dataset, load_dataset
from kd_cli.errors import DataError
from kd_cli.experiments.build import cache_limit, check_specialists, kind_of_teacher, rehearse
from kd_cli.machine import pick_device
from kd_cli.models.base import MODELS
from kd_cli.runs.identity import is_complete
from kd_cli.runs.records import sound_record
from kd_cli.teachers import load as handover
from kd_cli.teachers.load import Known
from kd_cli.training.fit import check_recipe, check_same_images
from kd_cli.training.loggers.base import check_logger

_PROCEDURES = {"specialists", "assistants", "generations"}
_UNUSED: dict[Stage, set[str]] = {
    "teacher": {"student", "loss", "baseline_trainer", "distill_trainer", "ensemble", *_PROCEDURES},
    "baseline": {"teacher", "loss", "teacher_trainer", "distill_trainer", "ensemble", *_PROCEDURES},
    "distilled": {"teacher_trainer", "baseline_trainer", "ensemble.size", *_PROCEDURES},
}


@dataclass(frozen=True)
class Ready:
    """What a command trains, when nothing was found that speaks against it.

    Args:
        data: of all trainings.
        trainings: in their order.
        teachers: finished ones that teach where no training of this command does.
        facts: about them, as `handover.load_teachers` gives them; None where there are none.
    """

    data: Data
    trainings: Sequence[Training]
    teachers: Sequence[Known]
    facts: Mapping[str, Any] | None


def get_ready(config: Config, launch: Launch, stage: Stage | None) -> Ready | None:
    """Everything up to the first step that can go wrong; None where the folder holds the complete run already.

    Args:
        stage: of the only training; None: of `kd run`.

    Raises:
        ConfigError: options, recipes or pairs that cannot work, no teacher, or a folder that cannot be had.
        DataError: data that are missing or do not fit, or a teacher that is damaged or not what its record says.
    """
    check(config)
    if launch.exact and is_complete(launch.folder, config):
        return None
    _say_unused(config, launch, stage)
    data = open_data(config)
    if stage is None:
        ready = prepare(config, data)
    else:
        teachers, before = _teachers(config, launch, data) if stage == "distilled" else ([], None)
        ready = _tried(config, data, [single(config, stage)], teachers)
        if before is not None and ready.facts is not None:
            check_unchanged(before, ready.facts, launch.folder)
    for training in (each for each in ready.trainings if each.group is None):
        folder = launch.folder / training.name if stage is None else launch.folder
        check_same_images(folder, _record(launch, folder), data)
    return ready


def _record(launch: Launch, folder: Path) -> dict[str, Any]:
    """The run.json of what is gone on with; a folder that the user did not name is another run's."""
    return (sound_record(folder) or {}) if launch.exact else {}


def prepare(config: Config, data: Data) -> Ready:
    """The parts of `kd run`, when all that can be wrong with them was looked for: no training shall be in vain.

    Raises:
        ConfigError: options, recipes or pairs that cannot work.
        DataError: a given teacher that is damaged, not what its record says, or for other classes.
    """
    check_specialists(config, data)
    kind, given = kind_of_teacher(config), given_teachers(config)
    return _tried(config, data, plan(config, teacher=kind, given=bool(given)), given)


def _tried(config: Config, data: Data, trainings: Sequence[Training], teachers: Sequence[Known]) -> Ready:
    device = pick_device(config["device"])
    for training in trainings:
        check_recipe(stage_recipe(config, training.stage), data, device)
    network = facts = None
    if teachers and kind_of_teacher(config) == "frozen":
        network, facts = load(config, teachers, data, device)
        network = network.cpu()
    rehearse(config, trainings, data, network)
    return Ready(data, trainings, teachers, facts)


def _teachers(config: Config, launch: Launch, data: Data) -> tuple[list[Known], Mapping[str, Any] | None]:
    """The teachers of `kd distill`, and what is on record of them where it goes on."""
    given, options = given_teachers(config), model_options(config, "teacher")
    if kind_of_teacher(config) != "frozen":
        return given, None
    before = _record(launch, launch.folder).get("teacher")
    if before is not None:  # a resumed run keeps its teacher, whatever was trained since
        models = [known.model for known in given] or [options]
        return [Known(Path(path), model) for path, model in zip(before["sources"], models, strict=True)], before
    if not given:
        given = [Known(handover.find_teacher(Path(config["outputs"]), options, data, launch.arguments), options)]
    return given, None


def check_unchanged(before: Mapping[str, Any], facts: Mapping[str, Any], run: Path) -> None:
    """Refuses to go on with teachers whose weights are not those that a run began with.

    Raises:
        DataError: they have changed.
    """
    if before["sha256"] != facts["sha256"]:
        raise DataError(f"{before['sources'][0]} has changed since {run} took it as its teacher; start a new run")


def check(config: Config) -> None:
    """Finds what is wrong with the components' options before any data are read.

    Raises:
        ConfigError: unknown component or option, wrong type or range.
    """
    check_dataset(config["dataset"])
    for role in ("teacher", "student"):
        MODELS.check(model_options(config, role), where=role)
    for number, options in enumerate(config["assistants"]):
        MODELS.check(options, where=f"assistants[{number}]")
    pick_device(config["device"])
    check_logger(config["logger"])
    check_procedure(config, teacher=kind_of_teacher(config))


def load(
    config: Config, teachers: Sequence[Known], data: Data, device: torch.device
) -> tuple[nn.Module, dict[str, Any]]:
    """The frozen teacher that all of them make together, and facts for the student's record."""
    size, limit = config["trainer"]["eval_batch_size"], cache_limit(config)
    weights = config["ensemble"]["weights"]
    return handover.load_teachers(teachers, data, weights=weights, batch_size=size, device=device, limit=limit)


def _say_unused(config: Config, launch: Launch, stage: Stage | None) -> None:
    """Names what was asked for, on the command line or by a preset, and changes nothing here; None: of `kd run`."""
    asked = launch.given | set(procedures(config))
    unused = _UNUSED[stage] if stage else set()
    for key in sorted(key for key in asked if {key, key.partition(".")[0]} & unused):
        console.notice(f"{key} has no effect on kd {launch.command}")
    given = given_teachers(config)
    if stage in (None, "distilled") and given and kind_of_teacher(config) == "trained":
        console.notice(f"teacher.checkpoint has no effect: {config['loss']['name']} trains a teacher of its own")
    if stage in (None, "distilled") and config["ensemble"]["weights"] and members(config, given) == 1:
        console.notice("ensemble.weights has no effect: there is one teacher")


def given_teachers(config: Config) -> list[Known]:
    """The teachers that are trained already; one alone must be the network that `teacher` describes.

    Raises:
        ConfigError: one that is not there.
    """
    paths = given_paths(config)
    return [Known(path, model_options(config, "teacher") if len(paths) == 1 else None) for path in paths]


def open_data(config: Config) -> Data:
    """The data of all trainings, with a line that says what they are."""
    data = load_dataset(config["dataset"])
    sizes = ", ".join(f"{data.size(part):,} {part}" for part in ("train", "val", "test"))
    console.say(f"data       {data.name}: {sizes}")
    return data
