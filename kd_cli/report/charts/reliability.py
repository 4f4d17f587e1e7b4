"""Is a network right as often as it is sure? Confidence against accuracy in equal bins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kd_cli.report.charts.chart import Chart, named_rows, rounded
from kd_cli.report.charts.families import Family, families_of
from kd_cli.report.charts.theme import MUTED

_LINES = 40  # families in the chart, shown or not


def reliability_chart(results: Mapping[str, Any]) -> Chart | None:
    """A line for each network, pooled over its seeds; below the diagonal it is too sure of itself."""
    families = families_of([run for run in results["runs"] if run["reliability"]])
    families = sorted(families, key=lambda family: not family.shown)[:_LINES]
    rows = rounded(row for family in families for row in _rows(family))
    if not rows:
        return None
    return Chart(
        id="reliability",
        section="calibration",
        title="Reliability: how often an answer is right, by how sure the network is",
        alt="Lines of accuracy by confidence, beside the diagonal of a calibrated network. " + _words(families, rows),
        headings={
            "group": "Network",
            "low": "Confidence from",
            "high": "to",
            "confidence": "Mean confidence",
            "accuracy": "Accuracy",
            "images": "Images",
        },
        rows=rows,
        drawing=_drawing(families),
        toggles=families,
        wide=False,
    )


def _drawing(families: Sequence[Family]) -> Any:
    import altair as alt

    names = [family.name for family in families]
    hidden = alt.param(name="hidden", value=[family.name for family in families if not family.shown])
    colours = alt.Scale(domain=names, range=[family.colour for family in families])
    dashes = alt.Scale(domain=names, range=[list(family.dash) for family in families])
    unit = alt.Scale(domain=[0, 1])
    base = (
        alt.Chart(named_rows())
        .transform_filter("indexof(hidden, datum.group) < 0")
        .encode(
            x=alt.X("confidence:Q", scale=unit, title="confidence", axis=alt.Axis(format="%")),
            y=alt.Y("accuracy:Q", scale=unit, title="accuracy", axis=alt.Axis(format="%")),
            color=alt.Color("group:N", scale=colours, legend=alt.Legend(title=None, columns=2, symbolLimit=12)),
        )
    )
    ends = alt.Data(values=[{"place": 0}, {"place": 1}])
    diagonal = alt.Chart(ends).mark_line(color=MUTED, strokeWidth=1, strokeDash=[2, 4]).encode(x="place:Q", y="place:Q")
    tips = [
        alt.Tooltip("group:N", title="network"),
        alt.Tooltip("confidence:Q", format=".1%"),
        alt.Tooltip("accuracy:Q", format=".1%"),
        alt.Tooltip("images:Q"),
    ]
    lines = base.mark_line(strokeWidth=2).encode(strokeDash=alt.StrokeDash("group:N", scale=dashes, legend=None))
    points = base.mark_point(filled=True, opacity=1).encode(
        size=alt.Size("images:Q", legend=None, scale=alt.Scale(range=[15, 150])), tooltip=tips
    )
    return alt.layer(diagonal, lines, points).add_params(hidden).properties(width=520, height=380)


def _rows(family: Family) -> list[dict[str, Any]]:
    """Bins that hold images, each the mean over the seeds weighted by their images."""
    pooled: dict[tuple[float, float], list[Mapping[str, Any]]] = {}
    for run in family.runs:
        for part in run["reliability"]:
            if part["images"] and part["accuracy"] is not None and part["confidence"] is not None:
                pooled.setdefault((part["low"], part["high"]), []).append(part)
    rows = []
    for (low, high), parts in sorted(pooled.items()):
        images = sum(part["images"] for part in parts)
        row = {"group": family.name, "low": low, "high": high, "images": images}
        for key in ("confidence", "accuracy"):
            row[key] = sum(part[key] * part["images"] for part in parts) / images
        rows.append(row)
    return rows


def _words(families: Sequence[Family], rows: Sequence[Mapping[str, Any]]) -> str:
    sentences = []
    for family in families:
        own = [row for row in rows if row["group"] == family.name]
        if family.shown and own:
            images = sum(row["images"] for row in own)
            gap = sum(abs(row["accuracy"] - row["confidence"]) * row["images"] for row in own) / images
            sentences.append(f"{family.name}: {100 * gap:.1f} points from the diagonal on average.")
    return " ".join(sentences)
