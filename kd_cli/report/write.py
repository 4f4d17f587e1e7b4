"""`kd report`'s four files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from kd_cli.errors import KDError
from kd_cli.report.charts import save_pictures
from kd_cli.report.csv_table import csv_text
from kd_cli.report.findings import findings
from kd_cli.report.markdown import markdown
from kd_cli.report.page import write_page
from kd_cli.report.plots.files import check_drawing, save_file
from kd_cli.report.results import Results, results_of

FILES = ("report.html", "report.md", "results.csv", "results.json")


def write(
    targets: Sequence[Path],
    out: Path | None = None,
    *,
    command: Sequence[str] = ("report",),
    speed: bool = False,
    pictures: bool = False,
) -> tuple[Results, dict[str, Path]]:
    """Collects the runs below the targets and writes what they say.

    Args:
        targets: folders of runs, comparisons, sweeps, or above them.
        out: where to; None: `default_folder`.
        command: what was typed behind `kd`, for the report's provenance.
        speed: measure what the networks cost, now and here.
        pictures: also each chart as PNG and SVG.

    Returns:
        What is in results.json, and the files that were written, by name.

    Raises:
        ConfigError: the packages that draw are missing.
    """
    check_drawing("kd report")
    results = results_of(targets, command)
    if speed:
        from kd_cli.report.speed import add_speed

        add_speed(results)
    results["findings"] = findings(results)
    return results, write_files(results, out or default_folder(targets), pictures=pictures)


def default_folder(targets: Sequence[Path]) -> Path:
    """The one run's or sweep's own folder; `outputs/report` for anything more."""
    made_by_kd = ("run.json", "sweep.json", "multirun.yaml")
    if len(targets) == 1 and any((targets[0] / name).exists() for name in made_by_kd):
        return targets[0]
    return Path("outputs/report")


def write_files(results: Results, out: Path, *, pictures: bool = False) -> dict[str, Path]:
    """The page, the text, the table and the data."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KDError(f"{out} cannot be made: {error.strerror or error}; type --out DIR") from error
    texts = {
        "report.md": markdown(results),
        "results.csv": csv_text(results),
        "results.json": json.dumps(results, indent=1, allow_nan=False) + "\n",
    }
    paths = {name: out / name for name in FILES}
    for name, text in texts.items():
        save_file(paths[name], text.encode("utf-8", "replace"))
    write_page(results, paths["report.html"])
    if pictures:
        paths["pictures"] = out / "pictures"
        save_pictures(results, paths["pictures"])
    return paths
