"""Learning curves: what each epoch measured, mean and standard deviation over runs that differ only in the seed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from kd_cli.report.charts.chart import Chart, named_rows, rounded
from kd_cli.report.charts.families import Family, families_of

_METRICS = {
    "val_top1": "validation accuracy, %",
    "val_balanced_accuracy": "balanced accuracy on validation, %",
    "val_macro_f1": "macro F1 on validation, %",
    "val_loss": "validation loss",
    "train_loss": "training loss",
    "train_top1": "training accuracy, %",
    "lr": "learning rate",
}
_EPOCHS = 150  # of a curve; a longer one is thinned out
_RUN_ROWS = 11_000  # of single runs; beyond that only means are shown
_MEAN_ROWS = 4_000
_DOTTED = 30  # epochs whose values are dots on the line


def curves_chart(results: Mapping[str, Any]) -> Chart | None:
    """One drawing of all runs; which measure, which lines and whether single runs is chosen on the page."""
    runs = [run for run in results["runs"] if run["curves"] and run["curves"]["epoch"]]
    values = {key: [value for run in runs for value in run["curves"].get(key) or []] for key in _METRICS}
    metrics = {key: name for key, name in _METRICS.items() if any(value is not None for value in values[key])}
    if not metrics:
        return None
    families = families_of(runs)
    kept, rows = _mean_rows(families, list(metrics))
    single = _single_rows(kept, list(metrics))
    headings = {"group": "Runs", "epoch": "Epoch", "n": "Seeds"}
    spreads = {f"{key}_std": f"± {name}" for key, name in metrics.items()}
    notes = [] if len(kept) == len(families) else [f"{len(kept)} of {len(families)} groups of runs are in this chart."]
    if not single and len(runs) > len(families):
        notes.append("There are too many runs to show each one; results.json beside this page has them all.")
    return Chart(
        id="curves",
        section="curves",
        title="Learning curves: mean and standard deviation over the seeds",
        alt=_words(kept, metrics),
        headings={**headings, **metrics, **spreads},
        rows=rounded([*rows, *single]),
        drawing=_drawing(kept, metrics, bool(single)),
        toggles=kept,
        choices=metrics,
        single=bool(single),
        zoom=True,
        note=" ".join(notes),
    )


def _drawing(families: Sequence[Family], metrics: Mapping[str, str], single: bool) -> Any:
    import altair as alt

    # What the reader chooses, each a signal.
    parameters = [
        alt.param(name="metric", value=next(iter(metrics))),
        alt.param(name="hidden", value=[family.name for family in families if not family.shown]),
        alt.param(name="single", value=False),
    ]
    base = (
        alt.Chart(named_rows())
        .transform_filter("indexof(hidden, datum.group) < 0 && isValid(datum[metric])")
        .transform_calculate(
            value="datum[metric]",
            low="datum[metric] - datum[metric + '_std']",
            high="datum[metric] + datum[metric + '_std']",
        )
        .encode(
            x=alt.X("epoch:Q", title="epoch", axis=_epoch_axis(families), scale=alt.Scale(nice=False)),
            y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
            color=_colour(families),
        )
    )
    layers = _layers(base, families)
    if single:
        each = base.transform_filter("datum.role == 'run' && single").mark_line(strokeWidth=1, opacity=0.5, clip=True)
        layers.insert(1, each.encode(detail="run:N"))
    title = alt.TitleParams(alt.ExprRef(f"({json.dumps(metrics)})[metric]"), fontSize=12)
    return alt.layer(*layers).add_params(*parameters).properties(width=680, height=340, title=title)


def _epoch_axis(families: Sequence[Family]) -> Any:
    """Whole numbers only, however short the training and however close the reader looks."""
    import altair as alt

    last = max((max(_epochs(family), default=1) for family in families), default=1)
    whole = "datum.value % 1 ? '' : datum.label"
    return alt.Axis(tickCount=max(1, min(10, last - 1)), format="d", labelExpr=whole)


def _colour(families: Sequence[Family]) -> Any:
    import altair as alt

    scale = alt.Scale(domain=[family.name for family in families], range=[family.colour for family in families])
    legend = alt.Legend(title=None, columns=2, symbolLimit=12, symbolOpacity=1, symbolType="stroke")
    return alt.Color("group:N", scale=scale, legend=legend)


def _layers(base: Any, families: Sequence[Family]) -> list[Any]:
    """The band of one standard deviation, the mean, and the dots that the pointer finds."""
    import altair as alt

    means = base.transform_filter("datum.role == 'mean'")
    zoom = alt.selection_interval(name="zoom", bind="scales", zoom="wheel![event.ctrlKey || event.metaKey]")
    dashes = alt.Scale(domain=[family.name for family in families], range=[list(family.dash) for family in families])
    few = max(len(_epochs(family)) for family in families) <= _DOTTED  # else the dots are there for the pointer alone
    tips = [alt.Tooltip("group:N"), alt.Tooltip("epoch:Q"), alt.Tooltip("value:Q", format=".4~f"), alt.Tooltip("n:Q")]
    low = alt.Y("low:Q", title=None, scale=alt.Scale(zero=False))
    return [
        means.transform_filter("isValid(datum[metric + '_std'])")
        .mark_area(opacity=0.15, clip=True)
        .encode(y=low, y2="high:Q"),
        means.mark_line(strokeWidth=2, clip=True)
        .encode(strokeDash=alt.StrokeDash("group:N", scale=dashes, legend=None))
        .add_params(zoom),
        means.mark_point(filled=True, size=28, opacity=1 if few else 0, clip=True).encode(tooltip=tips),
    ]


def _mean_rows(families: Sequence[Family], metrics: Sequence[str]) -> tuple[list[Family], list[dict[str, Any]]]:
    """As many families as there is room for, those that are shown first, and their rows."""
    kept: list[Family] = []
    rows: list[dict[str, Any]] = []
    for family in sorted(families, key=lambda family: not family.shown):
        own = [_mean_row(family, epoch, metrics) for epoch in _epochs(family)]
        if len(rows) + len(own) > _MEAN_ROWS and kept:
            break
        kept.append(family)
        rows += own
    return [family for family in families if family in kept], rows


def _mean_row(family: Family, epoch: int, metrics: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = {"role": "mean", "group": family.name, "run": "", "epoch": epoch, "n": 0}
    for metric in metrics:
        values = [value for run in family.runs if (value := _at(run, metric, epoch)) is not None]
        row["n"] = max(row["n"], len(values))
        center = fmean(values) if values else 0.0
        row[metric] = center if values else None
        # statistics.stdev computes in fractions: seconds for a thousand runs
        spread = math.fsum((value - center) ** 2 for value in values) / max(1, len(values) - 1)
        row[f"{metric}_std"] = math.sqrt(spread) if len(values) > 1 else None
    return row


def _single_rows(families: Sequence[Family], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each run and epoch; none where no family has several runs, or where they would be too many."""
    several = [family for family in families if len(family.runs) > 1]
    if sum(len(family.runs) * len(_epochs(family)) for family in several) > _RUN_ROWS:
        return []
    return [
        {
            "role": "run",
            "group": family.name,
            "run": run["name"],
            "epoch": epoch,
            "n": 1,
            **{metric: _at(run, metric, epoch) for metric in metrics},
        }
        for family in several
        for run in family.runs
        for epoch in _epochs(family)
        if _place(run, epoch) is not None
    ]


