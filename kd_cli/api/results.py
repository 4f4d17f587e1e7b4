"""What came of a call: the fields are those of the JSON that the command line prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Trained:
    """One network that was trained. Accuracies in percent; the epoch is chosen on the validation images.

    Args:
        run: its folder.
        stage: `teacher`, `baseline`, `distilled`, or the name of its part of a comparison.
        seed: of its training.
        test_top1, test_top1_last: of the test images, at the chosen epoch and at the last one.
        val_top1: of the validation images, at the chosen epoch; None where there are none.
        best_epoch, epochs: the chosen one, and how many there were.
        parameters: numbers that it learned.
        test_nll: mean negative log-likelihood of the test images.
        test_correct, test_correct_last: how many of the test images.
        train_seconds: of all epochs.
        images: how many there are of each part.
        weights_sha256: of the files of the `best` and the `last` epoch.
        loss, weight: of a distilled student.
    """

    run: Path
    stage: str
    seed: int
    test_top1: float
    test_top1_last: float
    val_top1: float | None
    best_epoch: int
    epochs: int
    parameters: int
    test_nll: float
    test_correct: int
    test_correct_last: int
    train_seconds: float
    images: Mapping[str, int]
    weights_sha256: Mapping[str, str]
    loss: str | None = None
    weight: float | None = None


@dataclass(frozen=True)
class Comparison:
    """What `kd run` trained.

    Args:
        run: its folder.
        seconds: that it took.
        seed: of baseline and student.
        gain: distilled − baseline, percentage points of the test images.
        networks: by name: `teacher` where one teaches, `baseline`, `distilled`, and what a procedure adds.
        recipe_differences: what the baseline and the student do not share: option → both values.
    """

    run: Path
    seconds: float
    seed: int
    gain: float
    networks: Mapping[str, Trained]
    recipe_differences: Mapping[str, list[Any]] = field(default_factory=dict)

    @property
    def teacher(self) -> Trained | None:
        return self.networks.get("teacher")

    @property
    def baseline(self) -> Trained:
        return self.networks["baseline"]

    @property
    def distilled(self) -> Trained:
        return self.networks["distilled"]


def trained(record: Mapping[str, Any]) -> Trained:
    """From the record of one training."""
    return Trained(**_of(Trained, record))


def compared(record: Mapping[str, Any]) -> Comparison:
    """From the record of a comparison."""
    networks = {
        name: trained(part) for name, part in record.items() if isinstance(part, Mapping) and "test_top1" in part
    }
    return Comparison(**_of(Comparison, record), networks=networks)


def _of(kind: type, record: Mapping[str, Any]) -> dict[str, Any]:
    known = {each.name: record[each.name] for each in fields(kind) if each.name in record}
    return known | {"run": Path(record["run"])}
