"""A Typer command that hosts Hydra: the options that all training commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from kd_cli import console
from kd_cli.errors import ConfigError
from kd_cli.launch.options import HYDRA, ConfigDir, Detach, DryRun, Json

if TYPE_CHECKING:
    from kd_cli.sweeps.summary import Swept

DRY_RUN = "kd_cli.experiments.dry_run:dry_run"


class Cfg(str, Enum):
    """What --cfg prints."""

    job = "job"
    hydra = "hydra"
    all = "all"


class Info(str, Enum):
    """What --info prints."""

    all = "all"
    config = "config"
    defaults = "defaults"
    defaults_tree = "defaults-tree"
    plugins = "plugins"
    searchpath = "searchpath"


def _complete(context: typer.Context, incomplete: str) -> list[str]:
    from kd_cli.launch.completion import complete

    name = str(context.info_name)
    folders = list(context.params.get("config_dir") or [])
    return complete(name, list(context.params.get("overrides") or []), incomplete, folders)


_Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045 - Typer reads it on Python 3.10
    typer.Argument(
        metavar="OVERRIDE",
        show_default=False,
        autocompletion=_complete,
        help="Hydra overrides: loss=kd loss.temperature=4 +key=1 ~key; values a,b,c with -m.",
    ),
]
_Multirun = Annotated[bool, typer.Option("--multirun", "-m", help="Run every point of a sweep.", rich_help_panel=HYDRA)]
_Cfg = Annotated[
    Optional[Cfg],  # noqa: UP045
    typer.Option("--cfg", "-c", help="Print the configuration and stop.", rich_help_panel=HYDRA, show_default=False),
]
_Resolve = Annotated[bool, typer.Option("--resolve", help="With --cfg: resolve interpolations.", rich_help_panel=HYDRA)]
_Package = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--package", "-p", help="With --cfg: only this part.", rich_help_panel=HYDRA, show_default=False),
]
_Info = Annotated[
    Optional[Info],  # noqa: UP045
    typer.Option("--info", "-i", help="Print what Hydra knows and stop.", rich_help_panel=HYDRA, show_default=False),
]
ConfigName = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--config-name", "-cn", help="Another primary configuration.", rich_help_panel=HYDRA, show_default=False
    ),
]


def hydra_command(
    name: str,
    doc: str,
    job: str,
    present: Callable[[Mapping[str, Any]], None],
    *,
    trains: bool = True,
) -> Callable[..., None]:
    """The Typer callback of a training command.

    Args:
        name: the command: `train-teacher`.
        doc: its help.
        job: what one run does, as `run_once` takes it; its record is what `--json` prints.
        present: shows a record to a person.
        trains: whether the job does; one that does not is its own dry run.
    """

    def command(
        overrides: _Overrides = None,
        multirun: _Multirun = False,
        cfg: _Cfg = None,
        resolve: _Resolve = False,
        package: _Package = None,
        info: _Info = None,
        config_dir: ConfigDir = None,
        config_name: ConfigName = None,
        dry_run: DryRun = not trains,
        detach: Detach = False,
        json: Json = False,
    ) -> None:
        console.setup(as_json=json)
        if detach and not multirun:
            raise ConfigError("--detach submits the points of a sweep: type -m, too")
        if (cfg or info) and (json or multirun or (dry_run and trains)):
            raise ConfigError(
                "--cfg and --info show one configuration as yaml: leave --json, --multirun and --dry-run out"
            )
        arguments = ["--multirun"] if multirun else []
        for option, value in (("--cfg", cfg), ("--info", info)):
            arguments += [option, value.value] if value else []
        arguments += ["--resolve"] if resolve else []
        for option, text in (("--package", package), ("--config-name", config_name)):
            arguments += [option, text] if text else []
        for folder in config_dir or []:
            arguments += ["--config-dir", folder]
        chosen = (DRY_RUN, present_dry_run) if dry_run and trains else (job, present)
        launch(name, [*arguments, *(overrides or [])], *chosen, writes=not dry_run, detach=detach)

    command.__doc__ = doc
    return command


def launch(
    name: str,
    arguments: list[str],
    job: str,
    present: Callable[[Mapping[str, Any]], None],
    *,
    writes: bool = True,
    extends: Path | None = None,
    detach: bool = False,
) -> None:
    """Runs a training command and shows what came of it.

    Args:
        writes: whether the job does.
        detach: submit the points of a sweep, and do not wait for them.
        extends: the finished run that goes on with more epochs.

    Raises:
        KDError: a run failed, or a point of a sweep did.
    """
    from kd_cli.launch.hydra_app import is_sweep, run_once, run_sweep

    if is_sweep(arguments):
        _present_sweep(run_sweep(job, name, arguments, writes=writes, detach=detach))
    elif result := run_once(job, name, arguments, extends):
        present(result)
        console.emit(result)


def _present_sweep(swept: Swept) -> None:
    from kd_cli.sweeps import point, summary

    summary.summarize(swept.points, swept.folder)
    summary.present_search(swept.found)
    summary.list_unfinished(swept.points)
    summary.list_pending(swept.points)
    console.emit({"points": swept.points} | ({"optuna_results": swept.found} if swept.found else {}))
    point.check_points(swept.points)


def present_dry_run(result: Mapping[str, Any]) -> None:
    """What a command would train, and where."""
    if result["status"] == "completed":
        console.say(f"{result['run']} is complete already; nothing would be trained")
        return
    if "teachers" in result:
        top1 = result["teacher_val_top1"]
        accuracy = "" if top1 is None else f", {top1:.2f} % on validation"
        console.say(f"teacher    {', '.join(map(console.short_path, result['teachers']))}{accuracy}")
    for training in result["trainings"]:
        console.say(f"{training['name']:<10} {_work(training)}")
    if "devices" in result:
        console.say(f"devices    {result['devices']} processes, each with its share of every batch; as one would")
    place = console.short_path(result["run"]) if result["run"] else f"a new folder in {result['outputs']}"
    console.say(
        f"Nothing speaks against it. It would go into {place}; nothing was trained, no run was written.", style="bold"
    )


def _work(training: Mapping[str, Any]) -> str:
    if training["completed"]:
        return "is complete already"
    done = f", {training['epochs_done']} of them done" if training["epochs_done"] else ""
    taught = f", taught by {' + '.join(training['taught_by'])}" if training["taught_by"] else ""
    return (
        f"{training['network']}: {training['epochs']} epochs{done} of {training['steps']} batches of "
        f"{training['batch_size']} images{taught}"
    )


def present_one(result: Mapping[str, Any]) -> None:
    """What came of one network."""
    from kd_cli.config.recipe import score_text

    val = "" if result["val_top1"] is None else f", {score_text(result, result.get('select_by', 'top1'))}"
    console.say()
    console.say(
        f"{result['stage']}: {result['test_top1']:.2f} % of the test images at epoch {result['best_epoch']}{val}; "
        f"{result['test_top1_last']:.2f} % at the last epoch, {result['epochs']}. {result['parameters']:,} parameters.",
        style="bold",
    )
    console.say(
        f"{result['train_seconds']:.0f} seconds of training; everything is in {console.short_path(result['run'])}"
    )
