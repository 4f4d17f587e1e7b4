"""What a sweep shows: accuracy along its axis, over its two axes, or side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kd_cli.report.charts.chart import Chart, named_rows, rounded
from kd_cli.report.charts.families import value_text
from kd_cli.report.charts.groups import (
    ACCURACY,
    SCORE_HEADINGS,
    STAGES,
    spread,
    stage_colour,
    stage_shape,
    tip,
    tips,
    top1,
    words,
)
from kd_cli.report.charts.side_by_side import dots
from kd_cli.report.charts.theme import INK, STAGE_DASHES, WRITTEN_ON
from kd_cli.report.readable import readable

_FAR = 10  # times as much: from there on an axis is logarithmic


def axis_chart(results: Mapping[str, Any]) -> Chart | None:
    """Test accuracy of the groups, mean and standard deviation over the seeds; None without groups.

    One numeric axis: lines with error bars, what does not change along it as a band. Two axes: a heat map. Otherwise
    dots with error bars, a row for each group.
    """
    results = readable({"groups": results["groups"], "axes": results["axes"]})
    groups = [group for group in results["groups"] if any(top1(group, stage) for stage in STAGES)]
    if not groups:
        return None
    axes = results["axes"]
    if len(axes) == 1 and len(groups) > 1 and _numeric(groups, axes[0]):
        return _lines(groups, axes[0])
    if len(axes) == 2 and len(groups) > 2 and _main(groups) and _distinct(groups, axes):
        return _heat_map(groups, axes)
    return dots(groups)


def _lines(groups: Sequence[Mapping[str, Any]], axis: str) -> Chart:
    import altair as alt

    rows = _axis_rows(groups, axis)
    values = sorted({row["x"] for row in rows if row["x"] is not None})
    stages = [stage for stage in STAGES if any(row["network"] == stage for row in rows)]
    x = alt.X("x:Q", title=axis, scale=_scale(values), axis=alt.Axis(values=values, format=".6~g", labelOverlap=True))
    y = alt.Y("mean:Q", title=ACCURACY, scale=alt.Scale(zero=False, padding=8))
    base = alt.Chart(named_rows()).encode(color=stage_colour(stages), tooltip=tips(axis))
    line = base.transform_filter("datum.role == 'point' && isValid(datum.mean)")
    dashes = alt.Scale(domain=stages, range=[STAGE_DASHES.get(stage, [1, 0]) for stage in stages])
    flat = base.transform_filter("datum.role == 'reference'")
    layers = [
        flat.transform_filter("isValid(datum.low)").mark_rect(opacity=0.15).encode(y="low:Q", y2="high:Q"),
        flat.mark_rule(strokeWidth=2).encode(y=y, strokeDash=alt.StrokeDash("network:N", scale=dashes, title=None)),
        line.mark_line(strokeWidth=2).encode(
            x=x, y=y, strokeDash=alt.StrokeDash("network:N", scale=dashes, title=None)
        ),
        line.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2).encode(x=x, y="low:Q", y2="high:Q"),
        line.mark_point(size=70, filled=True, opacity=1).encode(x=x, y=y, shape=stage_shape(stages)),
    ]
    return Chart(
        id="axis",
        section="sweep",
        title=f"Test accuracy along {axis} (mean ± std over the seeds)",
        alt=f"Line plot. {words(rows, axis)}",
        headings={"x": axis, **SCORE_HEADINGS},
        rows=rows,
        drawing=alt.layer(*layers).properties(width=560, height=320),
    )


def _axis_rows(groups: Sequence[Mapping[str, Any]], axis: str) -> list[dict[str, Any]]:
    """A row for each group and network; only one for a network that is the same in all groups."""
    rows = []
    for stage in STAGES:
        known = [(group["settings"][axis], score) for group in groups if (score := top1(group, stage))]
        same = len({(score["mean"], score["std"], score["n"]) for _, score in known}) == 1 and len(known) > 1
        if same and stage != "distilled":
            rows.append({"role": "reference", "x": None, "network": stage, **spread(known[0][1])})
        else:
            rows += [{"role": "point", "x": x, "network": stage, **spread(score)} for x, score in known]
    return rounded(sorted(rows, key=lambda row: (STAGES.index(row["network"]), row["x"] or 0)))


def _heat_map(groups: Sequence[Mapping[str, Any]], axes: Sequence[str]) -> Chart:
    import altair as alt

    stage = _main(groups)
    rows = rounded(
        {
            "x": value_text(group["settings"][axes[0]]),
            "y": value_text(group["settings"][axes[1]]),
            "network": stage,
            **spread(score),
            "gain": group["gain"]["mean"] if group["gain"] else None,
        }
        for group in groups
        if (score := top1(group, stage))
    )
    means = [row["mean"] for row in rows]
    order = {key: _ordered([group["settings"][axis] for group in groups]) for key, axis in zip("xy", axes, strict=True)}
    x = alt.X("x:O", title=axes[0], sort=order["x"], axis=alt.Axis(labelAngle=0, labelOverlap=True))
    y = alt.Y("y:O", title=axes[1], sort=list(reversed(order["y"])))
    scale = alt.Scale(
        domain=[min(means), max(means)], range=[0.05 if max(means) > min(means) else WRITTEN_ON, WRITTEN_ON]
    )
    base = alt.Chart(named_rows()).encode(x=x, y=y, tooltip=[*tips(axes[0], "x:O"), tip("y:O", axes[1])])
    cells = base.mark_rect(color="var(--heat)").encode(opacity=alt.Opacity("mean:Q", scale=scale, legend=None))
    text = base.mark_text(fontSize=12).encode(
        text=alt.Text("mean:Q", format=".2f"),
        color=alt.value(INK),
    )
    layers = [cells, text] if len(order["x"]) <= 12 else [cells]
    best = max(rows, key=lambda row: row["mean"])
    return Chart(
        id="axis",
        section="sweep",
        title=f"Test accuracy, %, of the {stage} network over {axes[0]} and {axes[1]} (mean over the seeds)",
        alt=f"Heat map of {len(rows)} points. Highest: {best['mean']:.2f} % at {axes[0]}={best['x']}, "
        f"{axes[1]}={best['y']}; lowest: {min(means):.2f} %.",
        headings={"x": axes[0], "y": axes[1], **SCORE_HEADINGS, "gain": "Gain, points"},
        rows=rows,
        drawing=alt.layer(*layers).properties(width=560, height=38 * len(order["y"])),
    )


def _main(groups: Sequence[Mapping[str, Any]]) -> str:
    """The network that a heat map shows: the distilled one where there is one."""
    return next((stage for stage in reversed(STAGES) if any(top1(group, stage) for group in groups)), "")


def _numeric(groups: Sequence[Mapping[str, Any]], axis: str) -> bool:
    values = [group["settings"].get(axis) for group in groups]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _distinct(groups: Sequence[Mapping[str, Any]], axes: Sequence[str]) -> bool:
    """Each cell of the heat map has one group."""
    places = [tuple(value_text(group["settings"].get(axis)) for axis in axes) for group in groups]
    return len(set(places)) == len(places)


def _ordered(values: Sequence[Any]) -> list[str]:
    """Numbers by size, all else as it came."""
    if all(isinstance(value, int | float) for value in values):
        values = sorted(values)
    return list(dict.fromkeys(value_text(value) for value in values))


def _scale(values: Sequence[float]) -> Any:
    import altair as alt

    far = min(values) > 0 and max(values) >= _FAR * min(values)
    return alt.Scale(type="log", nice=False, padding=14) if far else alt.Scale(zero=False, nice=False, padding=14)
