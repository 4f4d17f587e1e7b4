"""kd evaluate: how good saved networks are, on any data that fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import typer

from kd_cli import console
from kd_cli.launch.options import ConfigDir, Device, Json, WhichEpoch, split_targets

PANEL = "Results"

# The scores in the table, and their decimals.
_DIGITS = {
    "top1": 2,
    "top5": 2,
    "nll": 4,
    "brier": 4,
    "ece": 2,
    "mce": 2,
    "agreement": 2,
    "agreement_when_wrong": 2,
    "kl": 4,
}
_TEXTS = ("stage", "dataset", "part", "run")


def command(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN OVERRIDE",
            show_default=False,
            help="Runs, checkpoints or .safetensors files, then overrides: dataset=fashion_mnist dataset.root=DIR.",
        ),
    ],
    part: Annotated[Literal["train", "val", "test"], typer.Option(help="Which images.")] = "test",
    which: WhichEpoch = None,
    corruptions: Annotated[
        bool, typer.Option("--corruptions", help="Also on images with noise, blur, less contrast, more brightness.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the noise.", min=0)] = 0,
    by_class: Annotated[bool, typer.Option("--per-class", help="Show the accuracy of each class.")] = False,
    confusion: Annotated[bool, typer.Option("--confusion", help="Show which classes are taken for which.")] = False,
    device: Device = "auto",
    config_dir: ConfigDir = None,
    json: Json = False,
) -> None:
    """Evaluate saved networks on any part of any data set that fits them."""
    console.setup(as_json=json)
    runs, overrides = split_targets(targets, "evaluate")
    from kd_cli.evaluation.assess import Assessor
    from kd_cli.machine import pick_device
    from kd_cli.saved.network import Saved

    assessor = Assessor(part, pick_device(device), seed=seed if corruptions else None)
    saved = [Saved(run, which=which, overrides=overrides, config_dirs=config_dir or []) for run in runs]
    rows = list(map(assessor.assess, saved))
    _show_scores(rows)
    if corruptions:
        _show_corruptions(rows)
    if by_class:
        _show_classes(rows)
    if confusion:
        _show_confusion(rows)
    console.emit({"evaluations": rows})


def _show_scores(rows: Sequence[Mapping[str, Any]]) -> None:
    names = ("stage", "dataset", "part", "images", *_DIGITS, "epoch", "parameters")
    columns = [name for name in names if any(row.get(name) is not None for row in rows)]
    cells = [[*(_cell(row, name) for name in columns), console.short_path(row["run"])] for row in rows]
    title = "Evaluation (top1, top5, ece, mce and agreement with the teacher in percent; nll and kl in nats)"
    console.table(title, [*columns, "run"], cells, left=_TEXTS)


def _show_corruptions(rows: Sequence[Mapping[str, Any]]) -> None:
    names = list(rows[0]["corrupted"]["corruptions"])
    cells = [
        [
            row["stage"],
            row["top1"],
            *(row["corrupted"]["corruptions"][name]["top1"] for name in names),
            row["corrupted"]["top1"],
            console.short_path(row["run"]),
        ]
        for row in rows
    ]
    title = f"Top-1 in percent on corrupted images, mean over five severities (seed {rows[0]['corrupted']['seed']})"
    console.table(title, ["stage", "clean", *names, "mean", "run"], cells, left=_TEXTS)


def _show_classes(rows: Sequence[Mapping[str, Any]]) -> None:
    """Networks side by side; those of other classes in a table of their own."""
    for names, group in _by_classes(rows).items():
        columns = [f"{row['stage'] or 'network'} {number}" for number, row in enumerate(group, start=1)]
        images = [each["images"] for each in group[0]["per_class"]]
        tops = [[each["top1"] for each in row["per_class"]] for row in group]
        title = "Top-1 in percent of each class; networks in the order above"
        cells = zip(names, images, *tops, strict=True)
        console.table(title, ["class", "images", *columns], cells, left=["class"])


def _by_classes(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, ...], list[Mapping[str, Any]]]:
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(each["class"] for each in row["per_class"]), []).append(row)
    return groups


def _show_confusion(rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        names = [each["class"] for each in row["per_class"]]
        title = f"Confusion of {console.short_path(row['run'])} (a row is what the images are, a column what they seem)"
        cells = [[name, *counts] for name, counts in zip(names, row["confusion"], strict=True)]
        console.table(title, ["", *names], cells, left=[""])


def _cell(row: Mapping[str, Any], name: str) -> Any:
    value, digits = row.get(name), _DIGITS.get(name)
    return value if digits is None or value is None else f"{value:.{digits}f}"
