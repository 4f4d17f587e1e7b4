"""Ranges of options: declared in a parameter's annotation, and checked wherever its function is called."""

from __future__ import annotations

import functools
import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Rule:
    """What a value must be: `Annotated[int, Rule("1 or 2", lambda value: value in (1, 2))]`.

    Args:
        words: after "it must be".
        fits: whether a value is so.
    """

    words: str
    fits: Callable[[Any], bool]

    def __call__(self, name: str, value: Any) -> None:
        """Raises ValueError with `name` and the words, unless the value fits."""
        if not self.fits(value):
            raise ValueError(f"{name}: {value} is not possible; it must be {self.words}")


def within(*, low: float = -math.inf, above: float = -math.inf, high: float = math.inf) -> Rule:
    """Finite, ≥ `low`, > `above` and ≤ `high`."""
    words = f"> {above:g}" if above > -math.inf else f"≥ {low:g}"
    words += f" and ≤ {high:g}" if high < math.inf else ""
    return Rule(words, lambda value: math.isfinite(value) and low <= value <= high and value > above)


def require(name: str, value: float, **limits: float) -> float:
    """`value`, if it is `within` those limits, for what no annotation can say; otherwise a ValueError."""
    within(**limits)(name, value)
    return value


def check_widths(name: str, widths: Sequence[Any]) -> None:
    """Raises ValueError for layers without units; `widths` are of each layer, or of the layers of each block."""
    least = min((width for each in widths for width in (each if isinstance(each, Sequence) else [each])), default=1)
    if least < 1:
        raise ValueError(f"{name}: a layer needs at least 1 unit, not {least}")


Positive = Annotated[float, within(above=0.0)]
NonNegative = Annotated[float, within(low=0.0)]
Share = Annotated[float, within(low=0.0, high=1.0)]
Fraction = Annotated[float, Rule("in [0, 1)", lambda value: 0 <= value < 1)]
Inside = Annotated[float, Rule("in (0, 1)", lambda value: 0 < value < 1)]
Count = Annotated[int, within(low=1)]
Widths = Annotated[Sequence[int], check_widths]


def checked(component: F) -> F:
    """The same function, or class, that refuses arguments outside the ranges of its annotations."""
    if inspect.isclass(component):
        if inspect.isfunction(component.__init__):
            component.__init__ = checked(component.__init__)  # type: ignore[method-assign]
        return cast(F, component)
    names = list(inspect.signature(component).parameters)

    @functools.wraps(component)
    def call(*args: Any, **kwargs: Any) -> Any:
        check_ranges(component, {**dict(zip(names, args, strict=False)), **kwargs})
        return component(*args, **kwargs)

    return cast(F, call)


def check_ranges(component: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Checks arguments against the annotations of a function or class; None is not checked.

    Raises:
        ValueError: one is outside its range; the message begins with its name.
    """
    ruled = _ruled(component.__init__ if inspect.isclass(component) else component)
    for name in (name for name in ruled if name in arguments):
        _check(name, arguments[name], ruled[name])


@functools.cache
def _ruled(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations that hold a rule."""
    return {name: hint for name, hint in get_type_hints(function, include_extras=True).items() if _has_rule(hint)}


def _has_rule(hint: Any) -> bool:
    return get_origin(hint) is Annotated or any(map(_has_rule, get_args(hint)))


def _check(name: str, value: Any, hint: Any) -> None:
    origin, inner = get_origin(hint), get_args(hint)
    if value is None:
        return
    if origin is Annotated:
        for rule in filter(callable, hint.__metadata__):
            rule(name, value)
        _check(name, value, inner[0])
    elif origin in (Union, types.UnionType):
        for choice in inner:
            _check(name, value, choice)
    elif origin in (list, Sequence):
        for item in value:
            _check(f"{name}: {list(value)}", item, inner[0])
