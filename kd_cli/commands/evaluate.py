"""kd evaluate: how good saved networks are, on any data that fit."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from kd_cli import console
from kd_cli.errors import ConfigError
from kd_cli.hydra_command import ConfigDir, Json, is_path

PANEL = "Results"


class Part(str, Enum):
    """The parts of a data set."""

    train = "train"
    val = "val"
    test = "test"


class Which(str, Enum):
    """The checkpoints of a run."""

    best = "best"
    last = "last"


def command(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN OVERRIDE",
            show_default=False,
            help="Runs, checkpoints or .safetensors files, then overrides: dataset=fashion_mnist dataset.root=DIR.",
        ),
    ],
    part: Annotated[Part, typer.Option(help="Which images.")] = Part.test,
    which: Annotated[
        Optional[Which],  # noqa: UP045 - Typer reads it on Python 3.10
        typer.Option(help="Which epoch of a run: the best on validation, or the last.", show_default="best"),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    config_dir: ConfigDir = None,
    json: Json = False,
) -> None:
    """Evaluate saved networks on any part of any data set that fits them."""
    console.setup(as_json=json)
    paths = [Path(word) for word in targets if is_path(word)]
    overrides = [word for word in targets if not is_path(word)]
    missing = [path for path in paths if not path.exists()]
    if missing or not paths:
        raise ConfigError(
            f"there is no run {missing[0]}" if missing else "name a run: kd evaluate outputs/…; kd list runs"
        )
    from kd_cli.build import pick_device
    from kd_cli.saved import Saved, evaluate_saved, expand

    chosen = None if which is None else which.value
    runs = [run for path in paths for run in expand(path)]
    saved = (Saved(run, which=chosen, overrides=overrides, config_dirs=config_dir or []) for run in runs)
    rows = [evaluate_saved(each, part=part.value, device=pick_device(device)) for each in saved]
    columns = ("stage", "dataset", "part", "images", "top1", "top5", "nll", "epoch", "parameters", "run")
    cells = [[_cell(row, name) for name in columns] for row in rows]
    console.table("Evaluation (top-1 and top-5 in percent)", columns, cells, left=("stage", "dataset", "part", "run"))
    console.emit({"evaluations": rows})


def _cell(row: Mapping[str, Any], name: str) -> Any:
    if name == "nll":
        return f"{row[name]:.4f}"
    return console.short_path(row[name]) if name == "run" else row.get(name)
