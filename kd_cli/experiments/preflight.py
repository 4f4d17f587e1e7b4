"""Before the first step: everything that can be wrong with a command is looked for, and no run is written."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kd_cli import console
from kd_cli.arithmetic import check_card
from kd_cli.config.base import STAGE_TRAINER, Launch, Stage
from kd_cli.config.plan import GIVEN, Training, check_groups
from kd_cli.config.recipe import Recipe, check_possible
from kd_cli.data.base import Data, load_dataset
from kd_cli.errors import ConfigError, DataError, listed
from kd_cli.experiments.build import (
    build_network,
    build_peer,
    build_task,
    check_unchanged,
    check_way,
    class_weights,
    frozen_teacher,
)
from kd_cli.experiments.setup import Setup
from kd_cli.runs.identity import is_complete
from kd_cli.runs.records import sound_record
from kd_cli.teachers.load import Known, Teacher, find_teacher
from kd_cli.training.fit import check_same_images
from kd_cli.training.task import Distillation
from kd_cli.turns import once

log = logging.getLogger("kd")

_SLOW = 0.5  # of a moving average: less than half of it is the training
_PROCEDURES = {"specialists", "assistants", "generations"}
_OF_GIVEN = {f"teacher.{key}" for key in GIVEN}
_KEPT = ("teacher_cache_top_k", "teacher_cache_dtype")
_UNUSED: dict[Stage, set[str]] = {
    "teacher": {"student", "loss", "baseline_trainer", "distill_trainer", "ensemble", *_PROCEDURES, *_OF_GIVEN, *_KEPT},
    "baseline": {"teacher", "loss", "teacher_trainer", "distill_trainer", "ensemble", *_PROCEDURES, *_KEPT},
    "distilled": {"teacher_trainer", "teacher.probe", "baseline_trainer", "ensemble.size", *_PROCEDURES},
}
_LARGE = 64  # pixels, from which on networks for digits are hopeless
_PAIR = "teacher=torchvision teacher.model=resnet34 student=torchvision student.model=resnet18"


@dataclass(frozen=True)
class Ready:
    """What a command trains, when nothing was found that speaks against it, and what was built to find that out.

    Args:
        data: of all trainings.
        teachers: finished ones that teach where no training of this command does.
        teacher: the frozen network that they make together, loaded and measured; None where nothing asks it.
        networks: with their first weights, by the name of the training that begins with them.
        tasks: of the students that learn from `teacher`, a peer, or no teacher, by the name of their training.
    """

    data: Data
    teachers: Sequence[Known] = ()
    teacher: Teacher | None = None
    networks: dict[str, nn.Module] = field(default_factory=dict)
    tasks: dict[str, Distillation] = field(default_factory=dict)


def get_ready(setup: Setup, launch: Launch) -> Ready | None:
    """Everything up to the first step that can go wrong; None where the folder holds the complete run already.

    Raises:
        ConfigError: recipes or pairs that cannot work, no teacher, or a folder that cannot be had.
        DataError: data that are missing or do not fit, or a teacher that is damaged or not what its record says.
    """
    if launch.exact and is_complete(launch.folder, setup.recorded):
        return None
    if launch.extends is not None:
        from kd_cli.experiments.extension import check_extension

        check_extension(setup, launch)
    _say_unused(setup, launch)
    data = open_data(setup)
    _say_small(setup, launch, data)
    teachers, before = (setup.given, None) if setup.stage is None else _teachers(setup, launch, data)
    ready = prepare(setup, data, teachers)
    if setup.probe:
        from kd_cli.experiments.probe import say_unused

        say_unused(launch.given, alone=setup.stage == "teacher")
    if before is not None and ready.teacher is not None:
        check_unchanged(before, ready.teacher.facts, launch.folder)
    for training in (each for each in setup.trainings if each.group is None):
        folder = launch.folder / training.name if setup.stage is None else launch.folder
        check_same_images(folder, _record(launch, folder), data)
    return ready


def _record(launch: Launch, folder: Path) -> dict[str, Any]:
    """The run.json of what is gone on with; a folder that the user did not name is another run's."""
    known = launch.exact and (sound_record(folder) or (launch.extends and sound_record(launch.extends)))
    return known or {}


