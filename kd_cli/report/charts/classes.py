"""Class by class, and in agreement with the teacher: where distillation changed the student."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kd_cli.report.charts.chart import Chart, named_rows, rounded
from kd_cli.report.charts.groups import left_out, named, row_axis, stage_colour, stage_shape, tip
from kd_cli.report.charts.theme import MUTED

_GROUPS = 2
_CLASSES = 30  # of more, those that changed most


def class_charts(results: Mapping[str, Any]) -> list[Chart]:
    """The gain of each class, for the best groups by validation accuracy."""
    groups = [(name, group) for name, group in named(results["groups"]) if group["per_class_gain"]]
    groups = sorted(groups, key=lambda pair: -_validation(pair[1]))[:_GROUPS]
    alone = len(groups) == 1
    return [_gains(index + 1, "" if alone else f" · {name}", group) for index, (name, group) in enumerate(groups)]


def agreement_chart(results: Mapping[str, Any]) -> Chart | None:
    """How many test images the student answers as its teacher does, right or wrong."""
    groups = [group for group in results["groups"] if any((group["agreement"] or {}).values())]
    rows = rounded(
        {"group": name, "network": network, "agreement": group["agreement"][network]}
        for name, group in named(groups)
        for network in ("baseline", "distilled")
        if group["agreement"].get(network) is not None
    )
    if not rows:
        return None
    ends = (("Lowest", min(rows, key=_agreement)), ("Highest", max(rows, key=_agreement)))
    said = [f"{which}: {row['network']} {row['group']}, {_agreement(row):.2f} %." for which, row in ends]
    return Chart(
        id="agreement",
        section="agreement",
        title="Agreement with the teacher",
        alt=f"Dots. {' '.join(said)}",
        headings={"group": "Group", "network": "Network", "agreement": "Same answer as the teacher, %"},
        rows=rows,
        drawing=_agreements(rows),
        note=left_out(len(groups)),
    )


def _agreement(row: Mapping[str, Any]) -> float:
    share: float = row["agreement"]
    return share


def _agreements(rows: Sequence[Mapping[str, Any]]) -> Any:
    import altair as alt

    networks = list(dict.fromkeys(row["network"] for row in rows))
    points = alt.Chart(named_rows()).mark_point(filled=True, size=80, opacity=1)
    drawing = points.encode(
        x=alt.X(
            "agreement:Q",
            title="same answer as the teacher, %",
            scale=alt.Scale(zero=False, padding=12),
            axis=alt.Axis(tickCount=8),
        ),
        y=row_axis(rows),
        yOffset=alt.YOffset("network:N", sort=networks, scale=alt.Scale(domain=networks, paddingOuter=0.4)),
        color=stage_colour(networks),
        shape=stage_shape(networks),
        tooltip=[tip("group:N", "group"), tip("network:N", "network"), tip("agreement:Q", "agreement, %", ".2f")],
    )
    return drawing.properties(width=520, height=40 * len({row["group"] for row in rows}) + 20)


def _validation(group: Mapping[str, Any]) -> float:
    scores = group["distilled"] or {}
    return (scores.get("val_top1") or {}).get("mean") or 0.0


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
