"""Ranges of options: checked where a value is used, and read from the source before torch has to be imported."""

from __future__ import annotations

import ast
import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path


def require(name: str, value: float, *, low: float = -math.inf, above: float = -math.inf) -> float:
    """`value`, if it is finite, ≥ `low` and > `above`.

    Raises:
        ValueError: otherwise; the message names `name` and the rule.
    """
    if not (math.isfinite(value) and value >= low and value > above):
        rule = f"> {above:g}" if above > -math.inf else f"≥ {low:g}"
        raise ValueError(f"{name}: {value} is not possible; it must be {rule}")
    return value


def declared_ranges(package: str, component: str, shared: str) -> dict[str, dict[str, float]]:
    """The `require("option", …, low=0.0)` calls of a component, found in the source files of a package.

    Args:
        package: imported without its modules: `kd_cli.losses`.
        component: the name it is registered by.
        shared: a class whose options every component has.

    Returns:
        Option → keyword arguments for `require`.
    """
    spec = importlib.util.find_spec(package)
    folders = (spec.submodule_search_locations or []) if spec else []
    trees = [ast.parse(path.read_text()) for folder in folders for path in sorted(Path(folder).glob("*.py"))]
    classes = [node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    wanted = [node for node in classes if node.name == shared or component in _registered_names(node)]
    return {option: rule for node in wanted for option, rule in _require_calls(node)}


def _registered_names(node: ast.ClassDef) -> list[str]:
    calls = [call for call in node.decorator_list if isinstance(call, ast.Call)]
    return [str(name.value) for call in calls for name in call.args if isinstance(name, ast.Constant)]


def _require_calls(node: ast.ClassDef) -> Iterator[tuple[str, dict[str, float]]]:
    for call in ast.walk(node):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == require.__name__):
            continue
        if isinstance(call.args[0], ast.Constant):
            yield str(call.args[0].value), {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
