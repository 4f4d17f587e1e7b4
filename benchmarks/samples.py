"""From programs that have ended to samples: which of their seconds a row is about."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.measure import Done, Sample


def kd_job(done: Done) -> Sample:
    """A run of kd with its start-up, its validation, its checkpoints and its test."""
    return Sample(done.seconds, _trained(done.report), done.peak_mb)


def kd_sweep(done: Done) -> Sample:
    """As `kd_job`, for all points together."""
    return Sample(done.seconds, sum(map(_trained, done.report["points"])), done.peak_mb)


def kd_epoch(done: Done) -> Sample:
    """An epoch of training, without its validation: the median of all epochs but the first."""
    path, images = Path(done.report["run"], "metrics.jsonl"), done.report["images"]["train"]
    records = [json.loads(line) for line in path.read_text().splitlines()]
    seconds = median(images / record["images_per_second"] for record in records[1:])
    return Sample(seconds, _trained(done.report), done.peak_mb)


def job(done: Done) -> Sample:
    """An opponent's run with its start-up and its test."""
    return Sample(done.seconds, _passed(done.report), done.peak_mb)


def epoch(done: Done) -> Sample:
    """An opponent's epoch of training, loading included: the median of all epochs but the first."""
    return Sample(median(done.report["epoch_seconds"][1:]), _passed(done.report), done.peak_mb)


def extrapolated(runs: Sequence[Done], points: int) -> Sample:
    """What all points of a sweep would take an opponent in one program: one start-up, and for each point its work."""
    start_up = fmean(run.seconds - run.report["seconds"] for run in runs)
    seconds = start_up + points * fmean(run.report["seconds"] for run in runs)
    peaks = [run.peak_mb for run in runs if run.peak_mb is not None]
    return Sample(seconds, points * _passed(runs[0].report), max(peaks, default=None))


def _trained(report: Mapping[str, Any]) -> int:
    """Images that a run of kd passed through training."""
    return int(report["images"]["train"] * report["epochs"])


def _passed(report: Mapping[str, Any]) -> int:
    """Images that an opponent passed through training."""
    return int(report["images"] * len(report["losses"]))