def _epochs(family: Family) -> list[int]:
    """Those that any of its runs measured; of many the first, the last and some between."""
    epochs = sorted({epoch for run in family.runs for epoch in run["curves"]["epoch"] if epoch is not None})
    step = math.ceil(len(epochs) / _EPOCHS)
    return epochs if step <= 1 else sorted({*epochs[::step], epochs[-1]})


def _at(run: Mapping[str, Any], metric: str, epoch: int) -> float | None:
    measured = run["curves"].get(metric)
    place = _place(run, epoch)
    return measured[place] if measured and place is not None else None


def _place(run: Mapping[str, Any], epoch: int) -> int | None:
    """Of an epoch in its run's curves: usually where it would be if none were missing."""
    epochs = run["curves"]["epoch"]
    if 0 < epoch <= len(epochs) and epochs[epoch - 1] == epoch:
        return epoch - 1
    return epochs.index(epoch) if epoch in epochs else None


def _words(families: Sequence[Family], metrics: Mapping[str, str]) -> str:
    metric = next(iter(metrics))
    ends = []
    for family in families:
        last = _mean_row(family, _epochs(family)[-1], [metric])
        if family.shown and last[metric] is not None:
            ends.append(f"{family.name} ends at {last[metric]:.4g} (epoch {last['epoch']})")
    return f"Lines of {metrics[metric]} by epoch. " + "; ".join(ends) + "."