def prepare(setup: Setup, data: Data, teachers: Sequence[Known]) -> Ready:
    """Loads the teachers and binds every student to networks like those that will teach it.

    What is built on the way, and is just what a training begins with, is handed on.

    Raises:
        ConfigError: recipes or pairs that cannot work: no training shall be in vain.
        DataError: a teacher that is damaged, not what its record says, or for other classes.
    """
    _check_kept(setup, data)
    if setup.stage is None:
        _check_specialists(setup, data)
    for training in setup.trainings:
        _check_recipe(setup.recipes[training.stage], data, setup.device)
    stand_ins = {name for training in setup.trainings for name in training.teachers}
    networks: dict[str, nn.Module] = {}
    tasks: dict[str, Distillation] = {}
    teacher = None
    for training in setup.trainings:
        # A student first, so that every loss starts from the same one; its teacher then, whose making draws numbers.
        network = build_network(training.model, training.role, training.seed, data, setup.device)
        networks[training.name] = network
        _check_parts(training, network, setup.recipes[training.stage], data)
        _check_batch_of_one(training, network, setup.recipes[training.stage], data)
        check_way(setup, training, network, data)
        if training.stage == "distilled":
            teaching: nn.Module | None = None
            if setup.kind == "frozen" and not training.teachers:
                teacher = frozen_teacher(setup, teachers, data)
                teaching = teacher.network
            elif setup.kind != "none":
                teaching = _stand_in(setup, training, networks, data)
            tasks[training.name] = _bound(setup, training, network, teaching, data)
            networks[training.name] = tasks[training.name].deployed
    final = {training.name for training in setup.trainings if not training.teachers} - stand_ins
    own = {name: networks[name] for name in final - set(tasks)}
    return Ready(data, teachers, teacher, own, {name: tasks[name] for name in final & set(tasks)})


def _check_parts(training: Training, network: nn.Module, recipe: Recipe, data: Data) -> None:
    """What a recipe says of layers and classes must fit the network and the data."""
    class_weights(recipe, data, torch.device("cpu"))
    if training.group is not None and isinstance(recipe.class_weights, tuple):
        raise ConfigError(
            "trainer.class_weights: a specialist has classes of its own, for which no list stands; "
            "type teacher_trainer.class_weights=balanced"
        )
    if recipe.freeze or recipe.backbone_lr_factor != 1 or recipe.optimizer == "muon":
        from kd_cli.training.groups import check_parts

        what = f"{training.role}={training.model['name']}"
        check_parts(network, recipe, what=what, alone=STAGE_TRAINER[training.stage])


def _check_batch_of_one(training: Training, network: nn.Module, recipe: Recipe, data: Data) -> None:
    """Batch normalisation learns nothing from one number of a channel, and says so at the first step alone."""
    if min(recipe.batch_size, data.spec.num_train) > 1:
        return
    device = next(network.parameters()).device
    image = torch.zeros(1, *data.spec.image_shape, device=device)
    drawn_on = [device] if device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(drawn_on):  # what is built next draws its weights
            copy.deepcopy(network).train()(image)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        where, given = STAGE_TRAINER[training.stage], f"{training.role}={training.model['name']}"
        raise ConfigError(
            f"trainer.batch_size={recipe.batch_size}: one image has one number for each channel of {given}, and batch "
            f"normalisation needs two; type trainer.batch_size=2 or more (of this network alone: {where}.batch_size=2)"
        ) from error


