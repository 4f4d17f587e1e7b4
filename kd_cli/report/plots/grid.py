"""Images beside what networks say of them: bars of probabilities, one panel for each image."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kd_cli.console import printable
from kd_cli.evaluation.predict import Panel, most_probable
from kd_cli.report.plots.files import SCALE, colours_of, data_url

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

_ALL_CLASSES = 10  # up to so many classes all have bars, in their order
_SIDE = 130  # of an image, in the chart's pixels
_LABEL = 80  # widest class name beside a bar, in the chart's pixels
_NAME = 28  # letters of a file's or a class's name
_BAR = {1: 9, 2: 6, 3: 4}  # thickness by the number of networks


def prediction_grid(panels: Sequence[Panel], classes: Sequence[str], top: int) -> Any:
    """An Altair chart of at most three panels a row.

    Args:
        classes: their names.
        top: of more than ten classes only those have bars that are among the so many most probable of a network.
    """
    import altair as alt

    columns = min(3, math.ceil(math.sqrt(len(panels))))
    drawn = [_panel(panel, classes, top) for panel in panels]
    return (
        alt.concat(*drawn, columns=columns, spacing=28)
        .configure_view(stroke=None)
        .configure_axis(grid=False, labelLimit=_LABEL)
        .configure_legend(orient="bottom", title=None, labelFontSize=12)
    )


def shown_classes(probabilities: Mapping[str, Sequence[float]], top: int) -> list[int]:
    """The classes that have bars: all where they are few, else the most probable, most probable first."""
    rows = list(probabilities.values())
    if len(rows[0]) <= _ALL_CLASSES:
        return list(range(len(rows[0])))
    highest = [max(column) for column in zip(*rows, strict=True)]
    chosen = {label for row in rows for label in most_probable(row, top)}
    return sorted(chosen, key=lambda label: -highest[label])


def _panel(panel: Panel, classes: Sequence[str], top: int) -> Any:
    import altair as alt

    image = _enlarged(panel.pixels)
    width, height = image.width / SCALE, image.height / SCALE
    picture = alt.Chart(alt.Data(values=[{"url": data_url(image)}])).mark_image(width=width, height=height)
    picture = picture.encode(url="url:N", x=alt.value(width / 2), y=alt.value(height / 2))
    return alt.hconcat(
        picture.properties(width=width, height=height),
        _bars(panel, classes, shown_classes(panel.probabilities, top)),
        spacing=6,
        title=alt.TitleParams(
            _heading(panel, classes),
            subtitle=[_said(panel, name, classes) for name in panel.probabilities],
            anchor="start",
            fontSize=13,
            subtitleFontSize=11,
            subtitleColor="#333",
        ),
    )


def _bars(panel: Panel, classes: Sequence[str], labels: Sequence[int]) -> Any:
    import altair as alt

    networks = list(panel.probabilities)
    rows = [
        {"position": place, "network": name, "probability": float(panel.probabilities[name][label])}
        for place, label in enumerate(labels)
        for name in networks
    ]
    # By position and not by name: two classes may have one name.
    names = json.dumps([_class(classes, label) for label in labels])
    axis = alt.Axis(title=None, ticks=False, domain=False, labelExpr=f"{names}[datum.value]")
    thickness = _BAR.get(len(networks), 3)
    colours = alt.Scale(domain=networks, range=colours_of(networks))
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_bar()
        .encode(
            y=alt.Y("position:O", axis=axis, scale=alt.Scale(paddingInner=0.25)),
            yOffset=alt.YOffset("network:N", sort=networks, scale=alt.Scale(paddingInner=0)),
            x=alt.X(
                "probability:Q",
                scale=alt.Scale(domain=[0, 1]),
                axis=alt.Axis(title=None, format="%", values=[0, 0.5, 1]),
            ),
            color=alt.Color("network:N", scale=colours, sort=networks),
        )
        .properties(width=110, height=max(_SIDE, len(labels) * (len(networks) * thickness + 3)))
    )


def _heading(panel: Panel, classes: Sequence[str]) -> str:
    name = printable(panel.name)
    name = name if len(name) <= _NAME else f"…{name[-_NAME:]}"
    return name if panel.truth is None else f"{name} · true class {_class(classes, panel.truth)}"


def _said(panel: Panel, network: str, classes: Sequence[str]) -> str:
    row = panel.probabilities[network]
    (label,) = most_probable(row, 1)
    wrong = "" if panel.truth in (None, label) else " – wrong"
    return f"{network}: {_class(classes, label)}, {row[label]:.1%}{wrong}"


def _class(classes: Sequence[str], label: int) -> str:
    name = printable(classes[label])
    return name if len(name) <= _NAME else f"{name[:_NAME]}…"


def _enlarged(pixels: Tensor) -> Image.Image:
    """Each pixel of a small image becomes a square of whole pixels, so that nothing blurs it; a large one is shrunk."""
    from PIL import Image

    image = Image.fromarray(pixels.squeeze(-1).contiguous().numpy())
    side, largest = SCALE * _SIDE, max(image.size)
    factor = side / largest if largest > 1.5 * side else max(1, round(side / largest))
    size = round(image.width * factor), round(image.height * factor)
    return image.resize(size, Image.Resampling.BILINEAR if factor < 1 else Image.Resampling.NEAREST)
