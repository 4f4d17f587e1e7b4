"""What can be known to be wrong with a whole configuration before torch is imported, which takes seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kd_cli.config.base import OPEN, Config, stage_recipes
from kd_cli.config.plan import check_numbers
from kd_cli.config.recipe import check_possible, make_recipe
from kd_cli.data.common import COMMON, Common
from kd_cli.errors import ConfigError, suggest
from kd_cli.registry import bind_options, convert


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
    make_recipe(config["trainer"])
    _check_cache(config)
    if config["seed"] < 0:
        raise ConfigError(f"seed: {config['seed']} is not possible; it must be a whole number ≥ 0")
    _check_data(config["dataset"])
    check_numbers(config)
    if config.get("control", "none") != "none":
        from kd_cli.config.controls import check_control

        check_control(config)
    _check_recipes(config)


def _check_cache(config: Config) -> None:
    size, top_k, dtype = (config[f"teacher_cache_{key}"] for key in ("gb", "top_k", "dtype"))
    if not 0 < size < math.inf:
        raise ConfigError(
            f"teacher_cache_gb: {size} is not possible; it must be above 0 (teacher_cache=false keeps nothing)"
        )
    if top_k is not None and convert(top_k, int, "teacher_cache_top_k") < 1:
        raise ConfigError(
            f"teacher_cache_top_k: {top_k} is not possible; type a number ≥ 1, or null to keep all logits"
        )
    if dtype not in (None, "float16", "bfloat16"):
        raise ConfigError(f"teacher_cache_dtype: {dtype!r} is not possible; type float16, bfloat16 or null")
    for key, value in (("top_k", top_k), ("dtype", dtype)):
        if value is not None and not config["teacher_cache"]:
            raise ConfigError(
                f"teacher_cache_{key}: {value} says how answers are kept, and teacher_cache=false keeps none; type "
                f"teacher_cache_{key}=null"
            )


def _check_data(dataset: Mapping[str, Any]) -> None:
    what, shared = f"dataset {dataset['name']!r}", {key: value for key, value in dataset.items() if key in COMMON}
    try:
        Common(**bind_options(Common, shared, where="dataset", what=what))
    except ValueError as error:
        raise ConfigError(f"{what}: {error}") from error


def _check_recipes(config: Config) -> None:
    recipes = set(stage_recipes(config).values())
    for recipe in recipes if len(recipes) == 1 else ():  # else it depends on which of them the command trains
        check_possible(recipe, validation=config["dataset"].get("val_fraction") != 0, on_cuda=config["device"] != "cpu")


def _nameless(config: Config) -> list[str]:
    """A user's yaml may hold anything: a list, a text, nothing."""
    nodes = {key: config[key] for key in ("dataset", "teacher", "student", "loss", "logger") if key in config}
    return [
        f"{key}: {node!r} does not say which {key} it is; its yaml must be a mapping with a line name: NAME"
        for key, node in nodes.items()
        if not (isinstance(node, Mapping) and node.get("name"))
    ]


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
            found += _problems(value, reference[key], f"{full}.") if reference[key] and key != OPEN else []
        elif full == "devices":
            found += _devices_problem(value)
        elif value != reference[key] or type(value) is not type(reference[key]):
            found += _type_problem(value, reference[key], full, strict=not prefix)
    return found


def _devices_problem(value: Any) -> list[str]:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return []
    return [f"devices: {value!r} is not possible; type devices=N with a number ≥ 1, or devices=auto"]


def _type_problem(value: Any, example: Any, key: str, *, strict: bool) -> list[str]:
    """A value must be of the kind that the yaml shows; where the yaml shows null or a word, its component decides.

    Args:
        strict: no component looks at it later.
    """
    if not strict and (example is None or value is None):
        return []
    kinds: dict[type, Any] = {bool: bool, int: int, float: float, str: str, list: list[Any], dict: Mapping[str, Any]}
    hint = next((hint for kind, hint in kinds.items() if isinstance(example, kind)), Any)
    if not strict and hint is str:
        return []  # `in_memory: auto` may become false, `augment: none` a list; the component says what it takes
    try:
        convert(value, hint, key)
    except ConfigError as error:
        return [str(error)]
    return []
