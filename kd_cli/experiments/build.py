"""From options to networks, losses and tasks."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kd_cli import console
from kd_cli.config.plan import Training
from kd_cli.config.recipe import Recipe
from kd_cli.data.base import Data
from kd_cli.errors import ConfigError, DataError, listed, offer
from kd_cli.experiments.setup import Setup
from kd_cli.losses.base import build_loss
from kd_cli.machine import ranks
from kd_cli.metrics.evaluate import check_takes
from kd_cli.models.base import build_model
from kd_cli.out_of_memory import countable, needing_memory
from kd_cli.runs.folder import RunDir
from kd_cli.seeds import derive_seed, seed_dropout
from kd_cli.storage.cache import shards_in
from kd_cli.storage.files import file_digest
from kd_cli.teachers.cache import CachedTeacher, make_entry
from kd_cli.teachers.load import Known, Teacher, load_teachers
from kd_cli.teachers.outputs import WHOLE
from kd_cli.training.task import Distillation

log = logging.getLogger("kd")

ASKED_FROM = "teacher_asked_from_epoch"  # of run.json


def build_network(
    options: Mapping[str, Any], role: str, seed: int, data: Data, device: torch.device, *, learns: bool = True
) -> nn.Module:
    """A network with its first weights: a pure function of the seed and the network's options.

    Raises:
        ConfigError: it cannot be built, or has nothing to learn and shall.
    """
    seed_dropout(derive_seed(seed, "weights"), device)
    with (
        needing_memory(
            f"the network {role}={options['name']}", f"Type {offer(role)} with a smaller one, or another device=…"
        ),
        countable(role),
    ):
        network = build_model(options, data.spec, where=role)
        if learns and not any(parameter.requires_grad for parameter in network.parameters()):
            raise ConfigError(f"{role}={options['name']} has nothing to learn; it can only teach: teacher.ready=true")
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    check_takes(network, data.spec, f"{role}={options['name']}")
    return network


def build_peer(options: Mapping[str, Any], seed: int, data: Data, device: torch.device) -> nn.Module:
    """The second network of a method that trains one beside the student."""
    return build_network(options, "teacher", derive_seed(seed, "peer"), data, device)


def note_model(run: RunDir, model: Mapping[str, Any], **facts: Any) -> None:
    """Records which network a run trains, and which weights it began with where those are a file's."""
    began = (
        {"pretrained_sha256": file_digest(Path(model["pretrained"]).expanduser())} if model.get("pretrained") else {}
    )
    run.note(model=model, **began, **facts)


def build_task(
    loss: Mapping[str, Any], student: nn.Module, teacher: nn.Module | None, data: Data, recipe: Recipe
) -> Distillation:
    """The student's task.

    Args:
        loss: the loss's name and options.

    Raises:
        ConfigError: the loss cannot work on this pair.
    """
    method, mix = build_loss(loss)
    try:
        return Distillation(
            student,
            teacher,
            method,
            mix,
            data.spec,
            name=loss["name"],
            label_smoothing=recipe.label_smoothing,
            class_weights=class_weights(recipe, data, next(student.parameters()).device),
            ask_in=min(recipe.batch_size, data.spec.num_train) if ranks() is None else 1,
            mixed=data.mixes,
            views=len(data.views_in(0)),
        )
    except ValueError as error:
        raise ConfigError(f"loss={loss['name']} cannot work on this pair: {error}") from error


def class_weights(recipe: Recipe, data: Data, device: torch.device) -> torch.Tensor | None:
    """The recipe's weights of the classes [K]; None: all alike. A class without training images has weight 1.

    Raises:
        ConfigError: another number of weights than classes.
    """
    given, classes = recipe.class_weights, data.spec.num_classes
    if given is None:
        return None
    if given == "balanced":
        images = data.labels("train").bincount(minlength=classes)
        weights = torch.where(images > 0, len(data.labels("train")) / (classes * images), 1.0)
    elif len(given) == classes:
        weights = torch.tensor(given)
    else:
        raise ConfigError(
            f"trainer.class_weights: {len(given)} weights are given for {classes} classes "
            f"({listed(data.spec.class_names)}); give one for each, or type trainer.class_weights=balanced"
        )
    return weights.to(device, torch.float32)


