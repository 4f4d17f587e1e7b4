"""Which classes are taken for which: a network's mistakes, and how two networks' mistakes differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kd_cli.report.charts.chart import Chart, named_rows, rounded
from kd_cli.report.charts.groups import validation
from kd_cli.report.charts.theme import INK, WRITTEN_ON

_GROUPS = 2  # whose matrices are drawn
_LABELLED = 25  # classes that have names and numbers in their cells
_CELLS = 2_500  # of a larger matrix, those with most images
_PAIRS = 20
_NAME = 24  # letters
_TWO_DIGITS = 10  # points; from there on tenths have no room
_SMALLEST = 6  # size of letters that can be read, in pixels

Matrix = Sequence[Sequence[int]]


def confusion_charts(results: Mapping[str, Any]) -> list[Chart]:
    """For the best groups: the baseline's mistakes, the distilled network's, and their difference.

    Without groups: the mistakes of the best single runs.
    """
    groups = sorted((group for group in results["groups"] if group["confusion"]), key=lambda each: -validation(each))
    charts: list[Chart] = []
    drawn: list[Matrix] = []
    for index, group in enumerate(groups[:_GROUPS]):
        charts += _of_group(index, group, len(groups), results["classes"], drawn)
    if charts:
        return charts
    runs = [run for run in results["runs"] if run["confusion"]]
    runs = sorted(runs, key=lambda run: -(run["val_top1"] or run["test_top1"] or 0))
    for index, run in enumerate(runs[:_GROUPS]):
        names = _class_names(results["classes"], len(run["confusion"]))
        charts += _of_matrix(f"confusion-{index + 1}", run["name"], run["confusion"], names)
    return charts


def _of_group(
    index: int, group: Mapping[str, Any], count: int, classes: Sequence[str] | None, drawn: list[Matrix]
) -> list[Chart]:
    """Its matrices but those that are `drawn` already: one baseline may belong to all groups."""
    matrices = group["confusion"]
    name = f" · {group['name']}" if group["name"] and count > 1 else ""
    charts: list[Chart] = []
    names = _class_names(classes, len(matrices["distilled"]))
    for network in ("baseline", "distilled"):
        if matrices[network] not in drawn:
            drawn.append(matrices[network])
            charts += _of_matrix(f"confusion-{index + 1}-{network}", f"{network}{name}", matrices[network], names)
    return [*charts, _difference(f"confusion-{index + 1}-difference", name, matrices, names)]


def _of_matrix(id_: str, name: str, matrix: Matrix, names: Sequence[str]) -> list[Chart]:
    cells = _cells(matrix, _shares(matrix), names, whole=len(names) <= _LABELLED)
    mistakes = sorted((cell for cell in cells if cell["truth"] != cell["predicted"]), key=lambda cell: -cell["images"])
    worst = mistakes[0] if mistakes and mistakes[0]["images"] else None
    words = (
        f"Most often confused: {worst['truth']} taken for {worst['predicted']}, {worst['images']} images."
        if worst
        else ""
    )
    rows = (
        cells if len(names) <= _LABELLED else sorted(mistakes[:_CELLS], key=lambda cell: (cell["row"], cell["column"]))
    )
    note = "" if len(names) <= _LABELLED else _cut(len(rows), len(mistakes), len(names))
    chart = Chart(
        id=id_,
        section="confusion",
        title=f"Mistakes of the {name}",
        alt=f"Heat map of {len(names)} by {len(names)} classes. {words}",
        headings=_HEADINGS,
        rows=rounded(rows),
        drawing=_heat_map(rows, names, signed=False),
        note=note,
        wide=False,
    )
    return [chart] if len(names) <= _LABELLED or not worst else [chart, _pairs(id_, name, mistakes[:_PAIRS])]


_HEADINGS = {"truth": "True class", "predicted": "Taken for", "images": "Images", "share": "% of the true class"}


def _pairs(id_: str, name: str, mistakes: Sequence[Mapping[str, Any]]) -> Chart:
    import altair as alt

    rows = [{**cell, "pair": f"{cell['truth']} → {cell['predicted']}"} for cell in mistakes if cell["images"]]
    bars = alt.Chart(named_rows()).mark_bar(color="var(--heat)")
    drawing = bars.encode(
        x=alt.X("images:Q", title="images", axis=alt.Axis(tickMinStep=1)),
        y=alt.Y("pair:N", title=None, sort=[row["pair"] for row in rows], axis=alt.Axis(labelLimit=200)),
        tooltip=_tips(),
    )
    return Chart(
        id=f"{id_}-pairs",
        section="confusion",
        title=f"Most confused pairs of the {name}",
        alt=f"Bars. {rows[0]['truth']} is taken for {rows[0]['predicted']} {rows[0]['images']} times.",
        headings=_HEADINGS,
        rows=rounded(rows),
        drawing=drawing.properties(width=300, height=17 * len(rows) + 12),
        wide=False,
    )


def _difference(id_: str, name: str, matrices: Mapping[str, Matrix], names: Sequence[str]) -> Chart:
    before, after = (_shares(matrices[network]) for network in ("baseline", "distilled"))
    size = range(len(names))
    change = [[after[row][column] - before[row][column] for column in size] for row in size]
    images = [
        [matrices["distilled"][row][column] - matrices["baseline"][row][column] for column in size] for row in size
    ]
    cells = _cells(images, change, names, whole=len(names) <= _LABELLED)
    rows = cells
    if len(names) > _LABELLED:
        rows = sorted(cells, key=lambda cell: -abs(cell["images"]))[:_CELLS]
    for cell in rows:
        right = cell["truth"] == cell["predicted"]
        cell["effect"] = "better" if (cell["share"] > 0) == right and cell["share"] else "worse"
    most = max(rows, key=lambda cell: abs(cell["share"]), default=None)
    words = (
        f"Greatest change: {most['truth']} taken for {most['predicted']}, {most['share']:+.2f} points." if most else ""
    )
    return Chart(
        id=id_,
        section="confusion",
        title=f"Difference: distilled − baseline{name}",
        alt=f"Heat map of the change of each cell. {words}",
        headings={**_HEADINGS, "images": "Images more", "share": "Change, points", "effect": "Effect"},
        rows=rounded(rows),
        drawing=_heat_map(rows, names, signed=True),
        note="" if len(names) <= _LABELLED else _cut(len(rows), len(cells), len(names)),
        wide=False,
    )


def _heat_map(rows: Sequence[Mapping[str, Any]], names: Sequence[str], *, signed: bool) -> Any:
    """Cells by position, since two classes may have one name; the diagonal of right answers has only its number."""
    import altair as alt

    labelled = len(names) <= _LABELLED
    axis: dict[str, Any] = {
        "labelExpr": f"{json.dumps(names)}[datum.value]" if labelled else "''",
        "ticks": labelled,
        "labelLimit": 90,
        "labelOverlap": True,
    }
    domain = alt.Scale(domain=list(range(len(names))))
    x = alt.X("column:O", title="taken for", scale=domain, axis=alt.Axis(labelAngle=-45, **axis))
    y = alt.Y("row:O", title="true class", scale=domain, axis=alt.Axis(**axis))
    most = max((abs(row["share"]) for row in rows if signed or row["row"] != row["column"]), default=0) or 1
    base = (
        alt.Chart(named_rows()).transform_calculate(strength="abs(datum.share)").encode(x=x, y=y, tooltip=_tips(signed))
    )
    # A cell of a large matrix is smaller than what can be seen: a square of its own size, never quite pale.
    cells = base.mark_rect() if labelled else base.mark_square(size=max(12, (320 / len(names)) ** 2))
    scale = alt.Scale(domain=[0, most], range=[0, WRITTEN_ON] if labelled else [0.35, 1], clamp=True)
    cells = cells.encode(opacity=alt.Opacity("strength:Q", scale=scale, legend=None), color=_fill(signed))
    if not signed:
        cells = cells.transform_filter("datum.row != datum.column")
    layers = [cells, _numbers(base, len(names), most, signed=signed)] if labelled else [cells]
    return alt.layer(*layers).properties(width=320, height=320)


def _fill(signed: bool) -> Any:
    import altair as alt

    if not signed:
        return alt.value("var(--heat)")
    scale = alt.Scale(domain=["better", "worse"], range=["var(--gain)", "var(--loss)"])
    return alt.Color("effect:N", scale=scale, legend=alt.Legend(title=None, symbolOpacity=1))


def _numbers(base: Any, classes: int, most: float, *, signed: bool) -> Any:
    """In the cells, as large as fits; none where they could not be read."""
    import altair as alt

    digits = 1 if signed and most < _TWO_DIGITS else 0
    letters, least, number = (2.9, 0.5 / 10**digits, f"+.{digits}f") if signed else (1.7, 0.5, ".0f")
    room = f"width / {classes * letters}"
    size = alt.ExprRef(f"{room} < {_SMALLEST} ? 0 : min(10, {room})")
    written = base.transform_filter(f"abs(datum.share) >= {least}").mark_text(fontSize=size)
    return written.encode(text=alt.Text("share:Q", format=number), color=alt.value(INK))


def _cells(
    matrix: Matrix, shares: Sequence[Sequence[float]], names: Sequence[str], *, whole: bool
) -> list[dict[str, Any]]:
    return [
        {
            "row": row,
            "column": column,
            "truth": names[row],
            "predicted": names[column],
            "images": images,
            "share": shares[row][column],
        }
        for row, line in enumerate(matrix)
        for column, images in enumerate(line)
        if whole or images
    ]


def _shares(matrix: Matrix) -> list[list[float]]:
    """Each cell in percent of its row's images."""
    return [[100 * images / (sum(line) or 1) for images in line] for line in matrix]


def _class_names(classes: Sequence[str] | None, count: int) -> list[str]:
    names = [str(name) for name in classes or []][:count]
    names += [str(index) for index in range(len(names), count)]
    return [name if len(name) <= _NAME else f"{name[: _NAME - 1]}…" for name in names]


def _cut(shown: int, all_cells: int, classes: int) -> str:
    rest = "" if shown == all_cells else f" The {shown:,} cells with most images of {all_cells:,} are drawn."
    return f"{classes} classes: without names; point at a cell to see them.{rest}"


def _tips(signed: bool = False) -> list[Any]:
    import altair as alt

    titles = {"truth:N": "true class", "predicted:N": "taken for", "images:Q": "images more" if signed else "images"}
    return [
        *(alt.Tooltip(key, title=title) for key, title in titles.items()),
        alt.Tooltip("share:Q", title="points" if signed else "% of the class", format=".2f"),
    ]
