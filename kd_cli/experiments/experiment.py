"""What the commands do, as straight lines: train a network, distil one, compare three."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from kd_cli import console
from kd_cli.config.base import Config, Launch, Stage, recipe_differences
from kd_cli.config.overrides import resume_command
from kd_cli.config.plan import Training
from kd_cli.config.recipe import Recipe
from kd_cli.data.base import Data
from kd_cli.errors import Interrupted, Terminated
from kd_cli.experiments.build import (
    build_network,
    build_task,
    check_unchanged,
    class_weights,
    frozen_teacher,
    note_model,
    remember_teacher,
)
from kd_cli.experiments.preflight import Ready, get_ready
from kd_cli.experiments.setup import Setup, make_setup
from kd_cli.machine import ranks
from kd_cli.metrics.evaluate import confusion_matrix
from kd_cli.runs.folder import RunDir
from kd_cli.runs.provenance import arithmetic, provenance
from kd_cli.saved.weights import copy_body, recorded_result
from kd_cli.teachers.load import Known, Teacher, load_teacher
from kd_cli.training.callbacks import Callback, watched_by
from kd_cli.training.fit import Result, finished, fit
from kd_cli.training.loggers.base import make_loggers
from kd_cli.training.task import Distillation, Supervised, Task


def train_teacher(config: Config, launch: Launch) -> Result:
    """`kd train-teacher`: a network learns from the labels."""
    return _train_one(config, launch, "teacher")


def train_baseline(config: Config, launch: Launch) -> Result:
    """`kd train-baseline`: the student learns from the labels."""
    return _train_one(config, launch, "baseline")


def distill(config: Config, launch: Launch) -> Result:
    """`kd distill`: a student learns from a teacher that is there already."""
    return _train_one(config, launch, "distilled")


def _train_one(config: Config, launch: Launch, stage: Stage) -> Result:
    setup = make_setup(config, stage)
    ready = get_ready(setup, launch)
    with _opened(setup, launch) as (run, identity):
        if ready is None or run.result is not None:
            return _already(run)
        if launch.extends is not None and not run.follows:
            from kd_cli.experiments.extension import take_over

            take_over(launch.extends, run, identity)
        return _learn(setup, launch, setup.trainings[0], run, ready, ready.teachers)


def compare(config: Config, launch: Launch) -> Result:
    """`kd run`: teacher, baseline student and distilled student with the same seed, and what a procedure adds."""
    start, setup = time.monotonic(), make_setup(config, None)
    ready = get_ready(setup, launch)
    with _opened(setup, launch) as (run, identity):
        if ready is None or run.result is not None:
            return _already(run)
        path = ready.teachers[0].path if len(ready.teachers) == 1 and setup.kind != "trained" else None
        recorded = recorded_result(path) if path else None
        results: dict[str, Result] = {"teacher": recorded} if recorded else {}
        loggers = make_loggers(setup.logger, run)
        with watched_by(loggers, ()):
            results |= _learn_all(setup, launch, ready, run, identity)
            seconds = round(time.monotonic() - start, 1)
            result = {"run": str(run.path), "seconds": seconds, **_comparison(setup, results), **results}
            run.finish(result)
            for logger in loggers:
                logger.finish(result)
        return result


def _comparison(setup: Setup, results: Mapping[str, Result]) -> dict[str, Any]:
    from kd_cli.metrics.significance import gain_over

    gain = gain_over(results["baseline"], results["distilled"])
    differences = recipe_differences(setup.recipes["baseline"], setup.recipes["distilled"])
    return {"seed": setup.seed, "gain": gain} | ({"recipe_differences": differences} if differences else {})


def _learn_all(
    setup: Setup, launch: Launch, ready: Ready, run: RunDir, identity: Mapping[str, Any]
) -> dict[str, Result]:
    """The results of all parts of a comparison, by name; those that are not there yet are trained."""
    from kd_cli.experiments.parts import open_part

    models = {training.name: training.model for training in setup.trainings}
    results: dict[str, Result] = {}
    for training in setup.trainings:
        with open_part(run.path, training, {**identity, "stage": training.stage}, setup.recorded) as part:
            teachers = [Known(run.path / name, models[name]) for name in training.teachers] or ready.teachers
            done = finished(part, ready.data)
            results[training.name] = done or _learn(setup, launch, training, part, ready, teachers)
    return results


def _learn(
    setup: Setup, launch: Launch, training: Training, run: RunDir, ready: Ready, teachers: Sequence[Known]
) -> Result:
    recipe, data = setup.recipes[training.stage], ready.data
    facts: Result = {"stage": training.name, "seed": training.seed}
    task: Task
    if training.stage == "distilled":
        task = _distillation(setup, training, run, ready, teachers)
        facts |= {"loss": setup.loss["name"], "weight": task.mix.weight}
    else:
        if training.group is None:
            network = _network(setup, training, ready)
        else:
            network, data = _specialist(setup, training, run, data, teachers[0])
        weights = class_weights(recipe, data, setup.device)
        task = Supervised(network, recipe.label_smoothing, weights)
        note_model(run, training.model)
    callbacks = [*make_loggers(setup.logger, run), *_pruners(launch, training.name, recipe)]
    learns: dict[str, Any] = {"device": setup.device, "callbacks": callbacks}
    if not (setup.probe and training.stage == "teacher"):
        return fit(task, data, run, recipe, facts, **learns)
    from kd_cli.experiments.probe import fit_probe
    from kd_cli.training.settle import settle

    made = partial(fit_probe, task.deployed, training.model, data, run, recipe, limit=setup.cache_limit)
    return settle(task, data, run, recipe, facts, made, **learns)


def _pruners(launch: Launch, name: str, recipe: Recipe) -> list[Callback]:
    """What may end a trial of a search early; in a comparison its distilled student."""
    if launch.trial is None or (launch.command == "run" and name != "distilled"):
        return []
    from kd_cli.training.trial_pruner import Pruner

    return [Pruner(launch.trial, recipe)]


def _network(setup: Setup, training: Training, ready: Ready) -> nn.Module:
    """What a training begins with: what preflight has built, or the same again."""
    built = ready.networks.pop(training.name, None)
    return built or build_network(training.model, training.role, training.seed, ready.data, setup.device)


def _specialist(setup: Setup, training: Training, run: RunDir, data: Data, generalist: Known) -> tuple[nn.Module, Data]:
    """A copy of the teacher that is to tell a group of classes apart which the teacher confuses, and its data."""
    from kd_cli.teachers.ensemble import confusable_groups

    size, device = setup.eval_batch_size, setup.device
    teacher = load_teacher(generalist, data, batch_size=size, device=device).network
    classes = run.record.get("specialist")  # a resumed one keeps its classes, whatever the processor rounds now
    if classes is None:
        confusion = confusion_matrix(teacher, data, "val", batch_size=size, device=device)
        classes = confusable_groups(confusion, setup.groups, setup.group_size)[training.group or 0]
        if (others := ranks()) is not None:
            classes = json.loads(others.told(json.dumps(classes)))
    console.say(f"{training.name} tells apart {', '.join(data.spec.class_names[label] for label in classes)}")
    run.note(specialist=classes)
    narrowed = data.narrowed(classes)
    network = build_network(training.model, "teacher", training.seed, narrowed, device)
    copy_body(teacher, network)
    return network, narrowed


def _distillation(
    setup: Setup, training: Training, run: RunDir, ready: Ready, teachers: Sequence[Known]
) -> Distillation:
    task, teacher = ready.tasks.pop(training.name, None), ready.teacher
    if task is None:  # its teachers were trained just now; the student is first, so that every loss starts from it
        student = _network(setup, training, ready)
        teacher = frozen_teacher(setup, teachers, ready.data)
        task = build_task(setup.loss, student, teacher.network, ready.data, setup.recipes["distilled"])
    taught = {} if teacher is None else {"teacher": _take_teacher(teacher, run)}
    note_model(run, training.model, **taught, loss=setup.loss, grafted=task.grafted)
    if teacher is not None:
        remember_teacher(setup, task, teacher, ready.data, training.seed, run)
    return task


def _take_teacher(teacher: Teacher, run: RunDir) -> Mapping[str, Any]:
    before, facts = run.record.get("teacher"), teacher.facts
    if before is not None:
        check_unchanged(before, facts, run.path)
    accuracy = "" if facts["val_top1"] is None else f", {facts['val_top1']:.2f} % on validation (checked now)"
    console.say(f"teacher    {', '.join(map(console.short_path, facts['sources']))}{accuracy}")
    return facts


@contextmanager
def _opened(setup: Setup, launch: Launch) -> Iterator[tuple[RunDir, Mapping[str, Any]]]:
    """The run's folder, and what is on record about its beginning; Ctrl-C and SIGTERM say how to go on."""
    identity = provenance(launch.command, launch.arguments) | arithmetic(setup.device) | {"stage": setup.stage}
    with RunDir.open(launch.folder, identity, setup.recorded, exact=launch.exact) as run:
        try:
            yield run, identity
        except (KeyboardInterrupt, Terminated) as error:
            kind = Interrupted if isinstance(error, KeyboardInterrupt) else Terminated
            command = resume_command(console.short_path(run.path), launch.arguments)
            raise kind(f"stopped; what was trained is kept. Go on with:\n{command}") from None


def _already(run: RunDir) -> Result:
    console.say(f"{run.path} is complete already; nothing was trained again")
    result: Mapping[str, Any] | None = run.result
    assert result is not None
    return dict(result)
