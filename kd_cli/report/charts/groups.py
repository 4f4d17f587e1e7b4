"""What charts of groups share: their rows, colours, tooltips and words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kd_cli.report.charts.theme import STAGE_COLOURS
from kd_cli.report.tables import STAGES

ACCURACY = "test accuracy, %"
SCORE_HEADINGS = {"network": "Network", "mean": "Mean, %", "std": "Std", "n": "Seeds"}
_SIDE_BY_SIDE = 40  # groups in one drawing


def row_axis(rows: Sequence[Mapping[str, Any]]) -> Any:
    """A row for each group, in their order."""
    import altair as alt

    order = list(dict.fromkeys(row["group"] for row in rows))
    return alt.Y("group:N", sort=order, title=None, axis=alt.Axis(labelLimit=260, labelExpr=short("datum.label")))


def short(text: str) -> str:
    """Vega's expression for a name without the groups of its keys, so that what differs is not cut off.

    `loss.kl_weight=0.1 loss.temperature=4` → `kl_weight=0.1 temperature=4`.
    """
    return f"replace({text}, regexp('(^| )[^ =]*\\\\.(?=[^ =.]*=)', 'g'), '$1')"


def named(groups: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """As many groups as one drawing holds, each with a name of its own."""
    named: dict[str, Mapping[str, Any]] = {}
    for index, group in enumerate(groups[:_SIDE_BY_SIDE]):
        name = group["name"] or "all runs"
        named[name if name not in named else f"{name} ({index + 1})"] = group
    return list(named.items())


def top1(group: Mapping[str, Any], stage: str) -> Mapping[str, Any] | None:
    """A network's test accuracy over the seeds of a group."""
    scores = group[stage]
    score = scores["test_top1"] if scores else None
    return score if score and score["mean"] is not None else None


def spread(score: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of a score: one standard deviation to each side of the mean."""
    center, std = score["mean"], score["std"]
    ends = (None, None) if std is None else (center - std, center + std)
    return {"mean": center, "std": std, "n": score["n"], "low": ends[0], "high": ends[1]}


def stages_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The networks of the rows, in the usual order."""
    return [stage for stage in STAGES if any(row["network"] == stage for row in rows)]


def validation(group: Mapping[str, Any]) -> float:
    """What groups are chosen by: the test part chooses nothing."""
    return ((group["distilled"] or {}).get("val_top1") or {}).get("mean") or 0.0


def stage_colour(stages: Sequence[str]) -> Any:
    """Each network in its colour."""
    import altair as alt

    colours = alt.Scale(domain=stages, range=[STAGE_COLOURS[stage] for stage in stages])
    return alt.Color("network:N", scale=colours, legend=alt.Legend(title=None, symbolOpacity=1, symbolStrokeWidth=0))


def stage_shape(stages: Sequence[str]) -> Any:
    """Each network with its shape, for who does not tell the colours apart."""
    import altair as alt

    shapes = {"teacher": "square", "baseline": "diamond", "distilled": "circle"}
    scale = alt.Scale(domain=stages, range=[shapes[stage] for stage in stages])
    return alt.Shape("network:N", scale=scale, title=None)


def tips(axis: str, field: str = "x:Q") -> list[Any]:
    """What is shown under the pointer: the place, the network and its numbers."""
    first = tip("group:N", "group") if axis == "group" else tip(field, axis)
    numbers = [tip("mean:Q", "mean, %", ".2f"), tip("std:Q", "std", ".2f"), tip("n:Q", "seeds")]
    return [first, tip("network:N", "network"), *numbers]


def tip(field: str, title: str, number: str | None = None) -> Any:
    """One line under the pointer."""
    import altair as alt

    return alt.Tooltip(field, title=title, format=number) if number else alt.Tooltip(field, title=title)


def words(rows: Sequence[Mapping[str, Any]], axis: str, key: str = "x") -> str:
    """What the drawing shows, in words: each network's range."""
    sentences = []
    for stage in dict.fromkeys(row["network"] for row in rows):
        own = sorted((row for row in rows if row["network"] == stage), key=lambda row: row["mean"])
        low, high = own[0], own[-1]
        if len(own) == 1:
            sentences.append(f"The {stage}: {low['mean']:.2f} %.")
        else:
            ends = [f"{row['mean']:.2f} % ({axis} {row[key]})" for row in (low, high)]
            sentences.append(f"The {stage}: from {ends[0]} to {ends[1]}.")
    return " ".join(sentences)


def left_out(groups: int) -> str:
    """A sentence, where there are more groups than one drawing holds."""
    if groups <= _SIDE_BY_SIDE:
        return ""
    return f"The first {_SIDE_BY_SIDE} of {groups} groups; all are in results.csv."
