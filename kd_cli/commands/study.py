"""kd study: one question, one sweep, one answer."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from kd_cli import console
from kd_cli.config.overrides import override_key
from kd_cli.errors import ConfigError, KDError, suggest
from kd_cli.launch.hydra_command import DRY_RUN, launch, present_dry_run
from kd_cli.launch.options import ConfigDir, Detach, DryRun, Json, Words

PANEL = "Experiments"


def _complete(incomplete: str) -> list[str]:
    from kd_cli.commands.list import choices

    return [choice["name"] for choice in choices("study", []) if choice["name"].startswith(incomplete)]


def command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="temperature, weights, …: kd list studies",
            show_default=False,
            autocompletion=_complete,
        ),
    ],
    overrides: Annotated[
        Words, typer.Argument(metavar="OVERRIDE", help="As of kd run -m: seed=0,1,2,3,4 dataset=…", show_default=False)
    ] = None,
    controls: Annotated[
        bool, typer.Option("--controls", help="Also what each setting's controls gain: smoothed labels, more epochs, …")
    ] = False,
    dry_run: DryRun = False,
    detach: Detach = False,
    config_dir: ConfigDir = None,
    json: Json = False,
) -> None:
    """Answer a question about distillation: a sweep over seeds, its report, a picture and the verdict."""
    console.setup(as_json=json)
    from kd_cli.commands.list import choices
    from kd_cli.launch.hydra_app import run_sweep
    from kd_cli.report.plots.files import check_drawing
    from kd_cli.sweeps.point import PENDING, check_points
    from kd_cli.sweeps.summary import list_pending, list_unfinished

    check_drawing("kd study")  # it ends with a report: nothing is trained in vain
    known = [choice["name"] for choice in choices("study", config_dir or [])]
    if name not in known:
        raise ConfigError(f"there is no study {name!r}{suggest(name, known)}; kd list studies says what they ask")
    _check_loss(name, overrides or [], config_dir or [])
    from kd_cli.commands.run import JOB
    from kd_cli.config.controls import CONTROLS, NONE

    folders = [word for folder in config_dir or [] for word in ("--config-dir", folder)]
    arguments = ["--multirun", *folders, f"study={name}", *(overrides or [])]
    arguments += [f"control={','.join((NONE, *CONTROLS))}"] if controls else []
    if dry_run:
        launch("run", arguments, DRY_RUN, present_dry_run, writes=False)
        return
    swept = run_sweep(JOB, "run", arguments, detach=detach)
    points = swept.points
    stand = {point["status"] for point in points}
    if "completed" in stand and not (detach and stand & {*PENDING}):
        assert swept.folder is not None
        _answer(points, swept.folder)
    else:
        console.emit({"points": points})
    list_unfinished(points)
    list_pending(points)
    check_points(points)


def _check_loss(name: str, overrides: Sequence[str], config_dirs: Sequence[str]) -> None:
    """A study that sets options of its loss cannot be asked about a loss without them."""
    from kd_cli.config.compose import compose

    needed = compose([f"study={name}"], config_dirs=config_dirs)["study"].get("loss")
    others = [word for word in overrides if override_key(word) == "loss" and word != f"loss={needed}"]
    if needed and others:
        raise ConfigError(
            f"{others[0]} is not possible: study={name} sets options that only loss={needed} has; leave it out, or "
            "type the sweep itself: kd run -m, then kd report"
        )


def _answer(points: Sequence[Mapping[str, Any]], folder: Path) -> None:
    from kd_cli.commands.report import present
    from kd_cli.report.write import write
    from kd_cli.runs.sweep_folder import read_sweep

    sweep, problem = read_sweep(folder), None
    study = sweep["study"]
    if str(study["then"]).startswith("transfer="):
        problem = _transfer(folder, [folder / point["folder"] for point in sweep["points"]], study["then"])
    results, paths = write([folder], folder, command=sys.argv[1:], speed=study["then"] == "profile")
    paths |= _draw(results, study["picture"], folder)
    console.say(f"\n{study['question']}", style="bold")
    present(results, paths)
    console.emit({"points": points, **results, "files": {file: str(path) for file, path in paths.items()}})
    if problem is not None:
        raise problem


def _draw(results: Mapping[str, Any], picture: str, folder: Path) -> dict[str, Path]:
    """The study's picture: one of the report's charts."""
    from kd_cli.report.charts import charts_of
    from kd_cli.report.plots.files import save_picture
    from kd_cli.report.readable import readable

    charts = {chart.id: chart for chart in charts_of(readable(results))}
    if picture not in charts:
        console.notice(f"study.picture: there is no chart {picture!r} of these runs{suggest(picture, charts)}")
        return {}
    paths = {name: folder / name for name in ("study.png", "study.svg")}
    for path in paths.values():
        save_picture(charts[picture], path)
    return paths


def _transfer(folder: Path, points: Sequence[Path], transfer: str) -> KDError | None:
    """Tries every network of the study on other data; the report finds what came of it in transfer.json.

    What goes wrong is returned, since what was trained has its report all the same.
    """
    from kd_cli.commands.transfer import transfer_runs
    from kd_cli.runs.folder import expand
    from kd_cli.storage.files import write_json

    runs = [run for point in sorted(points) if (point / "result.json").exists() for run in expand(point)]
    try:
        write_json(folder / "transfer.json", transfer_runs(runs, [transfer]))
    except KDError as error:
        hint = "type \"study.then='transfer=NAME'\" (kd list transfers); nothing is trained again"
        return type(error)(f"study.then={transfer}: {error}\n{hint}")
    return None
