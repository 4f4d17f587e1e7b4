"""What a sweep shows: accuracy along its axis, over its two axes, or side by side; gains; accuracy on other data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kd_cli.report.charts.chart import Chart, named_rows, rounded
from kd_cli.report.charts.families import value_text
from kd_cli.report.charts.groups import (
    ACCURACY,
    SCORE_HEADINGS,
    left_out,
    named,
    row_axis,
    spread,
    stage_colour,
    stage_shape,
    stages_of,
    tip,
    tips,
    top1,
    words,
)
from kd_cli.report.charts.theme import INK, MUTED, STAGE_COLOURS, STAGE_DASHES, WRITTEN_ON
from kd_cli.report.tables import METRIC_NAMES, STAGES

_FAR = 10  # times as much: from there on an axis is logarithmic


def axis_chart(results: Mapping[str, Any]) -> Chart | None:
    """Test accuracy of the groups, mean and standard deviation over the seeds; None without groups.

    One numeric axis: lines with error bars, what does not change along it as a band. Two axes: a heat map. Otherwise
    dots with error bars, a row for each group.
    """
    groups = [group for group in results["groups"] if any(top1(group, stage) for stage in STAGES)]
    if not groups:
        return None
    axes = results["axes"]
    if len(axes) == 1 and len(groups) > 1 and _numeric(groups, axes[0]):
        return _lines(groups, axes[0])
    if len(axes) == 2 and len(groups) > 2 and _main(groups) and _distinct(groups, axes):
        return _heat_map(groups, axes)
    return _dots_of_groups(groups)


def _lines(groups: Sequence[Mapping[str, Any]], axis: str) -> Chart:
    import altair as alt

    rows = _axis_rows(groups, axis)
    values = sorted({row["x"] for row in rows if row["x"] is not None})
    stages = stages_of(rows)
    x = alt.X("x:Q", title=axis, scale=_scale(values), axis=alt.Axis(values=values, format=".6~g", labelOverlap=True))
    y = alt.Y("mean:Q", title=ACCURACY, scale=alt.Scale(zero=False, padding=8))
    base = alt.Chart(named_rows()).encode(color=stage_colour(stages), tooltip=tips(axis))
    line = base.transform_filter("datum.role == 'point' && isValid(datum.mean)")
    dashes = alt.Scale(domain=stages, range=[STAGE_DASHES.get(stage, [1, 0]) for stage in stages])
    dash = alt.StrokeDash("network:N", scale=dashes, title=None)
    flat = base.transform_filter("datum.role == 'reference'")
    layers = [
        flat.transform_filter("isValid(datum.low)").mark_rect(opacity=0.15).encode(y="low:Q", y2="high:Q"),
        flat.mark_rule(strokeWidth=2).encode(y=y, strokeDash=dash),
        line.mark_line(strokeWidth=2).encode(x=x, y=y, strokeDash=dash),
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
    text = base.mark_text(fontSize=12).encode(text=alt.Text("mean:Q", format=".2f"), color=alt.value(INK))
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


def _dots_of_groups(groups: Sequence[Mapping[str, Any]]) -> Chart:
    rows = [
        {"group": name, "network": stage, **spread(score)}
        for name, group in named(groups)
        for stage in STAGES
        if (score := top1(group, stage))
    ]
    return _dots("axis", "sweep", "Test accuracy side by side", "Group", ACCURACY, rows, left_out(len(groups)))


def transfer_chart(results: Mapping[str, Any]) -> Chart | None:
    """What the networks are worth on other data; None where that was not tried."""
    found = results.get("transfer")
    if not found or not found["roles"]:
        return None
    rows = [
        {"group": name, "network": stage, **spread({**score, "n": role["seeds"]})}
        for key, name in METRIC_NAMES.items()
        for stage, role in found["roles"].items()
        if stage in STAGES and (score := role.get(key))
    ]
    accuracy = f"ccuracy on {found['dataset']}"
    return _dots("transfer", "transfer", f"A{accuracy}", "How", f"a{accuracy}, %", rows)


def _dots(
    id_: str, section: str, title: str, heading: str, accuracy: str, rows: Sequence[Mapping[str, Any]], note: str = ""
) -> Chart:
    """A row of dots with error bars for each group."""
    import altair as alt

    rows, stages = rounded(rows), stages_of(rows)
    offset = alt.YOffset("network:N", sort=stages, scale=alt.Scale(domain=stages, paddingOuter=0.4))
    x = alt.X("mean:Q", title=accuracy, scale=alt.Scale(zero=False, padding=10), axis=alt.Axis(tickCount=8))
    base = alt.Chart(named_rows()).encode(
        y=row_axis(rows), yOffset=offset, color=stage_colour(stages), tooltip=tips("group")
    )
    errors = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2).encode(x="low:Q", x2="high:Q")
    points = base.mark_point(size=70, filled=True, opacity=1).encode(x=x, shape=stage_shape(stages))
    height = (16 * len(stages) + 12) * len({row["group"] for row in rows}) + 12
    return Chart(
        id=id_,
        section=section,
        title=f"{title} (mean ± std over the seeds)",
        alt=f"Dots with error bars. {words(rows, 'group', 'group')}",
        headings={"group": heading, **SCORE_HEADINGS},
        rows=rows,
        drawing=alt.layer(errors, points).properties(width=520, height=height),
        note=note,
    )


def gain_chart(results: Mapping[str, Any]) -> Chart | None:
    """The paired gain of each group with its 95 % interval."""
    import altair as alt

    groups = [group for group in results["groups"] if group["gain"]]
    if not groups:
        return None
    rows = rounded(
        {"group": name, **{key: group["gain"][key] for key in ("mean", "low", "high", "n")}}
        for name, group in named(groups)
    )
    base = alt.Chart(named_rows())
    y, colour = row_axis(rows), alt.value(STAGE_COLOURS["distilled"])
    shown = [
        tip("group:N", "group"),
        tip("mean:Q", "gain, points", "+.2f"),
        tip("low:Q", "95 % from", "+.2f"),
        tip("high:Q", "to", "+.2f"),
        tip("n:Q", "seeds"),
    ]
    bars = base.mark_bar(size=12).encode(
        x=alt.X("mean:Q", title="gain over the baseline, points", axis=alt.Axis(tickCount=8)), y=y, color=colour
    )
    errors = (
        base.transform_filter("isValid(datum.low)")
        .mark_rule(strokeWidth=2)
        .encode(x="low:Q", x2="high:Q", y=y, color=alt.value(INK))
    )
    zero = base.mark_rule().encode(x=alt.datum(0), color=alt.value(MUTED))
    return Chart(
        id="gains",
        section="sweep",
        title="What distillation gained over the same student without a teacher",
        alt=_gain_words(rows),
        headings={"group": "Group", "mean": "Gain, points", "low": "95 % from", "high": "to", "n": "Seeds"},
        rows=rows,
        drawing=alt.layer(bars.encode(tooltip=shown), errors, zero).properties(width=520, height=26 * len(rows) + 12),
        note=left_out(len(groups)),
    )


def _gain_words(rows: Sequence[Mapping[str, Any]]) -> str:
    best = max(rows, key=lambda row: row["mean"])
    worst = min(rows, key=lambda row: row["mean"])
    if best is worst:
        return f"Bar of the gain: {best['mean']:+.2f} points."
    return (
        f"Bars of the gains of {len(rows)} groups, from {worst['mean']:+.2f} points ({worst['group']}) "
        f"to {best['mean']:+.2f} points ({best['group']})."
    )
