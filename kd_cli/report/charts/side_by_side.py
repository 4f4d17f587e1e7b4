"""Groups side by side: their accuracies, their gains, and what the networks are worth on other data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kd_cli.report.charts.chart import Chart, named_rows, rounded
from kd_cli.report.charts.groups import (
    ACCURACY,
    SCORE_HEADINGS,
    STAGES,
    left_out,
    named,
    row_axis,
    spread,
    stage_colour,
    stage_shape,
    tip,
    tips,
    top1,
    words,
)
from kd_cli.report.charts.theme import INK, MUTED, STAGE_COLOURS
from kd_cli.report.tables import METRIC_NAMES


def dots(groups: Sequence[Mapping[str, Any]]) -> Chart:
    """Test accuracy, a row of dots with error bars for each group."""
    rows = rounded(
        {"group": name, "network": stage, **spread(score)}
        for name, group in named(groups)
        for stage in STAGES
        if (score := top1(group, stage))
    )
    return Chart(
        id="axis",
        section="sweep",
        title="Test accuracy side by side (mean ± std over the seeds)",
        alt=f"Dots with error bars. {words(rows, 'group', 'group')}",
        headings={"group": "Group", **SCORE_HEADINGS},
        rows=rows,
        drawing=_dots(rows, ACCURACY),
        note=left_out(len(groups)),
    )


def transfer_chart(results: Mapping[str, Any]) -> Chart | None:
    """What the networks are worth on other data; None where that was not tried."""
    found = results.get("transfer")
    if not found or not found["roles"]:
        return None
    rows = rounded(
        {"group": name, "network": stage, **spread({**score, "n": role["seeds"]})}
        for key, name in METRIC_NAMES.items()
        for stage, role in found["roles"].items()
        if stage in STAGES and (score := role.get(key))
    )
    return Chart(
        id="transfer",
        section="transfer",
        title=f"Accuracy on {found['dataset']} (mean ± std over the seeds)",
        alt=f"Dots with error bars. {words(rows, 'group', 'group')}",
        headings={"group": "How", **SCORE_HEADINGS},
        rows=rows,
        drawing=_dots(rows, f"accuracy on {found['dataset']}, %"),
    )


def _dots(rows: Sequence[Mapping[str, Any]], title: str) -> Any:
    import altair as alt

    stages = [stage for stage in STAGES if any(row["network"] == stage for row in rows)]
    y = row_axis(rows)
    offset = alt.YOffset("network:N", sort=stages, scale=alt.Scale(domain=stages, paddingOuter=0.4))
    x = alt.X("mean:Q", title=title, scale=alt.Scale(zero=False, padding=10), axis=alt.Axis(tickCount=8))
    base = alt.Chart(named_rows()).encode(y=y, yOffset=offset, color=stage_colour(stages), tooltip=tips("group"))
    errors = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2).encode(x="low:Q", x2="high:Q")
    points = base.mark_point(size=70, filled=True, opacity=1).encode(x=x, shape=stage_shape(stages))
    height = (16 * len(stages) + 12) * len({row["group"] for row in rows}) + 12
    return alt.layer(errors, points).properties(width=520, height=height)


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
