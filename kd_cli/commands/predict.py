"""kd predict: what networks say of pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from kd_cli import console
from kd_cli.errors import ConfigError, DataError
from kd_cli.launch.options import ConfigDir, Count, Device, File, Json, WhichEpoch, Words, is_path
from kd_cli.report.plots.files import check_folder, check_picture, save_file, save_picture

PANEL = "Results"
_COLUMNS = ("image", "true", "network", "rank", "class", "probability")


def command(
    run: Annotated[Path, typer.Argument(help="A run, a comparison or a checkpoint.", show_default=False)],
    images: Annotated[
        Words,
        typer.Argument(metavar="IMAGE OVERRIDE", show_default=False, help="Files, folders, globs; then overrides."),
    ] = None,
    test: Annotated[
        Count, typer.Option(min=1, help="The first N test images of the run's own data instead.", show_default=False)
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 3,
    table: Annotated[File, typer.Option("--csv", help="Write a table.", show_default=False)] = None,
    grid: Annotated[
        File,
        typer.Option(help="Draw the first nine beside bars of probabilities: .png or .svg.", show_default=False),
    ] = None,
    which: WhichEpoch = None,
    device: Device = "auto",
    config_dir: ConfigDir = None,
    json: Json = False,
) -> None:
    """Tell the classes of pictures, and how probable they are."""
    console.setup(as_json=json)
    words = [word for word in images or [] if is_path(word)]
    overrides = [word for word in images or [] if not is_path(word)]
    _check(run, words, test, table, grid)
    from kd_cli.evaluation.networks import open_networks
    from kd_cli.evaluation.predict import Reader, ask, find_images, tested_pictures
    from kd_cli.machine import pick_device

    place, folders = pick_device(device), config_dir or []
    files = find_images(words)
    networks = open_networks(
        run, which=which, overrides=overrides, config_dirs=folders, device=place, with_teacher=grid is not None
    )
    last = networks[-1].first
    reader = Reader(files, last.spec(), last.facts["preprocessing"])
    pictures = tested_pictures(networks[-1].first, test) if test else reader
    answers = ask(networks, pictures, top=top, device=place)
    reader.say_changed()
    _print(answers.rows, top)
    if table:
        save_file(table, _as_csv(answers.rows).encode())
    if grid and answers.first:
        from kd_cli.report.plots.grid import prediction_grid

        save_picture(prediction_grid(answers.first, answers.classes, top), grid)
        drawn, asked = len(answers.first), len(answers.rows)
        what = f"shows the first {drawn} of {asked}" if drawn < asked else "is drawn"
        console.say(f"{console.short_path(grid)} {what}")
    named = [{"name": each.name, "run": str(each.first.path), "epoch": each.first.source.epoch} for each in networks]
    console.emit({"run": str(run), "networks": named, "images": answers.rows, "unreadable": reader.unreadable})
    if reader.unreadable:
        raise DataError(f"{len(reader.unreadable)} of {len(files)} pictures could not be read; the notes name them")


def _check(run: Path, words: Sequence[str], test: int | None, table: Path | None, grid: Path | None) -> None:
    """Finds what is wrong before anything is computed."""
    if not run.exists():
        raise ConfigError(f"there is no run {run}; kd list runs shows what is there")
    if bool(words) == bool(test):
        wrong = "both pictures and --test are named" if test else "no picture is named"
        raise ConfigError(f"{wrong}; type kd predict {run} IMAGE… or kd predict {run} --test 9")
    if table:
        check_folder(table, "--csv")
    if grid:
        check_picture(grid, "--grid")


def _print(rows: Sequence[Mapping[str, Any]], top: int) -> None:
    """One line for each picture and network."""
    if not rows:
        return
    known, several = "true" in rows[0], len(rows[0]["predictions"]) > 1
    columns = ["image", *["true"] * known, *["network"] * several]
    ranks = [f"rank {rank + 1}" for rank in range(min(top, max(map(len, rows[0]["predictions"].values()))))]
    cells = [
        [*([row["image"], row.get("true")][: 1 + known] if first else [""] * (1 + known)), *[name] * several, *said]
        for row in rows
        for first, name, said in _lines(row)
    ]
    console.table("Predictions", [*columns, *ranks], cells, left=(*columns, *ranks))


def _lines(row: Mapping[str, Any]) -> Iterator[tuple[bool, str, list[str]]]:
    for number, (name, said) in enumerate(row["predictions"].items()):
        yield number == 0, name, [f"{each['class']}  {each['probability']:.1%}" for each in said]


def _as_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """A line for each picture, network and class."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(_COLUMNS)
    for row in rows:
        for name, said in row["predictions"].items():
            for rank, each in enumerate(said, start=1):
                cells = (row["image"], row.get("true", ""), name, rank, each["class"], each["probability"])
                writer.writerow([console.printable(cell) if isinstance(cell, str) else cell for cell in cells])
    return text.getvalue()
