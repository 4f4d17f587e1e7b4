"""From a configuration to devices, networks and tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kd_cli.config.base import Config, stage_recipe
from kd_cli.config.plan import Training, check_groups, model_options
from kd_cli.config.recipe import Recipe
from kd_cli.data.base import Data
from kd_cli.errors import ConfigError
from kd_cli.losses.base import build_loss
from kd_cli.models.base import MODELS, model_shape
from kd_cli.out_of_memory import countable, needing_memory
from kd_cli.runs.folder import RunDir
from kd_cli.seeds import derive_seed, seed_dropout
from kd_cli.storage.cache import is_untouched
from kd_cli.storage.files import file_digest
from kd_cli.teachers.cache import CachedTeacher, make_entry
from kd_cli.teachers.ensemble import Ensemble
from kd_cli.training.task import Distillation


def build_network(options: Mapping[str, Any], role: str, seed: int, data: Data, device: torch.device) -> nn.Module:
    """A network with its first weights: a pure function of the seed and the network's options."""
    seed_dropout(derive_seed(seed, "weights"), device)
    with (
        needing_memory(
            f"the network {role}={options['name']}", f"Type {role}=… with a smaller one, or another device=…"
        ),
        countable(role),
    ):
        network = MODELS.build(options, where=role, **model_shape(data.spec))
        return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def note_model(run: RunDir, model: Mapping[str, Any]) -> None:
    """Records which network a run trains, and which weights it began with where those are a file's."""
    began = (
        {"pretrained_sha256": file_digest(Path(model["pretrained"]).expanduser())} if model.get("pretrained") else {}
    )
    run.note(model=model, **began)


def build_task(
    config: Config, student: nn.Module, teacher: nn.Module | None, data: Data, recipe: Recipe
) -> Distillation:
    """The student's task with the loss of the configuration.

    Raises:
        ConfigError: the loss cannot work on this pair.
    """
    method, mix = build_loss(config["loss"])
    name, smoothing = config["loss"]["name"], recipe.label_smoothing
    try:
        return Distillation(
            student,
            teacher,
            method,
            mix,
            data.spec,
            name=name,
            label_smoothing=smoothing,
            ask_in=min(recipe.batch_size, data.spec.num_train),
        )
    except ValueError as error:
        raise ConfigError(f"loss={name} cannot work on this pair: {error}") from error


def remember_teacher(
    config: Config, task: Distillation, teacher: nn.Module, data: Data, recipe: Recipe, seed: int, device: torch.device
) -> None:
    """Lets the cache answer in the teacher's place, where that asks it less often than every step does."""
    steps = data.steps(recipe.batch_size, recipe.limit_train_batches)
    limit = cache_limit(config)
    if not limit or recipe.epochs * steps * recipe.batch_size < data.spec.num_train:
        return
    entry = make_entry(
        teacher,
        model_options(config, "teacher"),
        data,
        limit=limit,
        batch_size=recipe.batch_size,
        device=device,
        precision=recipe.precision,
        taps=task.teacher_taps,
    )
    task.cache = CachedTeacher(task.ask, data, entry, seed=seed, batch_size=recipe.batch_size, device=device)


def cache_limit(config: Config) -> int:
    """Bytes that kept answers of teachers may take; 0: nothing is kept."""
    return int(config["teacher_cache_gb"] * 1e9) if config["teacher_cache"] and not is_untouched() else 0


def build_peer(config: Config, seed: int, data: Data, device: torch.device) -> nn.Module:
    """The second network of a method that trains one beside the student."""
    options = model_options(config, "teacher")
    return build_network(options, "teacher", derive_seed(seed, "peer"), data, device)


def kind_of_teacher(config: Config) -> str:
    """What the loss asks of a teacher: `frozen`, `trained` or `none`."""
    method, mix = build_loss(config["loss"])
    return method.teacher if mix.weight else "none"


def rehearse(config: Config, plan: Sequence[Training], data: Data, given: nn.Module | None) -> None:
    """Binds every student of a plan to networks like those that will teach it, so that no training is in vain.

    Args:
        given: what teaches where no part of the plan does.

    Raises:
        ConfigError: the loss cannot work on one of the pairs.
    """
    kind, device = kind_of_teacher(config), torch.device("cpu")
    networks: dict[str, nn.Module] = {}
    for training in plan:
        role = "teacher" if training.stage == "teacher" else "student"
        network = build_network(training.model, role, training.seed, data, device)
        if training.stage == "distilled" and kind != "none":
            known = [networks[name] for name in training.teachers]
            teacher = Ensemble(known) if len(known) > 1 else known[0] if known else given
            if teacher is None:
                teacher = build_peer(config, training.seed, data, device)
            try:
                network = build_task(config, network, teacher, data, stage_recipe(config, "distilled")).deployed
            except ConfigError as error:
                pair = f"{' + '.join(training.teachers) or 'teacher'} → {training.name}"
                raise ConfigError(f"{pair}: {error}") from error
        networks[training.name] = network


def check_specialists(config: Config, data: Data) -> None:
    """Finds what the data do not allow of `specialists`.

    Raises:
        ConfigError: more classes than there are, or no validation images to find confusable ones on.
    """
    wanted = config["specialists"]
    try:
        check_groups(wanted["groups"], wanted["classes"], data.spec.num_classes)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if wanted["groups"] and not data.size("val"):
        raise ConfigError("specialists.groups needs validation images; type dataset.val_fraction=0.1")
