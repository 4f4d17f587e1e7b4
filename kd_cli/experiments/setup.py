"""What a command was told: read from its checked configuration once, and all that is below knows no configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kd_cli.config.base import Config, Stage, stage_recipes
from kd_cli.config.plan import (
    Training,
    check_procedure,
    given_paths,
    members,
    model_options,
    plan,
    procedures,
    single,
    typed_view,
)
from kd_cli.config.recipe import Recipe
from kd_cli.data.base import check_dataset
from kd_cli.errors import ConfigError, offer
from kd_cli.losses.base import build_loss
from kd_cli.machine import pick_device, ranks
from kd_cli.models.base import MODELS, check_model
from kd_cli.storage.cache import is_untouched
from kd_cli.teachers.load import Known
from kd_cli.teachers.outputs import Kept
from kd_cli.training.loggers.base import check_logger

if TYPE_CHECKING:
    from kd_cli.teachers.ensemble import Weights


@dataclass(frozen=True)
class Setup:
    """What a command was told, its components checked.

    Args:
        recorded: the configuration, as the folders of runs keep it.
        stage: of the only training; None: a comparison.
        control: what has the distillation's place; `none`: the distillation itself.
        seed: of the command; each training has its own.
        device: where everything is trained.
        devices: how many processes train it together.
        recipes: how each stage is trained.
        dataset, loss, logger, teacher, student: each component's name and options.
        kind: what the loss asks of a teacher: a `frozen` one, one that is `trained` beside the student, or `none`.
        given: the teachers that are trained already; one alone is the network that `teacher` describes.
        probe: the teacher is a frozen encoder that learns its classifier alone.
        view: what is typed of how the teacher is shown the images.
        members: of an ensemble of teachers.
        weights: of their logits.
        trainings: in their order.
        procedures: the options in use that make more of a comparison than three networks.
        groups, group_size: of confusable classes, each with a specialist.
        outputs: where dated folders are, and finished teachers.
        eval_batch_size: images per forward pass when a teacher is measured.
        cache_limit: bytes that kept answers of teachers may take; 0: nothing is kept.
        kept: what is kept of an answer.
    """

    recorded: Config
    stage: Stage | None
    control: str
    seed: int
    device: torch.device
    devices: int
    recipes: Mapping[Stage, Recipe]
    dataset: Mapping[str, Any]
    loss: Mapping[str, Any]
    logger: Mapping[str, Any]
    teacher: Mapping[str, Any]
    student: Mapping[str, Any]
    kind: str
    given: Sequence[Known]
    probe: bool
    view: Mapping[str, Any]
    members: int
    weights: Weights
    trainings: Sequence[Training]
    procedures: Sequence[str]
    groups: int
    group_size: int
    outputs: Path
    eval_batch_size: int
    cache_limit: int
    kept: Kept


def make_setup(config: Config, stage: Stage | None) -> Setup:
    """Checks the options of all components, before any data are read.

    Args:
        stage: of the only training; None: of a comparison.

    Raises:
        ConfigError: unknown component or option, wrong type or range, a device that is not there, or a procedure that
            does not fit the loss.
    """
    config, control = _controlled(config, stage)
    check_dataset(config["dataset"])
    teacher, student = model_options(config, "teacher"), model_options(config, "student")
    for where, options in (("teacher", teacher), ("student", student)):
        check_model(options, where=where)
    for number, options in enumerate(config["assistants"]):
        check_model(options, where=f"assistants[{number}]")
    check_logger(config["logger"])
    method, mix = build_loss(config["loss"])
    kind = method.teacher if mix.weight else "none"
    check_procedure(config, teacher=kind)
    given = _given(config, teacher)
    return Setup(
        recorded=config,
        stage=stage,
        control=control,
        seed=config["seed"],
        device=pick_device(config["device"]),
        devices=_devices(config),
        recipes=stage_recipes(config),
        dataset=config["dataset"],
        loss=config["loss"],
        logger=config["logger"],
        teacher=teacher,
        student=student,
        kind=kind,
        given=given,
        probe=_probes(config, stage, given, kind),
        view=typed_view(config, "teacher"),
        members=members(config, given),
        weights=config["ensemble"]["weights"],
        trainings=[single(config, stage)] if stage else plan(config, teacher=kind, given=bool(given)),
        procedures=procedures(config),
        groups=config["specialists"]["groups"],
        group_size=config["specialists"]["classes"],
        outputs=Path(config["outputs"]),
        eval_batch_size=config["trainer"]["eval_batch_size"],
        cache_limit=int(config["teacher_cache_gb"] * 1e9) if config["teacher_cache"] and not is_untouched() else 0,
        kept=Kept(config["teacher_cache_top_k"], config["teacher_cache_dtype"]),
    )


def _controlled(config: Config, stage: Stage | None) -> tuple[Config, str]:
    """What a comparison's control makes of the configuration, and its name."""
    control = "none" if stage else config.get("control", "none")
    if control == "none":
        return config, control
    from kd_cli.config.controls import controlled

    return controlled(config), control


def _devices(config: Config) -> int:
    if (others := ranks()) is not None or config["devices"] == 1:
        return 1 if others is None else others.world
    from kd_cli.config.devices import count_devices

    return count_devices(config)


def _given(config: Config, teacher: Mapping[str, Any]) -> list[Known]:
    """The finished teachers that the configuration names: by their paths, or one that its options make ready."""
    paths, view = given_paths(config), typed_view(config, "teacher")
    ready = config["teacher"]["ready"] or getattr(MODELS.component(str(teacher["name"])), "ready", False)
    if not ready:
        return [Known(path, teacher if len(paths) == 1 else None, view) for path in paths]
    if config["teacher"]["probe"]:
        raise ConfigError("teacher.probe: a teacher that is ready has its classifier; type teacher.probe=false")
    if paths or config["ensemble"]["size"] > 1 or config["specialists"]["groups"]:
        other = "teacher.checkpoint" if paths else "ensemble.size and specialists.groups"
        raise ConfigError(f"teacher.ready: the teacher is the network as it stands, and {other} name others; give one")
    return [Known(None, teacher, view)]


def _probes(config: Config, stage: Stage | None, given: Sequence[Known], kind: str) -> bool:
    """Whether a teacher is trained, and is to have a linear probe for its classifier."""
    if not config["teacher"]["probe"] or not (stage == "teacher" or (stage is None and kind == "frozen" and not given)):
        return False
    for key, least in (("ensemble.size", 1), ("specialists.groups", 0)):
        group, _, name = key.partition(".")
        if config[group][name] > least:
            raise ConfigError(
                f"teacher.probe: of one encoder there is one probe, and {key}={config[group][name]} wants several "
                f"teachers; type {offer(key, least)}, or teacher.probe=false"
            )
    return True
