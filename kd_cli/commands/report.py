"""kd report: what runs, comparisons and sweeps say together."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from kd_cli import console
from kd_cli.launch.options import File, Json

PANEL = "Results"


def command(
    targets: Annotated[
        Optional[list[Path]],  # noqa: UP045 - Typer reads it on Python 3.10
        typer.Argument(
            metavar="RUN|SWEEP|FOLDER",
            help="Runs, comparisons, sweeps, or folders that hold some.",
            show_default="outputs",
        ),
    ] = None,
    out: Annotated[
        File,
        typer.Option(help="Where the files go.", show_default="in the one run or sweep; else outputs/report"),
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    pictures: Annotated[bool, typer.Option("--pictures", help="Also write each chart as PNG and SVG.")] = False,
    speed: Annotated[bool, typer.Option("--speed", help="Measure what each network costs, on this machine.")] = False,
    json: Json = False,
) -> None:
    """Write report.html, report.md, results.csv and results.json: comparisons over seeds, with their warnings."""
    console.setup(as_json=json)
    from kd_cli.report.write import write

    folders = targets or [Path("outputs")]
    results, paths = write(folders, out, command=sys.argv[1:], speed=speed, pictures=pictures)
    present(results, paths)
    if show and "report.html" in paths:
        typer.launch(str(paths["report.html"].resolve()))
    console.emit({**results, "files": {name: str(path) for name, path in paths.items()}})


def present(results: Mapping[str, Any], paths: Mapping[str, Path]) -> None:
    """The tables, the findings, the warnings, and where all of it is."""
    from kd_cli.report.tables import tables

    for table in tables(results):
        console.table(table.title, table.columns, table.rows, left=table.left)
    for sentence in results["findings"]:
        console.say(sentence)
    for sentence in results["warnings"]:
        console.notice(sentence)
    console.say(f"{_count(results['runs'], 'run')}, {_count(results['comparisons'], 'comparison')}:")
    for path in paths.values():
        console.say(f"  {console.short_path(path)}")


def _count(rows: Sequence[Any], what: str) -> str:
    return f"{len(rows):,} {what}{'' if len(rows) == 1 else 's'}"
