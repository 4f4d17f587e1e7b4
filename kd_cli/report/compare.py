"""Comparisons: a distilled student, the baseline of the same seed, and the teacher."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import hypot
from pathlib import Path
from typing import Any

from kd_cli.metrics.significance import Recovered, accuracy_error, gain_over, recovered_share
from kd_cli.report.collect import Collected, teacher_digests
from kd_cli.report.records import Run, mapping, number
from kd_cli.report.settings import facts, recipe


@dataclass
class Comparison:
    """Three runs that belong together.

    Args:
        folder: of the `kd run` that made them, or of the distilled student that a loose baseline was found for.
        whole: whether that folder is a `kd run`.
        distilled: the student.
        baseline: the same student without a teacher; None where there is none.
        teacher: the first one where there are several.
        typed: the overrides of its command line.
        sweep: the folder of the sweep that it is a point of.

    Attributes:
        facts: all options that matter for one of its runs; where they say different things, those of the student.
        settings: the values of what is compared.
    """

    folder: Path
    whole: bool
    distilled: Run
    baseline: Run | None
    teacher: Run | None
    typed: Mapping[str, str]
    sweep: Path | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        stages = {"teacher": self.teacher, "baseline": self.baseline, "distilled": self.distilled}
        # A run that is missing is taken to have been told what the student's command line told all stages.
        told = [facts(run or replace(self.distilled, record={"stage": stage}), stage) for stage, run in stages.items()]
        self.facts = {key: each for options in told for key, each in options.items()}

    @property
    def runs(self) -> list[Run]:
        """Those that there are."""
        return [run for run in (self.teacher, self.baseline, self.distilled) if run is not None]

    @property
    def seed(self) -> int | None:
        return self.distilled.seed

    @property
    def gain(self) -> float | None:
        """Percentage points of test top-1."""
        return _points(self.distilled, self.baseline)

    @property
    def gap(self) -> float | None:
        """By how much the teacher is better than the baseline."""
        return _points(self.teacher, self.baseline)

    @property
    def recovered(self) -> Recovered | None:
        """The share of the gap, where it is more than what the choice of test images may do."""
        if self.gain is None or self.gap is None:
            return None
        return recovered_share([self.gain], [self.gap], noise=self.noise)

    @property
    def noise(self) -> float:
        """What teacher and baseline may differ by because of the test images alone, percentage points at 95 %."""
        errors = [
            accuracy_error(run.result["test_top1"], images)
            for run in (self.teacher, self.baseline)
            if run is not None and run.done and (images := test_images(run))
        ]
        return 1.96 * hypot(*errors)

    @property
    def recipe_differences(self) -> dict[str, list[Any]]:
        """What the baseline's and the distilled student's training do not share."""
        if self.baseline is None:
            return {}
        one, other = recipe(self.baseline), recipe(self.distilled)
        return {key: [one.get(key), other.get(key)] for key in one | other if one.get(key) != other.get(key)}


def comparisons(found: Collected) -> list[Comparison]:
    """All comparisons, those that were run as such and those that loose runs make together; the oldest first."""
    by_weights = {run.weights: run for run in found.runs.values() if run.weights}
    whole, used = list(_whole(found, by_weights)), parts_of_comparisons(found)
    students = [run for run in found.runs.values() if run.record.get("stage") == "distilled" and run.done]
    loose = [run for run in students if run.path not in used and not _weightless(run)]
    baselines: dict[str, list[Run]] = {}
    for run in found.runs.values():
        if run.done and (run.stage == "baseline" or _weightless(run)):
            baselines.setdefault(pairing(run), []).append(run)
    made = [*whole, *(_loose(run, baselines.get(pairing(run), []), by_weights, found) for run in loose)]
    readable = [each for each in made if all(run.config for run in each.runs)]
    return sorted(readable, key=lambda each: each.distilled.started)


def _whole(found: Collected, by_weights: Mapping[str, Run]) -> Iterator[Comparison]:
    for each in found.compared:
        parts = {name: found.runs[path] for name, path in each.parts.items()}
        distilled = parts.get("distilled")
        if distilled is None or not distilled.done:
            continue
        own = {run.weights: run for run in parts.values() if run.weights}  # the same weights may be another run's, too
        teacher = parts.get("teacher") or _taught_by(distilled, {**by_weights, **own})
        typed = Run(each.path, each.record).typed
        yield Comparison(
            each.path, True, distilled, parts.get("baseline"), teacher, typed, found.sweep_folder(each.path)
        )


def _loose(run: Run, twins: Sequence[Run], by_weights: Mapping[str, Run], found: Collected) -> Comparison:
    """With the baseline of its own sweep, or else the newest."""
    sweep = found.sweep_folder(run.path)

    def beside(other: Run) -> bool:
        return other.path.parent == run.path.parent if sweep is None else found.sweep_folder(other.path) == sweep

    twin = max(twins, key=lambda each: (beside(each), each.started), default=None)
    return Comparison(run.path, False, run, twin, _taught_by(run, by_weights), run.typed, sweep)


def pairing(run: Run) -> str:
    """The same for a student and the baseline that it may be compared with."""
    data = {key: run.data.get(key) for key in ("fingerprint", "preprocessing")}
    return json.dumps([run.seed, data, run.record.get("model"), recipe(run)], sort_keys=True, default=str)


def acts_as(run: Run, used: set[Path]) -> str:
    """A run's stage; a loose student whose loss has no weight is a baseline."""
    return "baseline" if run.path not in used and _weightless(run) else run.stage


def _weightless(run: Run) -> bool:
    return run.record.get("stage") == "distilled" and number(run.result.get("weight")) == 0


def _taught_by(run: Run, by_weights: Mapping[str, Run]) -> Run | None:
    return next((by_weights[digest] for digest in teacher_digests(run) if digest in by_weights), None)


def parts_of_comparisons(found: Collected) -> set[Path]:
    """The folders of the runs that belong to a `kd run`."""
    return {path for each in found.compared for path in each.parts.values()}


def _points(one: Run | None, other: Run | None) -> float | None:
    if one is None or other is None or not (one.done and other.done):
        return None
    return gain_over(other.result, one.result)


def test_images(run: Run) -> int | None:
    """How many images it was tested on."""
    images = number(mapping(run.result.get("images")).get("test"))
    return int(images) if images else None
