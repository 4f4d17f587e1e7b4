"""Runs that differ in nothing but the seed, drawn as one line each."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from kd_cli.report.charts.theme import SERIES, STAGE_COLOURS, STAGE_DASHES

_ORDER = ("teacher", "baseline")
_SHOWN = 8  # lines that a reader can tell apart


@dataclass(frozen=True)
class Family:
    """Runs of one stage and one point.

    Args:
        name: `distilled · loss.temperature=2`.
        shown: among the lines that are drawn from the beginning.
    """

    name: str
    stage: str
    runs: Sequence[Mapping[str, Any]]
    colour: str
    shown: bool

    @property
    def dash(self) -> Sequence[int]:
        """Of the line: it tells the stages apart where colours cannot."""
        return STAGE_DASHES.get(self.stage, [1, 0])


def families_of(runs: Sequence[Mapping[str, Any]]) -> list[Family]:
    """Teachers first, then baselines, then the others in their order."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in runs:
        found.setdefault((run["stage"] or "run", settings_text(run["settings"])), []).append(run)
    keys = sorted(found, key=lambda key: _ORDER.index(key[0]) if key[0] in _ORDER else len(_ORDER))
    shown = _shown(keys, found)
    colours = _colours(keys, shown)
    return [Family(" · ".join(filter(None, key)), key[0], found[key], colours[key], key in shown) for key in keys]


def settings_text(settings: Mapping[str, Any]) -> str:
    """`loss.temperature=2 student=cnn`: what a point is called."""
    return " ".join(f"{key}={value_text(value)}" for key, value in settings.items() if value is not None)


def value_text(value: Any) -> str:
    """A setting as it is typed."""
    return value if isinstance(value, str) else json.dumps(value)


def _colours(keys: Sequence[tuple[str, str]], shown: Container[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Those that are shown choose first, so that no two of them are alike."""
    stages = [stage for stage, _ in keys]
    others = iter(SERIES * (1 + len(keys)))
    return {
        key: STAGE_COLOURS[key[0]] if stages.count(key[0]) == 1 and key[0] in STAGE_COLOURS else next(others)
        for key in sorted(keys, key=lambda key: key not in shown)
    }


def _shown(keys: Sequence[tuple[str, str]], found: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> set[Any]:
    """One teacher, one baseline, and the best of the others by validation accuracy."""
    if len(keys) <= _SHOWN:
        return set(keys)
    references = [next((key for key in keys if key[0] == stage), None) for stage in _ORDER]
    first = [key for key in references if key is not None]

    def quality(key: tuple[str, str]) -> float:
        known = [run["val_top1"] for run in found[key] if run["val_top1"] is not None]
        return -fmean(known) if known else 0.0

    rest = sorted((key for key in keys if key not in first and key[0] not in _ORDER), key=quality)
    rest += [key for key in keys if key not in first and key[0] in _ORDER]
    return set([*first, *rest][:_SHOWN])
