"""Results as they may be shown: names in data, folders and errors may hold anything."""

from __future__ import annotations

import math
from typing import Any

from kd_cli.console import printable


def readable(value: Any) -> Any:
    """The same structure without control characters in any text, and null for what is not a finite number."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(str(key)): readable(item) for key, item in value.items()}
    if isinstance(value, list) and all(type(item) is int for item in value):
        return value  # a row of a matrix: there may be a million
    if isinstance(value, list | tuple):
        return [readable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
