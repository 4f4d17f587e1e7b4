"""kd list: what there is to choose from, and what was run."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from kd_cli import console
from kd_cli.options import ConfigDir, Json

PANEL = "Results"


class What(str, Enum):
    """What can be listed."""

    losses = "losses"
    models = "models"
    datasets = "datasets"
    trainers = "trainers"
    experiments = "experiments"
    studies = "studies"
    transfers = "transfers"
    loggers = "loggers"
    runs = "runs"


_GROUPS = {
    "losses": "loss",
    "models": "student",
    "datasets": "dataset",
    "trainers": "trainer",
    "experiments": "experiment",
    "studies": "study",
    "transfers": "transfer",
    "loggers": "logger",
}


def command(
    what: Annotated[What, typer.Argument(help="What to list.", show_default=False)],
    outputs: Annotated[Path, typer.Option(help="Where runs are.")] = Path("outputs"),
    config_dir: ConfigDir = None,
    json: Json = False,
) -> None:
    """List losses, models, datasets, trainers, experiments, studies, transfers, loggers or runs, one line each."""
    console.setup(as_json=json)
    if what is What.runs:
        _runs(outputs)
        return
    rows = list(choices(_GROUPS[what.value], config_dir or []))
    columns = ("name", "what", "source")
    console.table(what.value, columns, [[row[name] for name in columns] for row in rows], left=columns)
    console.emit({what.value: rows})


def choices(group: str, config_dirs: list[str]) -> Iterator[dict[str, str]]:
    """Every yaml of a group, with what its first comment says: `# what · source`."""
    from kd_cli.host import conf_dir
    from kd_cli.plugins import plugin_conf_dirs

    found: dict[str, Path] = {}
    for folder in (*map(Path, config_dirs), conf_dir(), *plugin_conf_dirs()):
        for path in sorted((folder / group).glob("*.yaml")):
            found.setdefault(path.stem, path)
    for name in sorted(found):
        what, _, source = _headline(found[name]).rpartition(" · ")
        yield {"name": name, "what": what or source, "source": source if what else ""}


def _headline(path: Path) -> str:
    lines = path.read_text().splitlines()
    comments = [line.removeprefix("#").strip() for line in lines if line.startswith("#") and "@package" not in line]
    return comments[0] if comments else ""


def _runs(outputs: Path) -> None:
    from kd_cli.rundir import find_runs

    rows = [_run(path) for path in find_runs(outputs)] if outputs.is_dir() else []
    columns = ("run", "status", "stage", "data", "network", "loss", "seed", "test_top1", "val_top1", "started")
    cells = [[row[name] for name in columns] for row in rows]
    console.table(f"runs in {outputs}", columns, cells, left=(*columns[:6], "started"))
    console.emit({"runs": rows})


def _run(path: Path) -> dict[str, Any]:
    from kd_cli.files import read_json
    from kd_cli.rundir import status_of

    record, result = read_json(path / "run.json") or {}, read_json(path / "result.json") or {}
    best = result.get("distilled", result)
    return {
        "run": str(path),
        "status": status_of(path),
        "stage": record.get("stage") or "comparison",
        "data": record.get("data", {}).get("name"),
        "network": record.get("model", {}).get("name"),
        "loss": record.get("loss", {}).get("name"),
        "seed": result.get("seed"),
        "test_top1": best.get("test_top1"),
        "val_top1": best.get("val_top1"),
        "started": str(record.get("started", ""))[:19],
    }
