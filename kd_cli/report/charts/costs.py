"""Accuracy against cost: what a smaller network gives away for what it saves. `kd profile` measures the speed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from kd_cli.console import printable
from kd_cli.report.charts.chart import Chart, named_rows, rounded
from kd_cli.report.charts.families import Family, families_of
from kd_cli.report.charts.groups import ACCURACY, short, tip
from kd_cli.report.plots.files import colours_of

_GAP = 18  # pixels between names
_LABELLED = 12  # networks whose names are written beside their points
_FAR = 10  # times as much: from there on a scale is logarithmic
_COSTS = {
    "parameters": ("parameters", "~s"),
    "flops_per_image": ("FLOPs per image", "~s"),
    "latency_ms": ("latency of one image, ms", ".3~r"),
}


def cost_charts(results: Mapping[str, Any]) -> list[Chart]:
    """A chart for each cost that at least two networks are known to differ in."""
    families = families_of([run for run in results["runs"] if run["test_top1"] is not None])
    return [chart for cost in _COSTS if (chart := _chart(families, cost))]


def cost_chart(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """Three panels beside each other, with the quartiles of the latency.

    Args:
        rows: as `kd profile --json` gives them, each with its test accuracy.
    """
    import altair as alt

    side = 210
    measured = [{**row, "network": printable(row["name"]), **_latency(row["speed"][0])} for row in rows]
    keys = ("network", *_COSTS, "low", "high")
    points = _with_labels([{"mean": row["test_top1"], **{key: row[key] for key in keys}} for row in measured], side)
    names = [row["network"] for row in points]
    colours = dict(zip(names, colours_of(names), strict=True))
    shape = alt.Shape("network:N", legend=None, scale=alt.Scale(domain=names))
    panels = [
        alt.layer(*_layers(points, cost, cost, colours, shape, side)).properties(width=side, height=side)
        for cost in _COSTS
    ]
    title = "Test accuracy against cost"
    return Chart("costs", "costs", title, title, {}, points, alt.hconcat(*panels, spacing=24))


def _latency(speed: Mapping[str, Any]) -> dict[str, float]:
    low, high = speed["quartiles_ms"]
    return {"latency_ms": speed["median_ms"], "low": low, "high": high}


def _chart(families: Sequence[Family], cost: str) -> Chart | None:
    import altair as alt

    points = [row for family in families if (row := _row(family, cost))]
    title, _ = _COSTS[cost]
    if len({row["cost"] for row in points}) < 2:
        return None
    rows = _with_labels(points, 300)
    colours = {family.name: family.colour for family in families}
    shape = alt.Shape("stage:N", title=None, sort=list(dict.fromkeys(row["stage"] for row in rows)))
    return Chart(
        id=f"cost-{cost.replace('_', '-')}",
        section="costs",
        title=f"Test accuracy against {title}",
        alt=f"Points. {_words(points, title)}",
        headings={"network": "Network", "cost": title, "mean": "Test accuracy, mean, %", "n": "Runs"},
        rows=rows,
        drawing=alt.layer(*_layers(rows, cost, "cost", colours, shape, 440)).properties(width=440, height=300),
        wide=False,
    )


def _layers(
    rows: Sequence[Mapping[str, Any]], cost: str, field: str, colours: Mapping[str, str], shape: Any, width: int
) -> list[Any]:
    """Points with their names; the cost stands in a field of its rows, its quartiles in `low` and `high`."""
    import altair as alt

    title, number = _COSTS[cost]
    spread = ["low:Q", "high:Q"] if field == "latency_ms" else []
    costs = [row[key] for row in rows for key in (field, *(end[:-2] for end in spread))]
    scale, ticks, middle = _scale(min(costs), max(costs))
    names = [row["network"] for row in rows]
    colour = alt.Color("network:N", legend=None, scale=alt.Scale(domain=names, range=[colours[name] for name in names]))
    y = alt.Y("mean:Q", title=ACCURACY, scale=alt.Scale(zero=False, padding=16))
    axis = {"title": title, "scale": scale, "axis": alt.Axis(format=number, **ticks)}
    base = alt.Chart(named_rows()).encode(x=alt.X(f"{field}:Q", **axis))
    tips = [tip("network:N", "network"), tip(f"{field}:Q", title), tip("mean:Q", "mean, %", ".2f"), tip("n:Q", "runs")]
    layers = [base.mark_point(filled=True, size=90, opacity=1).encode(y=y, color=colour, shape=shape, tooltip=tips)]
    if spread:
        layers.insert(0, base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", **axis), x2="high:Q", y=y, color=colour))
    for side, shift, test in (("left", 9, "<="), ("right", -9, ">")) if len(rows) <= _LABELLED else ():
        text = base.transform_filter(f"datum.{field} {test} {middle}")
        text = text.transform_calculate(short=short("datum.network"))
        text = text.mark_text(align=side, dx=shift, dy=-8 if spread else 0, limit=round(0.52 * width))
        layers.append(text.encode(y=alt.Y("label:Q", title=ACCURACY), text="short:N"))
    return layers


def _scale(least: float, most: float) -> tuple[Any, dict[str, Any], float]:
    """From 0, or logarithmic where the costs are far apart; with its ticks, and the middle of the panel."""
    import altair as alt

    if most < _FAR * least:
        return alt.Scale(domain=[0, most * 1.08]), {"tickCount": 4}, most / 2
    room = (most / least) ** 0.08
    low, high = least / room, most * room
    steps = (1,) if high / low > 1000 else (1, 2, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    ticks = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
    return alt.Scale(type="log", domain=[low, high]), {"values": ticks}, math.sqrt(low * high)


def _with_labels(points: Sequence[Mapping[str, Any]], height: int) -> list[dict[str, Any]]:
    """With a place for each name at which no other is."""
    means = [row["mean"] for row in points]
    labels = spread_out(means, _GAP / height * (max(means) - min(means) or 1.0))
    return [{**row, "label": label} for row, label in zip(points, labels, strict=True)]


def spread_out(positions: Sequence[float], gap: float) -> list[float]:
    """Positions at least `gap` apart, in the same order and around the same mean."""
    order = sorted(range(len(positions)), key=positions.__getitem__)
    placed = dict.fromkeys(order, 0.0)
    lowest = float("-inf")
    for index in order:
        lowest = placed[index] = max(positions[index], lowest + gap)
    shift = sum(placed.values()) / len(placed) - sum(positions) / len(positions)
    return [placed[index] - shift for index in range(len(positions))]


def _row(family: Family, cost: str) -> dict[str, Any] | None:
    known = [run["parameters"] if cost == "parameters" else (run["speed"] or {}).get(cost) for run in family.runs]
    costs = [value for value in known if value is not None]
    if not costs:
        return None
    accuracy = fmean([run["test_top1"] for run in family.runs])
    row = {"network": family.name, "stage": family.stage, "cost": fmean(costs), "mean": accuracy, "n": len(family.runs)}
    return rounded([row])[0]


def _words(points: Sequence[Mapping[str, Any]], title: str) -> str:
    ends = [min(points, key=lambda row: row["cost"]), max(points, key=lambda row: row["cost"])]
    return " ".join(
        f"{which} {title}: {row['network']} with {row['cost']:,.6g} and {row['mean']:.2f} %."
        for which, row in zip(("Fewest", "Most"), ends, strict=True)
    )
