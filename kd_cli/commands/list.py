"""kd list: what there is to choose from, and what was run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer

from kd_cli import console
from kd_cli.launch.options import ConfigDir, Count, Json

PANEL = "Results"


What = Literal["losses", "models", "datasets", "trainers", "experiments", "studies", "transfers", "loggers", "runs"]
Status = Literal["queued", "running", "completed", "failed", "diverged", "pruned", "interrupted"]
Stage = Literal["comparison", "teacher", "baseline", "distilled"]

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

# Typer reads them on Python 3.10.
_Status = Annotated[
    Optional[Status],  # noqa: UP045
    typer.Option(help="Of the runs, only those that stand so.", show_default=False),
]
_Stage = Annotated[Optional[Stage], typer.Option(help="Of the runs, only these.", show_default=False)]  # noqa: UP045
_Limit = Annotated[Count, typer.Option(min=1, help="Of the runs, only so many: the newest.", show_default=False)]


def command(
    what: Annotated[What, typer.Argument(help="What to list.", show_default=False)],
    outputs: Annotated[Path, typer.Option(help="Where runs are.")] = Path("outputs"),
    status: _Status = None,
    stage: _Stage = None,
    limit: _Limit = None,
    config_dir: ConfigDir = None,
    json: Json = False,
) -> None:
    """List losses, models, datasets, trainers, experiments, studies, transfers, loggers or runs, one line each."""
    console.setup(as_json=json)
    if what == "runs":
        _runs(outputs, status, stage, limit)
        return
    rows = list(choices(_GROUPS[what], config_dir or []))
    columns = ("name", "what", "source")
    console.table(what, columns, [[row[name] for name in columns] for row in rows], left=columns)
    console.emit({what: rows})


def choices(group: str, config_dirs: list[str]) -> Iterator[dict[str, str]]:
    """Every yaml of a group, with what its first comment says: `# what · source`."""
    from kd_cli.config.compose import conf_dir
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


def _runs(outputs: Path, status: Status | None, stage: Stage | None, limit: int | None) -> None:
    from kd_cli.runs.folder import find_records
    from kd_cli.sweeps.queue import pending

    waiting = pending(outputs)
    found = [_standing(path, record, waiting.pop(path, None)) for path, record in find_records(outputs)]
    found = [*(_standing(path, {}, word) for path, word in waiting.items()), *found]
    fitting = [run for run in found if status in (None, run["status"]) and stage in (None, run["stage"])]
    rows = [run | _numbers(Path(run["run"])) for run in fitting[:limit]]
    columns = ("run", "status", "stage", "data", "network", "loss", "seed", "test_top1", "val_top1", "started")
    cells = [[row[name] for name in columns] for row in rows]
    count = f"{len(rows):,} of {len(found):,} runs" if len(rows) < len(found) else "runs"
    console.table(f"{count} in {outputs}", columns, cells, left=(*columns[:6], "started"))
    console.emit({"runs": rows})


def _standing(path: Path, record: Mapping[str, Any], pending: str | None) -> dict[str, Any]:
    """How a run stands, by its record, or by the queue that has its job."""
    from kd_cli.report.records import mapping
    from kd_cli.runs.folder import status_of
    from kd_cli.runs.records import network_name

    stands = status_of(path, record) if record else "damaged"
    return {
        "run": str(path),
        "status": pending if pending and stands != "completed" else stands,
        "stage": record.get("stage") or ("comparison" if record else None),
        "data": mapping(record.get("data")).get("name"),
        "network": network_name(record.get("model")),
        "loss": mapping(record.get("loss")).get("name"),
        "started": str(record.get("started", ""))[:19],
    }


def _numbers(path: Path) -> dict[str, Any]:
    from kd_cli.runs.records import sound_result

    result = sound_result(path) or {}
    best = result.get("distilled", result)
    return {"seed": result.get("seed"), "test_top1": best.get("test_top1"), "val_top1": best.get("val_top1")}
