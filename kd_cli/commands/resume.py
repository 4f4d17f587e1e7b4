"""kd resume: goes on with an interrupted run."""

from __future__ import annotations

import importlib
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from kd_cli import console
from kd_cli.config.base import STAGE_TRAINER
from kd_cli.config.overrides import hydra_quote, is_own, only_typed, override_key, resume_command
from kd_cli.errors import ConfigError
from kd_cli.launch.hydra_command import ConfigName, launch, present_one
from kd_cli.launch.options import ConfigDir, Json, Words
from kd_cli.runs.provenance import rerun_line
from kd_cli.runs.records import need, run_record

PANEL = "Experiments"

_EPOCHS = {f"{where}.epochs" for where in ("trainer", *STAGE_TRAINER.values())}
_JOBS = ("run", "train-teacher", "train-baseline", "distill")


def command(
    run: Annotated[Path, typer.Argument(help="The folder of an interrupted run.", show_default=False)],
    typed: Annotated[
        Words,
        typer.Argument(
            metavar="OVERRIDE",
            help="trainer.epochs=N: a finished run goes on to epoch N; devices=N; plugins=…, as they were.",
            show_default=False,
        ),
    ] = None,
    config_dir: ConfigDir = None,
    config_name: ConfigName = None,
    json: Json = False,
) -> None:
    """Go on with an interrupted run, or with a finished one for more epochs: the same bits as without a break."""
    console.setup(as_json=json)
    run = run.absolute()
    options = [word for folder in config_dir or [] for word in ("--config-dir", str(Path(folder).resolve()))]
    options += ["--config-name", config_name] if config_name else []
    more = [word for word in typed or [] if override_key(word) in _EPOCHS]
    others = [word for word in typed or [] if override_key(word) == "devices"]
    name, arguments = saved_command(run, [*options, *(word for word in typed or [] if word not in [*more, *others])])
    if others:
        arguments = [*(word for word in arguments if override_key(word) != "devices"), *others]
    module = importlib.import_module(f"kd_cli.commands.{name.replace('-', '_')}")
    if more:
        _extend(run, name, arguments, more[-1], module.JOB)
        return
    present = getattr(module, "present", present_one)
    launch(name, [*arguments, f"hydra.run.dir={hydra_quote(str(run))}"], module.JOB, present)


def _extend(run: Path, name: str, arguments: Sequence[str], epochs: str, job: str) -> None:
    """Goes on with a finished run in a folder beside it."""
    kept = [word for word in arguments if override_key(word) not in _EPOCHS]
    number = epochs.partition("=")[2]
    if name == "run":
        line = rerun_line({"command": name, "arguments": [*kept, epochs]})
        raise ConfigError(
            f"{epochs}: {run} is a comparison, whose student would have learned from another teacher; type\n{line}"
        )
    if not number.isdecimal():
        raise ConfigError(f"{epochs} is not possible; type a whole number of epochs, those that are done included")
    folder = run.with_name(f"{run.name}-{int(number)}-epochs")
    console.say(f"{console.short_path(run)} stays as it is; its training goes on in {console.short_path(folder)}")
    launch(name, [*kept, epochs, f"hydra.run.dir={hydra_quote(str(folder))}"], job, present_one, extends=run)


def saved_command(run: Path, typed: Sequence[str] = ()) -> tuple[str, list[str]]:
    """The command and the arguments that made a run.

    Args:
        typed: those among the arguments that name code, which is not run because a record says so.

    Raises:
        ConfigError: the folder holds no run, or a part of a comparison, or not the same is typed.
        DataError: the record is damaged.
    """
    record = run_record(run)
    if not record:
        raise ConfigError(f"{run} holds no run (no run.json); kd list runs shows what is there")
    command, arguments, directory = (need(record, key, run) for key in ("command", "arguments", "directory"))
    if command not in _JOBS:
        raise ConfigError(f"{run}: kd {command} is nothing to go on with; there are {', '.join(_JOBS)}")
    if is_own(arguments):
        raise ConfigError(f"{run} was begun by a program and goes on there: {resume_command(run, arguments)}")
    if command == "run" and record.get("stage"):
        raise ConfigError(f"{run} is a part of a comparison; type kd resume {shlex.quote(str(run.parent))}")
    _check_typed(run, directory, only_typed(arguments), typed)
    if record.get("status") == "diverged":
        console.notice(
            f"{console.short_path(run)} has diverged: {record.get('error')} From its last checkpoint on the same "
            "numbers lead there again; other ones are another run, in another folder"
        )
    if Path(directory).is_dir():
        os.chdir(directory)  # relative paths in its arguments are meant from there
    return command, arguments


def _check_typed(run: Path, directory: str, wanted: Sequence[str], typed: Sequence[str]) -> None:
    """Raises a ConfigError unless the user has typed all that may name code, where it was typed before."""
    there = Path(directory).resolve() == Path.cwd().resolve()
    if sorted(wanted) == sorted(typed) and (there or not wanted):
        return
    extra = [word for word in typed if word not in wanted]
    if extra:
        raise ConfigError(f"{extra[0]}: {run} was made without it, and goes on as it was; kd show {run} says how")
    line = resume_command(console.short_path(run) if there else run, wanted)
    raise ConfigError(
        f"{run} was made with {' '.join(wanted)}, which can run code, and no code is run because a record names it; if "
        f"you trust it, type\n{line if there else f'cd {shlex.quote(directory)} && {line}'}"
    )
