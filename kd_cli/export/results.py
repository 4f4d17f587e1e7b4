"""What is on record about how good a saved network is, and about the same experiment with other seeds."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from kd_cli.runs.identity import config_digest
from kd_cli.runs.records import run_result, sound_record, sound_result
from kd_cli.saved.network import Saved


def recorded_results(saved: Saved) -> dict[str, Any]:
    """The run's result.json, with `weights` saying whose accuracy is that of the saved network: best, last or none."""
    run = saved.source.run
    result = (run_result(run) or {}) if run else {}
    digests = result.get("weights_sha256", {})
    weights = next((name for name in ("best", "last") if digests.get(name) == saved.source.sha256), None)
    key = {"best": "test_top1", "last": "test_top1_last", None: ""}[weights]
    return {
        "weights": weights,
        "test_top1": result.get(key),
        "val_top1": saved.source.val_top1,
        "recorded": result,
        "seeds": _seeds(saved) if result else None,
    }


def _seeds(saved: Saved) -> dict[str, Any] | None:
    """Mean and standard deviation of the runs beside this one that differ from it in their seed alone."""
    run = saved.source.run
    assert run is not None
    run = run.resolve()
    inside = (run.parent / "run.json").exists()  # a part of a comparison
    point, part = (run.parent, run.name) if inside else (run, "")
    tops: dict[int, float] = {}
    for other in [point, *sorted(point.parent.iterdir())]:
        seed = (sound_result(other) or {}).get("seed")
        if seed is not None and seed not in tops and _same_but_seed(saved, other / part, seed):
            tops[seed] = (sound_result(other / part) or {})["test_top1"]
    if len(tops) < 2:
        return None
    return {"test_top1": dict(sorted(tops.items())), "mean": fmean(tops.values()), "std": stdev(tops.values())}


def _same_but_seed(saved: Saved, other: Path, seed: int) -> bool:
    """Whether a completed run has this one's configuration, but for the seed, and its data."""
    record = sound_record(other) or {}
    here = saved.source.record
    wanted = config_digest({**saved.recorded, "seed": seed})
    return (
        record.get("config_digest") == wanted
        and record.get("data", {}).get("fingerprint") == here["data"]["fingerprint"]
        and record.get("stage") == here.get("stage")
        and record.get("status") == "completed"
        and (other / "result.json").exists()
    )
