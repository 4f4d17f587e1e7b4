"""What can be known to be wrong with a whole configuration before torch is imported, which takes seconds."""

from __future__ import annotations

import ast
import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from kd_cli.config.base import Config, stage_recipes
from kd_cli.config.plan import check_numbers
from kd_cli.config.recipe import check_possible, make_recipe
from kd_cli.data.common import COMMON, Common
from kd_cli.errors import ConfigError, suggest
from kd_cli.ranges import check_widths, require
from kd_cli.registry import bind_options, convert


def check_early(config: Config) -> None:
    """Finds what the commands would find as well, later.

    Raises:
        ConfigError: options of the data, of a procedure or of a recipe that are not possible here.
    """
    dataset, what = config["dataset"], f"dataset {config['dataset']['name']!r}"
    shared = {key: value for key, value in dataset.items() if key in COMMON}
    try:
        Common(**bind_options(Common, shared, where="dataset", what=what))
    except ValueError as error:
        raise ConfigError(f"{what}: {error}") from error
    check_numbers(config)
    recipes = set(stage_recipes(config).values())
    for recipe in recipes if len(recipes) == 1 else ():  # else it depends on which of them the command trains
        check_possible(recipe, validation=dataset.get("val_fraction") != 0, on_cuda=config["device"] != "cpu")


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
    stage_recipes(config)
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
        elif value != reference[key] or type(value) is not type(reference[key]):
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


Check = Callable[[Any], object]


_CHECKS: dict[str, Callable[..., object]] = {check.__name__: check for check in (require, check_widths)}


def declared_checks(package: str, component: str, shared: str = "") -> dict[str, Check]:
    """The `require("option", option, low=0.0)` calls of a component, found in the source files of a package.

    Args:
        package: imported without its modules: `kd_cli.losses`.
        component: the name it is registered by.
        shared: a class whose options every component has.

    Returns:
        Option → what refuses an impossible value with a ValueError.
    """
    spec = importlib.util.find_spec(package)
    folders = (spec.submodule_search_locations or []) if spec else []
    texts = (path.read_text() for folder in folders for path in sorted(Path(folder).glob("*.py")))
    trees = [ast.parse(text) for text in texts if f'"{component}"' in text or f"class {shared}:" in text]
    nodes = (node for tree in trees for node in _declaring(tree, component, shared))
    return {option: check for node in nodes for option, check in _calls(node)}


def _declaring(tree: ast.Module, component: str, shared: str) -> Iterator[ast.AST]:
    """The component, what its decorators name (`checked_by(_check)`), and the shared class."""
    named = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    for node in named.values():
        calls = [call for call in node.decorator_list if isinstance(call, ast.Call)]
        arguments = [argument for call in calls for argument in call.args]
        if component in [name.value for name in arguments if isinstance(name, ast.Constant)]:
            yield node
            yield from (named[name.id] for name in arguments if isinstance(name, ast.Name) and name.id in named)
        elif node.name == shared:
            yield node


def _calls(node: ast.AST) -> Iterator[tuple[str, Check]]:
    for call in ast.walk(node):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in _CHECKS):
            continue
        option, value = call.args[:2]
        made_here = call.func.id == check_widths.__name__ and not isinstance(value, ast.Name)  # of several options
        if isinstance(option, ast.Constant) and not made_here:
            limits = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
            yield str(option.value), partial(_CHECKS[call.func.id], str(option.value), **limits)
