"""Accuracy against what a network costs: parameters, and the speed that `kd profile` measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from kd_cli.report.charts.chart import Chart, named_rows, rounded
from kd_cli.report.charts.families import Family, families_of
from kd_cli.report.charts.groups import short, tip
from kd_cli.report.plots.costs import cost_scale, spread_out

_ACCURACY = "test accuracy, %"
_GAP = 0.06  # between names, of the range of accuracies
_LABELLED = 12  # networks whose names are written beside their points
_COSTS = {
    "parameters": ("parameters", "~s"),
    "flops_per_image": ("FLOPs for one image", "~s"),
    "latency_ms": ("latency of one image, ms", ".3~r"),
}


def cost_charts(results: Mapping[str, Any]) -> list[Chart]:
    """A chart for each cost that at least two networks are known to differ in."""
    runs = [run for run in results["runs"] if run["test_top1"] is not None]
    families = families_of(runs)
    return [chart for cost in _COSTS if (chart := _chart(families, cost))]


def _chart(families: Sequence[Family], cost: str) -> Chart | None:
    import altair as alt

    points = [row for family in families if (row := _row(family, cost))]
    title, _ = _COSTS[cost]
    if len({row["cost"] for row in points}) < 2:
        return None
    rows = _with_labels(points)
    return Chart(
        id=f"cost-{cost.replace('_', '-')}",
        section="costs",
        title=f"Test accuracy against {title}",
        alt=f"Points. {_words(points, title)}",
        headings={"network": "Network", "cost": title, "mean": "Test accuracy, mean, %", "n": "Runs"},
        rows=rows,
        drawing=alt.layer(*_layers(rows, families, cost)).properties(width=440, height=300),
        wide=False,
    )


def _layers(rows: Sequence[Mapping[str, Any]], families: Sequence[Family], cost: str) -> list[Any]:
    import altair as alt

    title, number = _COSTS[cost]
    costs = [row["cost"] for row in rows]
    scale, ticks, middle = cost_scale(min(costs), max(costs))
    names = [row["network"] for row in rows]
    colours = {family.name: family.colour for family in families}
    colour = alt.Scale(domain=names, range=[colours[name] for name in names])
    y = alt.Y("mean:Q", title=_ACCURACY, scale=alt.Scale(zero=False, padding=16))
    base = alt.Chart(named_rows()).encode(
        x=alt.X("cost:Q", title=title, scale=scale, axis=alt.Axis(format=number, **ticks))
    )
    points = base.mark_point(filled=True, size=90, opacity=1).encode(
        y=y,
        color=alt.Color("network:N", legend=None, scale=colour),
        shape=alt.Shape("stage:N", title=None, sort=list(dict.fromkeys(row["stage"] for row in rows))),
        tooltip=[
            tip("network:N", "network"),
            tip("cost:Q", title),
            tip("mean:Q", "mean, %", ".2f"),
            tip("n:Q", "runs"),
        ],
    )
    if len(rows) > _LABELLED:
        return [points]
    layers = [points]
    for side, shift, test in (("left", 9, "<="), ("right", -9, ">")):
        text = base.transform_filter(f"datum.cost {test} {middle}").mark_text(align=side, dx=shift, limit=230)
        text = text.transform_calculate(short=short("datum.network"))
        layers.append(text.encode(y=alt.Y("label:Q", title=_ACCURACY), text="short:N"))
    return layers


def _with_labels(points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """With a height for each name at which no other is."""
    means = [row["mean"] for row in points]
    heights = spread_out(means, _GAP * (max(means) - min(means) or 1.0))
    return [{**row, "label": height} for row, height in zip(points, heights, strict=True)]


def _row(family: Family, cost: str) -> dict[str, Any] | None:
    costs = [value for run in family.runs if (value := _cost(run, cost)) is not None]
    if not costs:
        return None
    accuracy = fmean([run["test_top1"] for run in family.runs])
    row = {"network": family.name, "stage": family.stage, "cost": fmean(costs), "mean": accuracy, "n": len(family.runs)}
    return rounded([row])[0]


def _cost(run: Mapping[str, Any], cost: str) -> float | None:
    value: float | None = run["parameters"] if cost == "parameters" else (run["speed"] or {}).get(cost)
    return value


def _words(points: Sequence[Mapping[str, Any]], title: str) -> str:
    ends = [min(points, key=lambda row: row["cost"]), max(points, key=lambda row: row["cost"])]
    return " ".join(
        f"{which} {title}: {row['network']} with {row['cost']:,.6g} and {row['mean']:.2f} %."
        for which, row in zip(("Fewest", "Most"), ends, strict=True)
    )
