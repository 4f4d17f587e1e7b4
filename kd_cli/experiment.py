"""What the commands do, as straight lines: train a network, distil one, compare three."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kd_cli import console, handover
from kd_cli.arguments import only_typed, resume_command
from kd_cli.build import (
    build_network,
    build_peer,
    build_task,
    cache_limit,
    check_specialists,
    kind_of_teacher,
    note_model,
    pick_device,
    rehearse,
    remember_teacher,
)
from kd_cli.config import Config, Launch, Stage, recipe_differences, stage_recipe
from kd_cli.data.base import Data, check_dataset, load_dataset
from kd_cli.errors import ConfigError, DataError, Interrupted, Terminated
from kd_cli.evaluate import confusion_matrix
from kd_cli.fit import Result, check_recipe, finished, fit
from kd_cli.followers import followed
from kd_cli.handover import Known
from kd_cli.loggers.base import check_logger, make_loggers
from kd_cli.models.base import MODELS
from kd_cli.parts import open_part
from kd_cli.plan import Training, check_procedure, model_options, plan, procedures, single
from kd_cli.provenance import arithmetic, provenance
from kd_cli.pruning import pruners
from kd_cli.rundir import RunDir
from kd_cli.source import copy_body, recorded_result
from kd_cli.task import Supervised
from kd_cli.teachers import check_weights, confusable_groups

_PROCEDURES = {"specialists", "assistants", "generations"}
_UNUSED: dict[Stage, set[str]] = {
    "teacher": {"student", "loss", "baseline_trainer", "distill_trainer", "ensemble", *_PROCEDURES},
    "baseline": {"teacher", "loss", "teacher_trainer", "distill_trainer", "ensemble", *_PROCEDURES},
    "distilled": {"teacher_trainer", "baseline_trainer", "ensemble.size", *_PROCEDURES},
}


def train(config: Config, launch: Launch, stage: Stage) -> Result:
    """`kd train-teacher` and `kd train-baseline`: one network learns from the labels."""
    check(config)
    with _opened(launch.folder, config, launch, stage, exact=launch.exact) as run:
        if run.result is not None:
            return _already(run)
        _say_unused(config, launch, stage)
        return _supervised(config, launch, single(config, stage), run, open_data(config))


def distill(config: Config, launch: Launch) -> Result:
    """`kd distill`: a student learns from a teacher that is there already."""
    check(config)
    with _opened(launch.folder, config, launch, "distilled", exact=launch.exact) as run:
        if run.result is not None:
            return _already(run)
        _say_unused(config, launch, "distilled")
        return _distilled(config, launch, single(config, "distilled"), run, open_data(config), _given(config))


def compare(config: Config, launch: Launch) -> Result:
    """`kd run`: teacher, baseline student and distilled student with the same seed, and what a procedure adds."""
    check(config)
    with _opened(launch.folder, config, launch, None, exact=launch.exact) as run:
        if run.result is not None:
            return _already(run)
        _say_unused(config, launch, None)
        start, data, given = time.monotonic(), open_data(config), _given(config)
        trainings = prepare(config, data)
        used = len(given) == 1 and kind_of_teacher(config) != "trained"
        recorded = recorded_result(given[0].path) if used else None
        results: dict[str, Result] = {"teacher": recorded} if recorded else {}
        loggers = make_loggers(config, run)
        with followed(loggers, ()):
            results |= _learn_all(config, launch, trainings, run, data, given)
            seconds = round(time.monotonic() - start, 1)
            result = {"run": str(run.path), "seconds": seconds, **_comparison(config, results), **results}
            run.finish(result)
            for logger in loggers:
                logger.finish(result)
        return result


def prepare(config: Config, data: Data) -> list[Training]:
    """The parts of `kd run`, when all that can be wrong with them was looked for: no training shall be in vain.

    Raises:
        ConfigError: options, recipes or pairs that cannot work.
        DataError: a given teacher that is damaged, not what its record says, or for other classes.
    """
    check_specialists(config, data)
    kind, given, device = kind_of_teacher(config), _given(config), pick_device(config["device"])
    trainings = plan(config, teacher=kind, given=bool(given))
    for training in trainings:
        check_recipe(stage_recipe(config, training.stage), data, device)
    network = None
    if given and kind == "frozen":
        network = _load(config, given, data, device)[0].cpu()
    rehearse(config, trainings, data, network)
    return trainings


def _comparison(config: Config, results: Mapping[str, Result]) -> dict[str, Any]:
    gain = round(results["distilled"]["test_top1"] - results["baseline"]["test_top1"], 2)
    differences = recipe_differences(config)
    return {"seed": config["seed"], "gain": gain} | ({"recipe_differences": differences} if differences else {})


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
    given = _given(config)
    check_procedure(config, teacher=kind_of_teacher(config), given=bool(given))
    try:
        check_weights(config["ensemble"]["weights"], _members(config, given))
    except ValueError as error:
        raise ConfigError(f"ensemble.{error}") from error


def _learn_all(
    config: Config, launch: Launch, trainings: Sequence[Training], run: RunDir, data: Data, given: Sequence[Known]
) -> dict[str, Result]:
    """The results of all parts of a comparison, by name; those that are not there yet are trained."""
    models = {training.name: training.model for training in trainings}
    results: dict[str, Result] = {}
    for training in trainings:
        with open_part(run.path, training, _identity(config, launch, training.stage), config) as part:
            teachers = [Known(run.path / name, models[name]) for name in training.teachers] or given
            results[training.name] = finished(part, data) or _learn(config, launch, training, part, data, teachers)
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
        network = _take_teacher(config, launch, run, data, teachers, device)
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
    config: Config, launch: Launch, run: RunDir, data: Data, teachers: Sequence[Known], device: torch.device
) -> nn.Module:
    options, before = model_options(config, "teacher"), run.record.get("teacher")
    if before is not None:  # a resumed run keeps its teacher, whatever was trained since
        models = [known.model for known in teachers] or [options]
        teachers = [Known(Path(path), model) for path, model in zip(before["sources"], models, strict=True)]
    elif not teachers:
        outputs = Path(config["outputs"])
        teachers = [Known(handover.find_teacher(outputs, options, data, launch.arguments), options)]
    network, facts = _load(config, teachers, data, device)
    if before is not None and before["sha256"] != facts["sha256"]:
        raise DataError(f"{teachers[0].path} has changed since {run.path} took it as its teacher; start a new run")
    run.note(teacher=facts)
    accuracy = "" if facts["val_top1"] is None else f", {facts['val_top1']:.2f} % on validation (checked now)"
    console.say(f"teacher    {', '.join(console.short_path(known.path) for known in teachers)}{accuracy}")
    return network


def _load(config: Config, teachers: Sequence[Known], data: Data, device: torch.device) -> tuple[nn.Module, Result]:
    size, limit = config["trainer"]["eval_batch_size"], cache_limit(config)
    weights = config["ensemble"]["weights"]
    return handover.load_teachers(teachers, data, weights=weights, batch_size=size, device=device, limit=limit)


def _say_unused(config: Config, launch: Launch, stage: Stage | None) -> None:
    """Names what was asked for, on the command line or by a preset, and changes nothing here; None: of `kd run`."""
    asked = launch.given | set(procedures(config))
    unused = _UNUSED[stage] if stage else set()
    for key in sorted(key for key in asked if {key, key.partition(".")[0]} & unused):
        console.notice(f"{key} has no effect on kd {launch.command}")
    given = _given(config)
    if stage in (None, "distilled") and given and kind_of_teacher(config) == "trained":
        console.notice(f"teacher.checkpoint has no effect: {config['loss']['name']} trains a teacher of its own")
    if stage in (None, "distilled") and config["ensemble"]["weights"] and _members(config, given) == 1:
        console.notice("ensemble.weights has no effect: there is one teacher")


def _members(config: Config, given: Sequence[Known]) -> int:
    """How many teachers an ensemble has."""
    return len(given) if len(given) > 1 else int(config["ensemble"]["size"])


def _given(config: Config) -> list[Known]:
    """The teachers that are trained already; one alone must be the network that `teacher` describes."""
    given = config["teacher"].get("checkpoint")
    if isinstance(given, list) and not given:
        raise ConfigError("teacher.checkpoint: [] names no teacher; type a run's folder, or null for the newest")
    paths = [Path(str(each)).expanduser() for each in (given if isinstance(given, list) else [given] if given else [])]
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise ConfigError(f"teacher.checkpoint: there is no {missing[0]}; kd list runs shows what is there")
    return [Known(path, model_options(config, "teacher") if len(paths) == 1 else None) for path in paths]


def open_data(config: Config) -> Data:
    data = load_dataset(config["dataset"])
    sizes = ", ".join(f"{data.size(part):,} {part}" for part in ("train", "val", "test"))
    console.say(f"data       {data.name}: {sizes}")
    return data


@contextmanager
def _opened(folder: Path, config: Config, launch: Launch, stage: Stage | None, *, exact: bool) -> Iterator[RunDir]:
    """The run's folder; Ctrl-C and SIGTERM say how to go on."""
    with RunDir.open(folder, _identity(config, launch, stage), config, exact=exact) as run:
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
