"""Ranges of options: checked where a value is used, and read from the source before torch has to be imported."""

from __future__ import annotations

import ast
import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

Check = Callable[[Any], object]


def require(
    name: str, value: float, *, low: float = -math.inf, above: float = -math.inf, high: float = math.inf
) -> float:
    """`value`, if it is finite, ≥ `low`, > `above` and ≤ `high`.

    Raises:
        ValueError: otherwise; the message names `name` and the rule.
    """
    if not (math.isfinite(value) and low <= value <= high and value > above):
        rule = f"> {above:g}" if above > -math.inf else f"≥ {low:g}"
        rule += f" and ≤ {high:g}" if high < math.inf else ""
        raise ValueError(f"{name}: {value} is not possible; it must be {rule}")
    return value


def check_widths(name: str, widths: Sequence[int]) -> None:
    """Refuses layers without units.

    Raises:
        ValueError: a width below 1.
    """
    if any(width < 1 for width in widths):
        raise ValueError(f"{name}: a layer needs at least 1 unit, not {min(widths)}")


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
