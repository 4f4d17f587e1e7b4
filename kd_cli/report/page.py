"""`report.html`: one file that opens from a disk, loads nothing and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from kd_cli.config.recipe import chosen_by
from kd_cli.errors import listed
from kd_cli.metrics.significance import p_text
from kd_cli.report.charts import Chart, charts_of
from kd_cli.report.charts.families import value_text
from kd_cli.report.charts.theme import TOKENS
from kd_cli.report.plots.files import save_file
from kd_cli.report.readable import readable
from kd_cli.report.tables import transfer_table

_HERE = Path(__file__).parent
_EXAMPLES = 24
_PNG = "data:image/png;base64,"  # what alone may be shown as an image
_ROWS = 250  # of a table on the page; results.csv has all
_VALUES = 20  # of one key
_LISTED = 6  # runs named for one value; more are counted
_SECTIONS = {
    "comparison": "Did distillation help?",
    "sweep": "Along the sweep",
    "transfer": "On other data",
    "curves": "Learning curves",
    "costs": "Accuracy and cost",
    "calibration": "Calibration",
    "confusion": "Confusions",
    "classes": "Class by class",
    "examples": "Examples",
    "undone": "Points that are not done",
    "runs": "All runs",
    "differences": "What differs in the configurations",
    "provenance": "Provenance",
}


def write_page(results: Mapping[str, Any], path: Path) -> None:
    """Writes the page; `results` is what results.json holds."""
    save_file(path, page(results).encode())


def page(results: Mapping[str, Any]) -> str:
    """The whole page."""
    shown = readable(results)
    charts = charts_of(shown)
    scripts = [_harmless(_libraries()), _harmless(_own("page.js"))]
    style = _variables() + _own("page.css")
    filled = {chart.section for chart in charts} | _filled(shown)
    text: str = _template().render(
        results=shown,
        rows=_ROWS,
        sections={key: title for key, title in _SECTIONS.items() if key in filled},
        charts={section: [chart for chart in charts if chart.section == section] for section in _SECTIONS},
        transfer=transfer_table(shown),
        differences=_differences(shown),
        examples=_examples(shown["examples"]),
        provenance=_provenance(shown["runs"]),
        data=json_for_html([_entry(chart) for chart in charts]),
        style=style,
        scripts=scripts,
        policy=_policy(scripts, style),
    )
    return text


def json_for_html(value: Any) -> str:
    """JSON that ends no script element and opens no comment, whatever is in it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _entry(chart: Chart) -> dict[str, Any]:
    """A chart as page.js takes it: its rows by columns, which is a third of their size."""
    columns = list(dict.fromkeys(key for row in chart.rows for key in row))
    return {
        "id": chart.id,
        "specification": _fluid(chart),
        "columns": {key: _packed([row.get(key) for row in chart.rows]) for key in columns},
        "headings": chart.headings,
        "title": chart.title,
    }


def _packed(column: Sequence[Any]) -> Any:
    """Names are written once, since they stand in many rows; numbers stay as they are."""
    if not all(isinstance(value, str) for value in column):
        return column
    places = {name: place for place, name in enumerate(dict.fromkeys(column))}
    return {"names": list(places), "places": [places[name] for name in column]}


def _fluid(chart: Chart) -> dict[str, Any]:
    """As wide as its place on the page, and without a legend where the page has boxes to tick."""
    drawn = {**chart.specification(), "width": "container", "autosize": {"type": "fit-x", "contains": "padding"}}
    if len(chart.toggles) > 1:
        for layer in drawn["layer"]:
            if "field" in layer["encoding"].get("color", {}):
                layer["encoding"]["color"]["legend"] = None
    return drawn


def _filled(results: Mapping[str, Any]) -> set[str]:
    """Sections that have something without a chart."""
    content = {
        "comparison": results["groups"],
        "transfer": (results["transfer"] or {}).get("roles"),
        "examples": results["examples"],
        "undone": results["points_not_done"],
        "runs": results["runs"],
        "differences": results["differences"],
        "provenance": [run for run in results["runs"] if run["provenance"]],
    }
    return {section for section, rows in content.items() if rows}


def _examples(examples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """As many as fit; an image that is none is left out."""
    return [
        {**example, "image": image if (image := example["image"] or "").startswith(_PNG) else None}
        for example in examples[:_EXAMPLES]
    ]


def _differences(results: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    names = {run["id"]: run["name"] for run in results["runs"]}
    return [(row["key"], _first([_said(item, names) for item in row["values"]])) for row in results["differences"]]


def _said(item: Mapping[str, Any], names: Mapping[str, str]) -> tuple[str, str]:
    return value_text(item["value"]), listed([names[identity] for identity in item["runs"]], _LISTED)


def _provenance(runs: Iterable[Mapping[str, Any]]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Key → its values, each with the runs that have it; one value stands for all runs."""
    values: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        for key, value in _flat(run["provenance"] or {}):
            values.setdefault(key, {}).setdefault(value, []).append(run["name"])
    return [
        (key, _first([(value, "all" if len(found) == 1 else listed(names, _LISTED)) for value, names in found.items()]))
        for key, found in values.items()
    ]


def _first(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """As many values of a key as a reader will read."""
    return rows if len(rows) <= _VALUES else [*rows[:_VALUES], (f"and {len(rows) - _VALUES} more values", "")]


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in record.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key} ")
        elif value is not None:
            yield f"{prefix}{key}", value_text(value)


def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=_number, signed=_signed, time=_time, p=_p, chosen_by=chosen_by)
    return environment.get_template("page.html.j2")


def _p(value: float | None) -> str:
    return "–" if value is None else p_text(value)


def _number(value: float | None, digits: int = 2) -> str:
    if value is None:
        return "–"
    return (f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}").replace("-", "−")


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}".replace("-", "−")


def _time(written: str) -> str:
    """To the minute: `2026-03-01 10:00 UTC`."""
    zone = " UTC" if written.endswith(("+00:00", "Z")) else ""
    return written[:16].replace("T", " ") + zone


def _own(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


@cache
def _libraries() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, from the installed vl-convert."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle


def _harmless(script: str) -> str:
    """The same script where nothing ends its element."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _variables() -> str:
    """The colours of both modes."""
    modes = [
        "".join(f"--{name}:{colours[dark]};" for name, colours in TOKENS.items()) + f"color-scheme:{mode};"
        for dark, mode in enumerate(("light", "dark"))
    ]
    return (
        f":root{{{modes[0]}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{modes[1]}}}}}\n"
        f"@media screen{{:root[data-theme=dark]{{{modes[1]}}}}}\n"
    )


def _policy(scripts: Sequence[str], style: str) -> str:
    """Content-Security-Policy: these scripts and this style by their digests, images from the page itself, no more."""
    own = " ".join(map(_digest, scripts))
    return (
        f"default-src 'none'; script-src {own}; style-src {_digest(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
