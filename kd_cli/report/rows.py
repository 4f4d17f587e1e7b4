"""The rows of results.json that are read off one run, and what sweeps and studies say of themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from kd_cli.config.recipe import Score, score_name
from kd_cli.report.collect import Collected
from kd_cli.report.compare import Comparison
from kd_cli.report.records import Run, mapping, number
from kd_cli.report.settings import brief, facts, label, told, value
from kd_cli.runs.folder import status_of
from kd_cli.runs.provenance import rerun_line
from kd_cli.runs.records import network_name, sound_record
from kd_cli.storage.files import read_json

_RESULTS = (
    *("test_top1", "test_top1_last", "val_top1", "test_nll"),
    *("best_epoch", "epochs", "parameters", "train_seconds"),
)
_CURVES = ("epoch", "train_loss", "val_loss", "train_top1", "val_top1", "lr")
_READ_BY = {
    "teacher": ("dataset", "teacher", "teacher_trainer", "trainer"),
    "baseline": ("dataset", "student", "baseline_trainer", "trainer"),
}
_PROVENANCE = ("command", "directory", "git_commit", "git_dirty", "packages", "python", "machine", "host")


def run_row(run: Run, stage: str, shared: Sequence[Comparison], axes: Sequence[str]) -> dict[str, Any]:
    """One run as results.json has it, but for its id and what its predictions say.

    Args:
        stage: what it counts as.
        shared: the comparisons that it is in.
        axes: what is compared.
    """
    settings = _settings(run, stage, shared, axes)
    name = " ".join(word for word in (label(settings), "" if run.seed is None else f"seed={run.seed}") if word)
    return {
        "id": "",
        "run": str(run.path),
        "name": f"{stage} · {name}" if name else stage,
        "stage": stage,
        "status": run.status if run.done or run.status != "completed" else "damaged",
        "error": run.record.get("error"),
        "rerun": rerun_line(run.record),
        "log": _log(run.path),
        "data": run.data.get("name"),
        "network": network_name(run.record.get("model")),
        "loss": mapping(run.record.get("loss")).get("name"),
        "seed": run.seed,
        "settings": settings,
        **{key: number(run.result.get(key)) for key in _RESULTS},
        **_chosen_by(run),
        "started": run.record.get("started"),
        "ended": run.record.get("ended"),
        **dict.fromkeys(("speed", "scores", "reliability", "per_class", "confusion", "only_answer")),
        "provenance": _provenance(run),
    }


def _chosen_by(run: Run) -> dict[str, Any]:
    """`select_by` and that score, where top-1 did not choose the epoch."""
    select_by = run.result.get("select_by", "top1")
    if select_by not in get_args(Score) or select_by == "top1":
        return {}
    name = score_name(select_by)
    return {"select_by": select_by, name: number(run.result.get(name))}


def curves(run: Run) -> dict[str, Any]:
    """`curves`: a list for each number that is on record for every epoch."""
    keys = (*_CURVES, *(key for key in _chosen_by(run) if key not in _CURVES and key != "select_by"))
    return {"curves": {key: [number(row.get(key)) for row in run.epochs] for key in keys}}


def _settings(run: Run, stage: str, shared: Sequence[Comparison], axes: Sequence[str]) -> dict[str, Any]:
    """What of the compared settings this run read, where all its comparisons agree on it."""
    found = [each.settings for each in shared]
    if not found and stage == "distilled":
        options = facts(run)
        found = [{axis: value(axis, options, run.typed) for axis in axes}]
    first = found[0] if found else {}
    agreed = {key: each for key, each in first.items() if all(other.get(key, ...) == each for other in found)}
    reads = _READ_BY.get(stage)
    return {key: each for key, each in agreed.items() if reads is None or key.partition(".")[0] in reads}


def _log(path: Path) -> str | None:
    """What a point of a sweep printed."""
    logs = [folder / "log.txt" for folder in (path, path.parent)]
    return next((str(log) for log in logs if log.exists()), None)


def _provenance(run: Run) -> dict[str, Any]:
    known = {key: run.record[key] for key in (*_PROVENANCE, "device", "threads") if key in run.record}
    return known | {
        "data_fingerprint": run.data.get("fingerprint"),
        "weights_sha256": run.weights,
        "teacher_sha256": mapping(run.record.get("teacher")).get("sha256"),
        "resumed": len(run.record.get("resumed") or []),
    }


def differences(runs: Sequence[Run], ids: Mapping[Path, str]) -> list[dict[str, Any]]:
    """The options that are not the same in all runs that read them."""
    rows = [(ids[run.path], told(run)) for run in runs]
    found = []
    for key in dict.fromkeys(key for _, row in rows for key in row):
        values: dict[str, tuple[Any, list[str]]] = {}
        for name, row in rows:
            if key in row:
                values.setdefault(json.dumps(row[key], sort_keys=True, default=str), (row[key], []))[1].append(name)
        if len(values) > 1:
            found.append({"key": key, "values": [{"value": each, "runs": names} for each, names in values.values()]})
    return found


def swept_keys(found: Collected, compared: Sequence[Comparison]) -> list[str] | None:
    """What the sweeps varied; None unless sweeps made all comparisons."""
    if not all(found.sweep_of(each.folder) for each in compared):
        return None
    keys = [sweep.get("keys") for sweep in found.sweeps.values()]
    return list(dict.fromkeys(str(key) for each in keys if isinstance(each, list) for key in each))


def study_of(found: Collected) -> dict[str, Any] | None:
    """`name`, `question` and `then` of the study that made the sweep, where one did."""
    studies = [study for sweep in found.sweeps.values() if (study := mapping(sweep.get("study")))]
    if len(studies) != 1:
        return None
    words = {key: studies[0].get(key) for key in ("name", "question", "then")}
    return {key: None if word is None else str(word) for key, word in words.items()}


def transfer_of(found: Collected) -> dict[str, Any] | None:
    """What the networks of a sweep are worth on other data, where its study tried that."""
    tried = [known for folder in found.sweeps if (known := read_json(folder / "transfer.json"))]
    return tried[0] if len(tried) == 1 else None


def not_done(found: Collected) -> list[dict[str, Any]]:
    """The points of sweeps, and other runs, that did not finish."""
    rows = [row for folder, sweep in found.sweeps.items() for row in _points(folder, sweep)]
    told_of = {row.pop("path") for row in rows}
    runs = [(each.path, each.record, each.status) for each in found.compared]
    parts = {path for each in found.compared for path in each.parts.values()}
    runs += [(run.path, run.record, run.status) for run in found.runs.values() if run.path not in parts]
    return rows + [
        {
            "point": path.name,
            "status": status,
            "error": record.get("error"),
            "log": _log(path),
            "rerun": rerun_line(record),
        }
        for path, record, status in runs
        if status != "completed" and path.resolve() not in told_of
    ]


def _points(folder: Path, sweep: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    points = sweep.get("points")
    for point in map(mapping, points if isinstance(points, list) else []):
        path = folder / str(point.get("folder"))
        if point.get("status") != "completed" and not (path / "result.json").exists():  # it may have gone on by itself
            row = {key: point.get(key) for key in ("point", "status", "error", "log", "rerun")}
            record = sound_record(path)
            if record and status_of(path, record) == "running":  # the sweep was started again
                row |= {"status": "running", "error": None}
            known = {"log": row["log"] or _log(path), "rerun": row["rerun"] or (rerun_line(record) if record else None)}
            yield row | known | {"path": path.resolve()}


def title(targets: Sequence[Path], study: Mapping[str, Any] | None) -> str:
    """Of the page."""
    if study and study.get("name"):
        return f"Study: {brief(study['name'])}"
    return ", ".join(target.resolve().name for target in targets[:3]) + (" …" if len(targets) > 3 else "")
