"""kd resume: goes on with an interrupted run."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from kd_cli import console
from kd_cli.config import hydra_quote
from kd_cli.errors import ConfigError
from kd_cli.hydra_command import launch, present_one
from kd_cli.options import Json

PANEL = "Experiments"


def command(
    run: Annotated[Path, typer.Argument(help="The folder of an interrupted run.", show_default=False)],
    json: Json = False,
) -> None:
    """Go on with an interrupted run; it ends with the same bits as if nothing had happened."""
    console.setup(as_json=json)
    run = run.absolute()
    name, arguments = saved_command(run)
    from kd_cli.commands import distill, train_baseline, train_teacher
    from kd_cli.commands import run as compare

    modules: dict[str, Any] = {
        "run": (compare.job, compare.present),
        "train-teacher": (train_teacher.job, present_one),
        "train-baseline": (train_baseline.job, present_one),
        "distill": (distill.job, present_one),
    }
    job, present = modules[name]
    launch(name, [*arguments, f"hydra.run.dir={hydra_quote(str(run))}"], job, present)


def saved_command(run: Path) -> tuple[str, list[str]]:
    """The command and the arguments that made a run.

    Raises:
        ConfigError: the folder holds no run, or a part of a comparison.
        DataError: its run.json is damaged.
    """
    from kd_cli.recorded import run_record

    record = run_record(run)
    if not record:
        raise ConfigError(f"{run} holds no run (no run.json); kd list runs shows what is there")
    if record["command"] == "run" and record.get("stage"):
        raise ConfigError(f"{run} is a part of a comparison; type kd resume {shlex.quote(str(run.parent))}")
    if record.get("status") == "diverged":
        console.notice(
            f"{console.short_path(run)} has diverged: {record['error']} From its last checkpoint on the same numbers "
            "lead there again; other ones are another run, in another folder"
        )
    if Path(record["directory"]).is_dir():
        os.chdir(record["directory"])  # relative paths in its arguments are meant from there
    return record["command"], list(record["arguments"])
