"""Options that several commands share, and the runs among the words of a command line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from kd_cli.errors import ConfigError

HYDRA = "Hydra"


# Typer reads them on Python 3.10.
Words = Optional[list[str]]  # noqa: UP045
File = Optional[Path]  # noqa: UP045
Count = Optional[int]  # noqa: UP045

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else there.")]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Look for all that can go wrong, say what would be trained, and stop; no run is written."
    ),
]
Detach = Annotated[
    bool,
    typer.Option(
        "--detach",
        help="Of a sweep by submitit: submit what is not done, say what is known, and do not wait for it.",
        rich_help_panel=HYDRA,
    ),
]
ConfigDir = Annotated[
    Words,
    typer.Option(
        "--config-dir", "-cd", help="A folder whose yaml shadows kd's.", rich_help_panel=HYDRA, show_default=False
    ),
]
WhichEpoch = Annotated[
    Optional[Literal["best", "last"]],  # noqa: UP045
    typer.Option(help="Which epoch of a run: the best on validation, or the last.", show_default="best"),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]


def is_path(word: str) -> bool:
    """Whether a word is a path and no override; folders of sweep points have `=` in their names too."""
    there = os.path.exists(word)  # noqa: PTH110 - Path's raises for a name that no system takes
    return there or "=" not in word or "/" in word.partition("=")[0]


def split_targets(targets: Sequence[str], command: str) -> tuple[list[Path], list[str]]:
    """The runs among the words of a command line, comparisons as their parts, and the overrides.

    Raises:
        ConfigError: no run is named, or one that is not there.
    """
    from kd_cli.runs.folder import expand

    paths = [Path(word) for word in targets if is_path(word)]
    missing = [path for path in paths if not os.path.exists(path)]  # noqa: PTH110 - as there
    if missing or not paths:
        raise ConfigError(
            f"there is no run {missing[0]}" if missing else f"name a run: kd {command} outputs/…; kd list runs"
        )
    return [run for path in paths for run in expand(path)], [word for word in targets if not is_path(word)]
