"""A chart: a Vega-Lite drawing, the rows that it draws, and the words for who does not see it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kd_cli.report.charts.families import Family
from kd_cli.report.charts.theme import CONFIG, light

ROWS = "rows"  # the name of the rows in every specification
_DIGITS = 7  # significant ones: more than any measurement here has


@dataclass(frozen=True)
class Chart:
    """One drawing.

    Args:
        id: a name for the page and for the picture's file.
        section: of the page.
        alt: what a reader sees in it.
        headings: column → its heading in the table behind the chart; only these are in the table.
        rows: as the drawing has them under the name `rows`.
        drawing: Altair's.
        toggles: lines that the reader may hide, by the parameter `hidden`; their names are the rows' `group`.
        choices: values of the parameter `metric` and their names.
        single: the parameter `single` shows every single run.
        zoom: the drawing has the selection `zoom` over x and y.
        note: what the reader must know: what was left out.
        wide: takes the page's whole width.
    """

    id: str
    section: str
    title: str
    alt: str
    headings: Mapping[str, str]
    rows: Sequence[Mapping[str, Any]]
    drawing: Any
    toggles: Sequence[Family] = ()
    choices: Mapping[str, str] = field(default_factory=dict)
    single: bool = False
    zoom: bool = False
    note: str = ""
    wide: bool = True

    def specification(self) -> dict[str, Any]:
        """Vega-Lite's, without the rows."""
        drawn: dict[str, Any] = self.drawing.to_dict(validate=False)  # the parts were, when they were made
        drawn["config"] = {**CONFIG, **drawn.get("config", {}).get("own", {})}
        drawn["description"] = self.alt
        return drawn

    def to_dict(self) -> dict[str, Any]:
        """The whole specification in light colours with a title: a picture."""
        drawn = self.specification()
        drawn["datasets"] = {ROWS: list(self.rows)}
        drawn.setdefault("title", {"text": self.title})
        return light(drawn)


def named_rows() -> Any:
    """The data of a drawing."""
    import altair as alt

    return alt.NamedData(name=ROWS)


def rounded(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows whose numbers have as many digits as can be seen, and null where there is no number."""
    return [{key: _rounded(value) for key, value in row.items()} for row in rows]


def _rounded(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