def frozen_teacher(setup: Setup, teachers: Sequence[Known], data: Data) -> Teacher:
    """The frozen teacher that all of them make together."""
    size, limit = setup.eval_batch_size, setup.cache_limit
    teacher = load_teachers(teachers, data, weights=setup.weights, batch_size=size, device=setup.device, limit=limit)
    if setup.control not in ("shuffled_teacher", "random_teacher"):
        return teacher
    from kd_cli.experiments.control import control_teacher

    return control_teacher(setup, teacher, data)


def check_way(setup: Setup, training: Training, network: nn.Module, data: Data) -> None:
    """Whether it can be trained as it is to be: by a linear probe, or on several devices."""
    if setup.probe and training.stage == "teacher":
        from kd_cli.experiments.probe import check_probe

        check_probe(network, training.model, data, setup.devices)
    elif setup.devices > 1:
        from kd_cli.experiments.together import check_together

        check_together(training, network, setup.recipes[training.stage], data, setup.devices)


def check_unchanged(before: Mapping[str, Any], facts: Mapping[str, Any], run: Path) -> None:
    """Refuses to go on with teachers whose weights are not those that a run began with.

    Raises:
        DataError: they have changed.
    """
    if before["sha256"] != facts["sha256"]:
        raise DataError(f"{before['sources'][0]} has changed since {run} took it as its teacher; start a new run")


def remember_teacher(setup: Setup, task: Distillation, teacher: Teacher, data: Data, seed: int, run: RunDir) -> None:
    """Lets the cache answer in the teacher's place, where that asks it less often than every step does.

    What is lost where answers are kept approximately is in the run's record, and from which epoch on they are not used.
    """
    recipe, device = setup.recipes["distilled"], setup.device
    steps = data.steps(recipe.batch_size, recipe.limit_train_batches)
    part = steps < data.steps(recipe.batch_size)
    live = not setup.cache_limit or _is_asked(data, part)
    entry = make_entry(
        teacher.digest,
        setup.teacher,
        data,
        limit=setup.cache_limit,
        batch_size=recipe.batch_size,
        device=device,
        precision=recipe.precision,
        taps=task.teacher_taps,
        kept=setup.kept,
    )
    few = recipe.epochs * steps * recipe.batch_size < data.spec.num_train
    if few and not shards_in(entry.path / WHOLE).is_complete():  # where another run has asked about all, it answers
        live = True
    live, since = _agreed(live, run.record.get(ASKED_FROM))
    if live and not setup.kept:
        return
    used = steps * recipe.batch_size if part and data.repeatable else None
    task.cache = cache = CachedTeacher(
        task.ask,
        data,
        entry,
        seed=seed,
        batch_size=recipe.batch_size,
        device=device,
        used=used,
        fixed=device.type == "cuda",
        live=live,
        live_from=since,
        tell=lambda epoch: run.note(**{ASKED_FROM: epoch}),
    )
    if setup.kept:
        run.note(teacher_answers=_tell_costs(setup, task, cache))


def _agreed(live: bool, since: object) -> tuple[bool, int | None]:
    """What all processes of a training go by: their caches, and what they see of its record, need not be the same."""
    known = since if isinstance(since, int) else -1
    if (others := ranks()) is not None:
        live, known = others.any(live), int(others.agreed({"from": known})["from"])
    return live, known if known >= 0 else None


def _is_asked(data: Data, part: bool) -> bool:
    """Whether each step shows what none showed before, or an epoch, a `part` of the images, less than would be kept."""
    if data.mixes and not data.repeatable:
        log.warning(
            "the teacher is asked at every step: dataset.repeats, views and balanced mix an image otherwise each time"
        )
        return True
    return data.balanced and data.augmented and part


def _tell_costs(setup: Setup, task: Distillation, cache: CachedTeacher) -> Mapping[str, Any]:
    from kd_cli.teachers.top_k import told

    costs = cache.costs()
    console.say(told(costs))
    name, top_k = setup.loss["name"], setup.kept.top_k
    if top_k is not None and task.method.whole_logits:
        console.notice(f"{name} compares all logits, and with teacher_cache_top_k={top_k} all others have one value")
    if top_k is not None and task.teacher_taps:
        console.notice(f"teacher_cache_top_k={top_k} is of the logits: the features that {name} reads are kept whole")
    return costs
