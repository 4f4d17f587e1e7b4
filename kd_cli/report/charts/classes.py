"""Class by class: where distillation changed the student."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kd_cli.report.charts.chart import Chart, named_rows, rounded
from kd_cli.report.charts.groups import named, tip, validation
from kd_cli.report.charts.theme import MUTED

_GROUPS = 2
_CLASSES = 30  # of more, those that changed most


def class_charts(results: Mapping[str, Any]) -> list[Chart]:
    """The gain of each class, for the best groups by validation accuracy."""
    groups = [(name, group) for name, group in named(results["groups"]) if group["per_class_gain"]]
    groups = sorted(groups, key=lambda pair: -validation(pair[1]))[:_GROUPS]
    alone = len(groups) == 1
    return [_gains(index + 1, "" if alone else f" · {name}", group) for index, (name, group) in enumerate(groups)]


def _gains(number: int, name: str, group: Mapping[str, Any]) -> Chart:
    import altair as alt

    known = [row for row in group["per_class_gain"] if row["gain"] is not None]
    chosen = sorted(known, key=lambda row: -abs(row["gain"]))[:_CLASSES]
    chosen = (
        [row for row in known if row in chosen]
        if len(known) <= _CLASSES
        else sorted(chosen, key=lambda row: -row["gain"])
    )
    rows = rounded({"position": index, **row, "class": str(row["class"])} for index, row in enumerate(chosen))
    listed = [row["class"] if len(row["class"]) <= 24 else row["class"][:23] + "…" for row in rows]

    label = f"{json.dumps(listed)}[datum.value]"
    base = alt.Chart(named_rows()).encode(
        y=alt.Y("position:O", title=None, axis=alt.Axis(labelExpr=label, labelLimit=150))
    )
    colour = alt.condition("datum.gain >= 0", alt.value("var(--gain)"), alt.value("var(--loss)"))
    tips = [tip(f"{key}:{kind}", title, number) for key, kind, title, number in _TIPS]
    x = alt.X("gain:Q", title="gain over the baseline, points", axis=alt.Axis(tickCount=8))
    bars = base.mark_bar().encode(x=x, color=colour, tooltip=tips)
    zero = alt.Chart(named_rows()).mark_rule(color=MUTED).encode(x=alt.datum(0))
    return Chart(
        id=f"classes-{number}",
        section="classes",
        title=f"Gain of each class{name}",
        alt=_words(rows),
        headings={"class": "Class", "baseline": "Baseline, %", "distilled": "Distilled, %", "gain": "Gain, points"},
        rows=rows,
        drawing=alt.layer(bars, zero).properties(width=480, height=18 * len(rows) + 12),
        note="" if len(known) <= _CLASSES else f"The {_CLASSES} of {len(known)} classes that changed most.",
    )


_TIPS = (
    ("class", "N", "class", None),
    ("baseline", "Q", "baseline, %", ".2f"),
    ("distilled", "Q", "distilled, %", ".2f"),
    ("gain", "Q", "gain, points", "+.2f"),
)


def _words(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "No class is known."
    best, worst = (choose(rows, key=lambda row: row["gain"]) for choose in (max, min))
    better = sum(row["gain"] > 0 for row in rows)
    return (
        f"Bars. {better} of {len(rows)} classes gained. Most: {best['class']}, {best['gain']:+.2f} points; "
        f"least: {worst['class']}, {worst['gain']:+.2f} points."
    )
