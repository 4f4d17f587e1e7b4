"""What the networks of a report cost, measured now on this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kd_cli.errors import KDError
from kd_cli.storage.files import read_json

_BATCHES = (1, 64)  # latency is that of one image, images per second those of the larger batch
_SECONDS = 1.0  # of passes for each network and batch size


def add_speed(results: dict[str, Any]) -> None:
    """Fills in `speed` of every tested run; a network that cannot be built is named in a warning."""
    from kd_cli.evaluation import efficiency
    from kd_cli.machine import pick_device
    from kd_cli.metrics import cost as profiling

    tested = [run for run in results["runs"] if run["test_top1"] is not None]
    device = pick_device("cpu" if {run["provenance"].get("device") for run in tested} == {"cpu"} else "auto")
    alike = _alike(tested)
    subjects, measured = [], []
    for runs in alike:
        try:
            (subject,) = efficiency.open_subjects([runs[0]["run"]], efficiency.Shape(), known=(), device=device)
        except KDError as error:
            results["warnings"].append(f"{runs[0]['run']} could not be measured: {error}")
            continue
        subjects.append(subject)
        measured.append(runs)
    if not subjects:
        return
    with profiling.threads(None) as count:
        rows = efficiency.measure(subjects, batch_sizes=_BATCHES, seconds=_SECONDS, device=device)["networks"]
    results["measured_on"] = profiling.machine(device, count)
    for row, runs in zip(rows, measured, strict=True):
        for run in runs:
            run["speed"] = _speed(row)


def _alike(runs: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Runs by their network: it costs the same, whatever it was taught."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        record = read_json(Path(run["run"]) / "run.json") or {}
        grafted = (record.get("loss"), record.get("teacher")) if record.get("grafted") else None
        data = record.get("data") or {}
        facts = record.get("model"), grafted, data.get("image_shape"), len(data.get("classes") or [])
        found.setdefault(json.dumps(facts, sort_keys=True), []).append(run)
    return list(found.values())


def _speed(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "flops_per_image": row["flops_per_image"],
        "latency_ms": row["speed"][0]["median_ms"],
        "images_per_second": row["speed"][-1]["images_per_second"],
        "bytes": row["bytes"]["fp32"],
    }
