"""A callback is told of all of a training, of its end too, and can stop it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kd_cli.config.recipe import Recipe
from kd_cli.errors import KDError
from kd_cli.runs.folder import RunDir
from kd_cli.training.fit import fit
from kd_cli.training.task import Supervised
from tests.support.small import CPU, make_data, make_student, same_tensors

Told = list[tuple[str, Any]]


class Diary:
    """Writes down what it is told; it can stop the training after an epoch."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.told: Told = []
        self.stop_after = stop_after

    def begin(self, records: Any) -> None:
        self.told.append(("begin", [record["epoch"] for record in records]))

    def epoch(self, record: Any) -> None:
        self.told.append(("epoch", record["epoch"]))
        if record["epoch"] == self.stop_after:
            raise KDError("hopeless")

    def finish(self, result: Any) -> None:
        self.told.append(("finish", result["best_epoch"]))

    def close(self, status: str) -> None:
        self.told.append(("close", status))


def train(folder: Path, *callbacks: Diary) -> tuple[Any, dict[str, Any]]:
    network = make_student()
    facts = {"stage": "baseline", "seed": 0}
    with RunDir.open(folder, {}, {}, exact=True) as run:
        task = Supervised(network)
        return network, fit(task, make_data(), run, Recipe(epochs=3), facts, device=CPU, callbacks=callbacks)


def test_a_callback_is_told_of_every_epoch_of_the_result_and_of_the_end(tmp_path: Path) -> None:
    diary = Diary()
    followed, result = train(tmp_path / "followed", diary)
    epochs = [("epoch", 1), ("epoch", 2), ("epoch", 3)]
    assert diary.told == [("begin", []), *epochs, ("finish", result["best_epoch"]), ("close", "completed")]
    alone, _ = train(tmp_path / "alone")
    assert same_tensors(followed, alone)


def test_a_callback_that_raises_ends_the_training_and_a_resumed_one_hears_what_was_kept(tmp_path: Path) -> None:
    first, second = Diary(), Diary(stop_after=2)
    with pytest.raises(KDError, match="hopeless"):
        train(tmp_path / "run", first, second)
    assert first.told == [("begin", []), ("epoch", 1), ("epoch", 2), ("close", "failed")]
    assert second.told == first.told
    later = Diary()
    train(tmp_path / "run", later)
    assert later.told[:2] == [("begin", [1, 2]), ("epoch", 3)]
