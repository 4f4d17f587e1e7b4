"""Accuracy against cost: what a smaller network gives away for what it saves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kd_cli.console import printable
from kd_cli.report.plots.files import colours_of

_SIDE = 210  # of a panel, in the chart's pixels
_GAP = 0.065  # between labels, of a panel's height
_FAR = 10  # times as much: from there on a scale is logarithmic


def cost_chart(rows: Sequence[Mapping[str, Any]]) -> Any:
    """An Altair chart of three panels: test accuracy against parameters, FLOPs and latency.

    Args:
        rows: as `kd profile --json` gives them, each with its test accuracy.
    """
    import altair as alt

    accuracies = [row["test_top1"] for row in rows]
    margin = max(0.5, 0.12 * (max(accuracies) - min(accuracies)))
    limits = [min(accuracies) - margin, min(100.0, max(accuracies)) + margin]
    points = _points(rows, limits)
    panels = [
        _panel(points, "parameters", "parameters", "~s", limits),
        _panel(points, "flops", "FLOPs per image", "~s", limits),
        _panel(points, "latency", "latency of one image, ms", "~g", limits, spread=True),
    ]
    return (
        alt.hconcat(*panels, spacing=24)
        .configure_view(stroke="#cccccc")
        .configure_axis(gridColor="#eeeeee", labelFontSize=11, titleFontSize=12, titleFontWeight="normal")
    )


def spread_out(positions: Sequence[float], gap: float) -> list[float]:
    """Positions at least `gap` apart, in the same order and around the same mean."""
    order = sorted(range(len(positions)), key=positions.__getitem__)
    placed = dict.fromkeys(order, 0.0)
    lowest = float("-inf")
    for index in order:
        lowest = placed[index] = max(positions[index], lowest + gap)
    shift = sum(placed.values()) / len(placed) - sum(positions) / len(positions)
    return [placed[index] - shift for index in range(len(positions))]


def _points(rows: Sequence[Mapping[str, Any]], limits: Sequence[float]) -> list[dict[str, Any]]:
    labels = spread_out([row["test_top1"] for row in rows], _GAP * (limits[1] - limits[0]))
    return [
        {
            "network": printable(row["name"]),
            "accuracy": row["test_top1"],
            "label": label,
            "parameters": row["parameters"],
            "flops": row["flops_per_image"],
            "latency": row["speed"][0]["median_ms"],
            "low": row["speed"][0]["quartiles_ms"][0],
            "high": row["speed"][0]["quartiles_ms"][1],
        }
        for row, label in zip(rows, labels, strict=True)
    ]


def _panel(
    points: Sequence[Mapping[str, Any]],
    cost: str,
    title: str,
    number: str,
    limits: Sequence[float],
    *,
    spread: bool = False,
) -> Any:
    import altair as alt

    names, costs = [point["network"] for point in points], [point[cost] for point in points]
    extent = [*costs, *(point[end] for point in points for end in ("low", "high") if spread)]
    scale, ticks, middle = cost_scale(min(extent), max(extent))
    data = alt.Data(values=[{**point, "side": "right" if point[cost] > middle else "left"} for point in points])
    x = alt.X(f"{cost}:Q", scale=scale, axis=alt.Axis(title=title, format=number, **ticks))
    y = alt.Y(
        "accuracy:Q",
        scale=alt.Scale(domain=limits, nice=False),
        axis=alt.Axis(title="test accuracy, %", labelExpr="datum.value > 100 ? '' : datum.label"),
    )
    colour = alt.Color("network:N", legend=None, scale=alt.Scale(domain=names, range=colours_of(names)))
    shape = alt.Shape("network:N", legend=None, scale=alt.Scale(domain=names))
    base = alt.Chart(data).properties(width=_SIDE, height=_SIDE)
    marks = [base.mark_point(size=90, filled=True, opacity=1).encode(x=x, y=y, color=colour, shape=shape)]
    if spread:
        marks.insert(
            0, base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", scale=scale), x2="high:Q", y=y, color=colour)
        )
    for side, shift in (("left", 9), ("right", -9)):
        text = base.transform_filter(alt.datum.side == side).mark_text(
            align=side, dx=shift, dy=-6, fontSize=12, limit=_SIDE * 0.6
        )
        marks.append(text.encode(x=x, y=alt.Y("label:Q", scale=alt.Scale(domain=limits, nice=False)), text="network:N"))
    return alt.layer(*marks)


def cost_scale(least: float, most: float) -> tuple[Any, dict[str, Any], float]:
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