def _check_recipe(recipe: Recipe, data: Data, device: torch.device) -> None:
    """As `check_possible`; a moving average that ends before it has left its beginning is told."""
    check_possible(recipe, validation=bool(data.size("val")), on_cuda=device.type == "cuda")
    check_card(recipe.precision, device)
    updates = recipe.epochs * -(-data.steps(recipe.batch_size, recipe.limit_train_batches) // recipe.accumulate)
    if recipe.ema_decay is None or updates < 2:
        return
    share = recipe.ema_decay ** (updates - 1)  # of the first update's network, with which the average begins
    if share > _SLOW:
        log.warning(
            "trainer.ema_decay=%s: after all %s updates %.4g %% of the moving average, which is what is kept, is still "
            "the network of the first one; with trainer.ema_decay=%.3g it is 1 %%",
            *(recipe.ema_decay, f"{updates:,}", 100 * share, 0.01 ** (1 / (updates - 1))),
        )


def _stand_in(setup: Setup, training: Training, networks: Mapping[str, nn.Module], data: Data) -> nn.Module:
    """What is like the networks that will teach in this training, or the one that learns beside the student."""
    known = [networks[name] for name in training.teachers]
    if not known:
        return build_peer(setup.teacher, training.seed, data, setup.device)
    if len(known) == 1:
        return known[0]
    from kd_cli.teachers.ensemble import Ensemble

    return Ensemble(known).to(setup.device)


def _bound(setup: Setup, training: Training, student: nn.Module, teacher: nn.Module | None, data: Data) -> Distillation:
    try:
        return build_task(setup.loss, student, teacher, data, setup.recipes["distilled"])
    except ConfigError as error:
        pair = f"{' + '.join(training.teachers) or 'teacher'} → {training.name}"
        raise ConfigError(f"{pair}: {error}") from error


def _check_kept(setup: Setup, data: Data) -> None:
    top_k, classes = setup.kept.top_k, data.spec.num_classes
    if top_k is not None and top_k >= classes:
        raise ConfigError(
            f"teacher_cache_top_k: {top_k} is not possible, there are {classes} classes; type a smaller number, or "
            "null to keep all logits"
        )


def _check_specialists(setup: Setup, data: Data) -> None:
    """Finds what the data do not allow of `specialists`."""
    try:
        check_groups(setup.groups, setup.group_size, data.spec.num_classes)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if setup.groups and not data.size("val"):
        raise ConfigError("specialists.groups needs validation images; type dataset.val_fraction=0.1")


def _teachers(setup: Setup, launch: Launch, data: Data) -> tuple[Sequence[Known], Mapping[str, Any] | None]:
    """The teachers of the only training, and what is on record of them where it goes on."""
    if setup.stage != "distilled" or setup.kind != "frozen":
        return setup.given if setup.stage == "distilled" else (), None
    before, view = _record(launch, launch.folder).get("teacher"), setup.view
    if before is not None and not before.get("ready"):  # a resumed run keeps its teacher, whatever was trained since
        models = [known.model for known in setup.given] or [setup.teacher]
        return [Known(Path(path), model, view) for path, model in zip(before["sources"], models, strict=True)], before
    if not setup.given:
        return [Known(find_teacher(setup.outputs, setup.teacher, data, launch.arguments), setup.teacher, view)], None
    return setup.given, before


def _say_unused(setup: Setup, launch: Launch) -> None:
    """Names what was asked for, on the command line or by a preset, and changes nothing here."""
    asked, unused = launch.given | set(setup.procedures), _UNUSED[setup.stage] if setup.stage else set()
    for key in sorted(key for key in asked if {key, key.partition(".")[0]} & unused):
        console.notice(f"{key} has no effect on kd {launch.command}")
    for key in sorted(_OF_GIVEN & set(launch.given)) if setup.stage in (None, "distilled") else ():
        if setup.kind == "trained":
            console.notice(f"{key} has no effect: {setup.loss['name']} trains a teacher of its own")
        elif setup.stage is None and not setup.given:
            console.notice(f"{key} has no effect: kd run trains the teacher")
    for key in sorted(set(_KEPT) & set(launch.given)) if setup.stage in (None, "distilled") else ():
        if setup.kind != "frozen":
            console.notice(f"{key} has no effect: {setup.loss['name']} asks no finished teacher")
    if setup.stage in (None, "distilled") and setup.weights and setup.members == 1:
        console.notice("ensemble.weights has no effect: there is one teacher")


def _say_small(setup: Setup, launch: Launch, data: Data) -> None:
    """The pair that stands for MNIST's digits where none is named is no pair for photographs."""
    _, height, width = data.spec.image_shape
    named = {key.partition(".")[0] for key in launch.given} & {"teacher", "student", "experiment", "study"}
    if not named and min(height, width) >= _LARGE and setup.student["name"] == "cnn":
        console.notice(
            f"teacher and student are small networks for digits of 28×28 pixels, these images have {width}×{height}; "
            f"a pair for them: {_PAIR}"
        )


def open_data(setup: Setup) -> Data:
    """The data of all trainings, with a line that says what they are.

    Raises:
        DataError: as `load_dataset`, and where there is nothing to learn from.
    """
    data = once(("data", json.dumps(setup.dataset, sort_keys=True)), lambda: load_dataset(setup.dataset))
    sizes = ", ".join(f"{data.size(part):,} {part}" for part in ("train", "val", "test"))
    names = data.spec.class_names
    console.say(f"data       {data.name}: {sizes}; {len(names)} classes: {listed(names, 4)}")
    if not data.size("train"):
        raise DataError("dataset.test_fraction=1 leaves no image to learn from; type dataset.test_fraction=0.2")
    return data
