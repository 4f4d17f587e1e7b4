"""What is in the predictions of runs: scores, reliability, confusion, the accuracy of each class, agreement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from kd_cli.metrics import scores
from kd_cli.report.compare import Comparison
from kd_cli.report.records import Run
from kd_cli.runs.predictions import FILE, Predictions, read_predictions

_MOST_RUNS = 300  # judged in detail; more would take minutes
_MOST_COUNTS = 200_000  # numbers in the confusion matrices of single runs; those of groups come on top

_read = lru_cache(maxsize=16)(read_predictions)  # a teacher is held against several students


class Judge:
    """Judges runs by their predictions.

    Args:
        runs: all of them, the newest last.
        compared: whose runs come first where there are too many.

    Attributes:
        warnings: which runs could not be judged, and why.
    """

    def __init__(self, runs: Sequence[Run], compared: Sequence[Comparison] = ()) -> None:
        done = [run for run in runs if run.done]
        there = [run for run in done if (run.path / FILE).exists()]
        self.warnings: list[str] = []
        wanted = [run.path for each in reversed(compared) for run in each.runs] + [run.path for run in reversed(runs)]
        known = {run.path for run in there}
        self._there = set([path for path in dict.fromkeys(wanted) if path in known][:_MOST_RUNS])
        self._agreed: dict[tuple[Path, Path], dict[str, float | None] | None] = {}
        if len(there) < len(done):
            without = f"{len(done) - len(there):,} of {len(done):,} tested runs have no {FILE}"
            self.warnings.append(f"{without}: nothing is said of their calibration, classes and agreement")
        if len(there) > _MOST_RUNS:
            self.warnings.append(
                f"only {_MOST_RUNS} of {len(there):,} runs were judged by their predictions: the newest comparisons"
            )

    def judge(self, runs: Sequence[Run]) -> dict[Path, dict[str, Any]]:
        """For each run that can be judged `scores`, `reliability`, `per_class`, `confusion` (None if too large), …"""
        return {run.path: found for run in runs if (found := self._judged(run)) is not None}

    def agreement(self, student: Run | None, teacher: Run | None) -> dict[str, float | None] | None:
        """As `scores.agreement`; None where one of them has no predictions of the same images."""
        if student is None or teacher is None:
            return None
        pair = student.path, teacher.path
        if pair not in self._agreed:
            self._agreed[pair] = self._agreement(student, teacher)
        return self._agreed[pair]

    def _agreement(self, student: Run, teacher: Run) -> dict[str, float | None] | None:
        one, other = self.predictions(student), self.predictions(teacher)
        if one is None or other is None or one.logits.shape != other.logits.shape:
            return None
        alike = one.labels.equal(other.labels)
        return scores.agreement(one.logits, other.logits, one.labels) if alike else None

    def predictions(self, run: Run | None) -> Predictions | None:
        """What a run said, if that is on record and whole."""
        return _read(run.path, weights=run.weights) if run is not None and run.path in self._there else None

    def _judged(self, run: Run) -> dict[str, Any] | None:
        said = self.predictions(run)
        if said is None:
            if run.path in self._there:
                self._there.discard(run.path)
                self.warnings.append(
                    f"{run.path / FILE} is damaged or of other weights: nothing is said of what is in it"
                )
            return None
        counts, names = scores.confusion(*said), class_names(run, said.logits.shape[1])
        return {
            "scores": {key: each for key, each in scores.judge(*said).items() if key != "images"},
            "reliability": scores.reliability(said.logits.double().softmax(dim=1), said.labels),
            "per_class": scores.per_class(counts, names),
            "confusion": counts.tolist(),
            "only_answer": scores.only_answer(*said, names),
        }


def trim(judged: Mapping[Path, dict[str, Any]]) -> str | None:
    """Leaves single runs' confusion matrices out where they would make too large a file; says so."""
    if sum(len(each["confusion"]) ** 2 for each in judged.values()) <= _MOST_COUNTS:
        return None
    for each in judged.values():
        each["confusion"] = None
    return "the confusion matrices of single runs are left out for their size; those over seeds are there"


def class_names(run: Run, classes: int) -> list[str]:
    """As recorded, or else numbers."""
    names = run.data.get("classes")
    known = names if isinstance(names, list) and len(names) == classes else range(classes)
    return [str(name) for name in known]


def with_teachers(judge: Judge, comparisons: Sequence[Comparison]) -> dict[Path, dict[str, float | None] | None]:
    """Each student's agreement with the teacher of its comparisons; None where it has different teachers in them."""
    teachers: dict[Path, dict[Path, Run]] = {}
    students: dict[Path, Run] = {}
    for each in comparisons:
        for run in (each.baseline, each.distilled):
            if run is not None and each.teacher is not None:
                students[run.path] = run
                teachers.setdefault(run.path, {})[each.teacher.path] = each.teacher
    return {
        path: judge.agreement(students[path], next(iter(found.values()))) if len(found) == 1 else None
        for path, found in teachers.items()
    }
