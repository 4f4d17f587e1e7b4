"""Ranges of options: checked where a value is used, and read from the source before torch has to be imported."""

from __future__ import annotations

import math
from collections.abc import Sequence


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
