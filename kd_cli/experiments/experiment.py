"""What the commands do, as straight lines: train a network, distil one, compare three."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from kd_cli import console
from kd_cli.config.base import Config, Launch, Stage, recipe_differences, stage_recipe
from kd_cli.config.overrides import only_typed, resume_command
from kd_cli.config.plan import Training, single
from kd_cli.data.base import Data
from kd_cli.errors import Interrupted, Terminated
from kd_cli.experiments.build import (
    build_network,
    build_peer,
    build_task,
    kind_of_teacher,
    note_model,
    remember_teacher,
)
from kd_cli.experiments.parts import open_part
from kd_cli.experiments.preflight import Ready, check_unchanged, get_ready, load
from kd_cli.machine import pick_device
from kd_cli.metrics.evaluate import confusion_matrix
from kd_cli.runs.folder import RunDir
from kd_cli.runs.provenance import arithmetic, provenance
from kd_cli.saved.weights import copy_body, recorded_result
from kd_cli.teachers import load as handover
from kd_cli.teachers.ensemble import confusable_groups
from kd_cli.teachers.load import Known
from kd_cli.training.callbacks import followed
from kd_cli.training.fit import Result, finished, fit
from kd_cli.training.loggers.base import make_loggers
from kd_cli.training.task import Supervised
from kd_cli.training.trial_pruner import pruners


def train(config: Config, launch: Launch, stage: Stage) -> Result:
    """`kd train-teacher` and `kd train-baseline`: one network learns from the labels."""
    ready = get_ready(config, launch, stage)
    with _opened(config, launch, stage) as run:
        if ready is None or run.result is not None:
            return _already(run)
        return _supervised(config, launch, single(config, stage), run, ready.data)


def distill(config: Config, launch: Launch) -> Result:
    """`kd distill`: a student learns from a teacher that is there already."""
    ready = get_ready(config, launch, "distilled")
    with _opened(config, launch, "distilled") as run:
        if ready is None or run.result is not None:
            return _already(run)
        return _distilled(config, launch, single(config, "distilled"), run, ready.data, ready.teachers)


def compare(config: Config, launch: Launch) -> Result:
    """`kd run`: teacher, baseline student and distilled student with the same seed, and what a procedure adds."""
    start, ready = time.monotonic(), get_ready(config, launch, None)
    with _opened(config, launch, None) as run:
        if ready is None or run.result is not None:
            return _already(run)
        used = len(ready.teachers) == 1 and kind_of_teacher(config) != "trained"
        recorded = recorded_result(ready.teachers[0].path) if used else None
        results: dict[str, Result] = {"teacher": recorded} if recorded else {}
        loggers = make_loggers(config, run)
        with followed(loggers, ()):
            results |= _learn_all(config, launch, ready, run)
            seconds = round(time.monotonic() - start, 1)
            result = {"run": str(run.path), "seconds": seconds, **_comparison(config, results), **results}
            run.finish(result)
            for logger in loggers:
                logger.finish(result)
        return result


def _comparison(config: Config, results: Mapping[str, Result]) -> dict[str, Any]:
    gain = round(results["distilled"]["test_top1"] - results["baseline"]["test_top1"], 2)
    differences = recipe_differences(config)
    return {"seed": config["seed"], "gain": gain} | ({"recipe_differences": differences} if differences else {})


def _learn_all(config: Config, launch: Launch, ready: Ready, run: RunDir) -> dict[str, Result]:
    """The results of all parts of a comparison, by name; those that are not there yet are trained."""
    models = {training.name: training.model for training in ready.trainings}
    results: dict[str, Result] = {}
    for training in ready.trainings:
        with open_part(run.path, training, _identity(config, launch, training.stage), config) as part:
            teachers = [Known(run.path / name, models[name]) for name in training.teachers] or ready.teachers
            done = finished(part, ready.data)
            results[training.name] = done or _learn(config, launch, training, part, ready.data, teachers)
    return results


def _learn(
    config: Config, launch: Launch, training: Training, run: RunDir, data: Data, teachers: Sequence[Known]
) -> Result:
    if training.group is not None:
        return _specialist(config, launch, training, run, data, teachers[0])
    if training.stage == "distilled":
        return _distilled(config, launch, training, run, data, teachers)
    return _supervised(config, launch, training, run, data)


def _supervised(
    config: Config, launch: Launch, training: Training, run: RunDir, data: Data, generalist: nn.Module | None = None
) -> Result:
    recipe, device = stage_recipe(config, training.stage), pick_device(config["device"])
    role = "teacher" if training.stage == "teacher" else "student"
    network = build_network(training.model, role, training.seed, data, device)
    if generalist is not None:
        copy_body(generalist, network)
    note_model(run, training.model)
    task = Supervised(network, recipe.label_smoothing)
    facts = {"stage": training.name, "seed": training.seed}
    followers = [*make_loggers(config, run), *pruners(launch, training.name, recipe.epochs)]
    return fit(task, data, run, recipe, facts, device=device, followers=followers)


def _specialist(
    config: Config, launch: Launch, training: Training, run: RunDir, data: Data, generalist: Known
) -> Result:
    """A copy of the teacher learns to tell a group of classes apart that the teacher confuses."""
    device, wanted, size = pick_device(config["device"]), config["specialists"], config["trainer"]["eval_batch_size"]
    network, _ = handover.load_teacher(generalist, data, batch_size=size, device=device)
    classes = run.record.get("specialist")  # a resumed one keeps its classes, whatever the processor rounds now
    if classes is None:
        confusion = confusion_matrix(network, data, "val", batch_size=size, device=device)
        classes = confusable_groups(confusion, wanted["groups"], wanted["classes"])[training.group or 0]
    console.say(f"{training.name} tells apart {', '.join(data.spec.class_names[label] for label in classes)}")
    run.note(specialist=classes)
    return _supervised(config, launch, training, run, data.narrowed(classes), network)


def _distilled(
    config: Config, launch: Launch, training: Training, run: RunDir, data: Data, teachers: Sequence[Known]
) -> Result:
    recipe, device = stage_recipe(config, "distilled"), pick_device(config["device"])
    # first, so that every loss starts from the same student
    student = build_network(training.model, "student", training.seed, data, device)
    network, kind = None, kind_of_teacher(config)
    if kind == "trained":
        network = build_peer(config, training.seed, data, device)
    elif kind == "frozen":
        network = _take_teacher(config, run, data, teachers, device)
    note_model(run, training.model)
    run.note(loss=config["loss"])
    task = build_task(config, student, network, data, recipe)
    if kind == "frozen" and network is not None:
        remember_teacher(config, task, network, data, recipe, training.seed, device)
    run.note(grafted=task.deployed is not student)
    facts = {"stage": training.name, "seed": training.seed, "loss": config["loss"]["name"], "weight": task.mix.weight}
    followers = [*make_loggers(config, run), *pruners(launch, training.name, recipe.epochs)]
    return fit(task, data, run, recipe, facts, device=device, followers=followers)


def _take_teacher(
    config: Config, run: RunDir, data: Data, teachers: Sequence[Known], device: torch.device
) -> nn.Module:
    before = run.record.get("teacher")
    network, facts = load(config, teachers, data, device)
    if before is not None:
        check_unchanged(before, facts, run.path)
    run.note(teacher=facts)
    accuracy = "" if facts["val_top1"] is None else f", {facts['val_top1']:.2f} % on validation (checked now)"
    console.say(f"teacher    {', '.join(console.short_path(known.path) for known in teachers)}{accuracy}")
    return network


@contextmanager
def _opened(config: Config, launch: Launch, stage: Stage | None) -> Iterator[RunDir]:
    """The run's folder; Ctrl-C and SIGTERM say how to go on."""
    with RunDir.open(launch.folder, _identity(config, launch, stage), config, exact=launch.exact) as run:
        try:
            yield run
        except (KeyboardInterrupt, Terminated) as error:
            kind = Interrupted if isinstance(error, KeyboardInterrupt) else Terminated
            command = resume_command(console.short_path(run.path), only_typed(launch.arguments))
            raise kind(f"stopped; what was trained is kept. Go on with:\n{command}") from None


def _identity(config: Config, launch: Launch, stage: Stage | None) -> dict[str, Any]:
    return provenance(launch.command, launch.arguments) | arithmetic(pick_device(config["device"])) | {"stage": stage}


def _already(run: RunDir) -> Result:
    console.say(f"{run.path} is complete already; nothing was trained again")
    result: Mapping[str, Any] | None = run.result
    assert result is not None
    return dict(result)
