"""A composed configuration: checked before torch is imported, then handed on as plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from kd_cli.errors import ConfigError, suggest
from kd_cli.ranges import declared_checks
from kd_cli.recipe import Recipe, make_recipe
from kd_cli.registry import convert

Config = dict[str, Any]
Stage = Literal["teacher", "baseline", "distilled"]

STAGE_TRAINER: dict[Stage, str] = {
    "teacher": "teacher_trainer",
    "baseline": "baseline_trainer",
    "distilled": "distill_trainer",
}


@dataclass(frozen=True)
class Launch:
    """How a job was started.

    Args:
        command: `run`, `train-teacher`, …
        arguments: what the user typed behind the command, complete enough to type it again.
        given: the keys of the overrides among them: `{"trainer.epochs", "loss"}`.
        folder: where the run is to be.
        exact: the user named that folder.
        trial: the address of the trial of a search that this is (see pruning).
    """

    command: str
    arguments: tuple[str, ...]
    given: frozenset[str]
    folder: Path
    exact: bool
    trial: str | None = None


def recipe_key(stage: Stage | None, arguments: Sequence[str]) -> str:
    """The key by which a stage's recipe is best changed: `trainer`, or its own where the user has typed that."""
    where = STAGE_TRAINER[stage] if stage else "trainer"
    typed = [override_key(word) for word in arguments]
    return where if any(key.partition(".")[0] in (where, f"trainer@{where}") for key in typed) else "trainer"


def stage_recipe(config: Config, stage: Stage) -> Recipe:
    """The recipe of one stage: `teacher_trainer` and its like, which say what `trainer` says where nothing else is set.

    Raises:
        ConfigError: an option that does not exist, or a value that is not possible.
    """
    return make_recipe(config[STAGE_TRAINER[stage]], STAGE_TRAINER[stage])


def recipe_differences(config: Config) -> dict[str, list[Any]]:
    """What the baseline's and the distilled student's recipes do not share: such a gain is not distillation's alone."""
    baseline, distilled = (vars(stage_recipe(config, stage)) for stage in ("baseline", "distilled"))
    return {key: [value, distilled[key]] for key, value in baseline.items() if value != distilled[key]}


def winning_overrides(arguments: Sequence[str]) -> list[str]:
    """Overrides that let what is typed of `trainer` win over what a preset sets for one stage.

    `trainer.epochs=1` becomes `teacher_trainer.epochs=${trainer.epochs}` as well, and so for each stage, unless that
    stage's own option is typed too. `trainer=NAME` does this for every option.
    """
    typed = {override_key(word) for word in arguments if "=" in word and not word.startswith("-")}
    keys = [field.name for field in fields(Recipe) if {"trainer", f"trainer.{field.name}"} & typed]
    return [
        f"{where}.{key}=${{trainer.{key}}}"
        for where in STAGE_TRAINER.values()
        for key in keys
        if not {f"{where}.{key}", f"trainer@{where}"} & typed
    ]


def check_config(config: Config, reference: Config) -> None:
    """Checks every key and the type of every value, without torch.

    Args:
        config: as the user composed it.
        reference: the same choices of groups without any other override; its yaml files list every option.
    Raises:
        ConfigError: all that is wrong, one line each.
    """
    problems = _nameless(config) or _problems(config, reference, "")
    if problems:
        raise ConfigError("\n".join(problems))
    _check_ranges(config)
    make_recipe(config["trainer"])
    for stage in STAGE_TRAINER:
        stage_recipe(config, stage)
    if not 0 < config["teacher_cache_gb"] < math.inf:
        raise ConfigError(
            f"teacher_cache_gb: {config['teacher_cache_gb']} is not possible; it must be above 0 "
            "(teacher_cache=false keeps nothing)"
        )
    if config["seed"] < 0:
        raise ConfigError(f"seed: {config['seed']} is not possible; it must be a whole number ≥ 0")


def _nameless(config: Config) -> list[str]:
    """A user's yaml may hold anything: a list, a text, nothing."""
    nodes = {key: config[key] for key in ("dataset", "teacher", "student", "loss", "logger") if key in config}
    return [
        f"{key}: {node!r} does not say which {key} it is; its yaml must be a mapping with a line name: NAME"
        for key, node in nodes.items()
        if not (isinstance(node, Mapping) and node.get("name"))
    ]


def _check_ranges(config: Config) -> None:
    """Says early what the components would say when they are built, which needs torch."""
    packages = {"loss": "losses", "teacher": "models", "student": "models", "dataset": "data"}
    for where, package in packages.items():
        options = config[where]
        checks = declared_checks(f"kd_cli.{package}", str(options["name"]), shared="Mix" if where == "loss" else "")
        for key in (key for key in checks if options.get(key) is not None):
            try:
                checks[key](options[key])
            except ValueError as error:
                raise ConfigError(f"{where}.{error}") from error
            except TypeError:  # a list of words, a word: its component says what it takes
                continue


def _problems(config: Mapping[str, Any], reference: Mapping[str, Any], prefix: str) -> list[str]:
    missing = [key for key in reference if key not in config]
    found = [f"{prefix}{key} is missing; it cannot be removed with ~{prefix}{key}" for key in missing]
    for key, value in config.items():
        full = f"{prefix}{key}"
        if key not in reference:
            owner = (
                f"{prefix[:-1]} {reference['name']!r}" if "name" in reference else prefix[:-1] or "the configuration"
            )
            found.append(f"{full}: {owner} has no option {key!r}{suggest(str(key), reference)}")
        elif isinstance(reference[key], Mapping) and isinstance(value, Mapping):
            found += _problems(value, reference[key], f"{full}.") if reference[key] else []
        else:
            found += _type_problem(value, reference[key], full, strict=not prefix)
    return found


def _type_problem(value: Any, example: Any, key: str, *, strict: bool) -> list[str]:
    """A value must be of the kind that the yaml shows; where the yaml shows null or a word, its component decides.

    Args:
        strict: no component looks at it later.
    """
    if not strict and (example is None or value is None):
        return []
    kinds: dict[type, Any] = {bool: bool, int: int, float: float, str: str, list: list[Any], dict: Mapping[str, Any]}
    hint = next((hint for kind, hint in kinds.items() if isinstance(example, kind)), Any)
    if not strict and hint is str and isinstance(value, bool | int | float):
        return []  # `in_memory: auto` may become false; the component says what it takes
    try:
        convert(value, hint, key)
    except ConfigError as error:
        return [str(error)]
    return []


def to_yaml(config: Mapping[str, Any]) -> str:
    """A configuration as yaml, in the order of its keys."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(dict(config)))


def override_key(override: str) -> str:
    """The key of an override: `+loss.temperature=4` → `loss.temperature`."""
    return override.lstrip("+~").partition("=")[0]


def hydra_quote(text: str) -> str:
    """A value that Hydra's grammar takes as it stands, whatever is in it; a shell's single quotes fit around it."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
