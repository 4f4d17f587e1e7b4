"""Trainings of kd one after the other in this process: what is compared bit for bit, and what is timed by the epoch."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any, get_args, get_type_hints

from safetensors.torch import load_file

from kd_cli.config.base import STAGE_TRAINER, Config, Launch
from kd_cli.config.compose import compose
from kd_cli.config.recipe import Recipe
from kd_cli.experiments import experiment
from kd_cli.storage.tensors import digest_tensors
from kd_cli.training import fit

JOBS = {
    "train-teacher": experiment.train_teacher,
    "train-baseline": experiment.train_baseline,
    "distill": experiment.distill,
}
# Batch normalisation, augmentation and a last batch that is smaller: 180 images to train on, 20 to validate.
SMALL = (
    *("dataset=synthetic", "dataset.num_train=200", "dataset.num_test=60", "dataset.augment=crop_flip"),
    *("teacher=resnet14", "student=resnet8", "trainer.epochs=2", "trainer.batch_size=32", "trainer.lr=0.01"),
)
# What a loss needs beside them.
NEEDED = {
    "crld": ("dataset.repeats=2", "dataset.augment=weak_strong"),
    "deit_token": ("student=vit_tiny", "student.distilled=true", "student.patch_size=8"),
}
_TIMES = {"seconds", "images_per_second"}
_composed = cache(compose)  # the same words again and again
Edits = Mapping[str, Any]


class Broken(BaseException):
    """A training that ends where it stands, as a kill ends it."""


class Lab:
    """Runs what `kd train-teacher`, `kd train-baseline` and `kd distill` run, without the command line before it.

    Args:
        folder: for the runs.
        device: as `device=` takes it.
        words: overrides that all trainings have in common.
    """

    def __init__(self, folder: Path, device: str, words: tuple[str, ...] = SMALL) -> None:
        self.folder, self.device, self.words = folder, device, words
        self._numbers = itertools.count()
        self._known: dict[str, dict[str, Any]] = {}

    @cached_property
    def teacher(self) -> Path:
        """A run of the teacher, one epoch long."""
        return self.train("train-teacher", {"trainer.epochs": 1})

    def train(self, command: str, edits: Edits | None = None, *, loss: str = "kd", to: Path | None = None) -> Path:
        """Trains a network and returns its run's folder.

        Args:
            edits: keys of the configuration and their values; options of `trainer` that this build does not have are
                left out.
            to: the folder; one that is begun goes on.
        """
        given = {"device": self.device, **({"teacher.checkpoint": str(self.teacher)} if command == "distill" else {})}
        config = copy.deepcopy(_composed((*self.words, *NEEDED.get(loss, ()), f"loss={loss}")))
        for key, value in {**given, **(edits or {})}.items():
            put(config, key, value)
        folder = to or self.folder / f"{command}-{next(self._numbers)}"
        JOBS[command](config, Launch(command, (), frozenset(), folder.absolute(), exact=True))
        return folder

    def bits(self, loss: str, edits: Edits | None = None, *, command: str = "distill") -> dict[str, Any]:
        """All bits of a training; one that was there before is not run again."""
        key = json.dumps([command, loss, edits])
        if key not in self._known:
            self._known[key] = bits(self.train(command, edits, loss=loss))
        return self._known[key]


def put(config: Config, key: str, value: Any) -> None:
    """Sets a key of a composed configuration; of `trainer` for every stage."""
    group, _, option = key.rpartition(".")
    if group == "trainer" and option not in options():
        return
    for place in ("trainer", *STAGE_TRAINER.values()) if group == "trainer" else (group,):
        (config[place] if place else config)[option] = value


def options() -> Mapping[str, Any]:
    """The options of `trainer` that this build has, and their types."""
    hints = get_type_hints(Recipe)
    return {field.name: hints[field.name] for field in dataclasses.fields(Recipe)}


def precisions() -> tuple[str, ...]:
    """Those of this build."""
    return get_args(options()["precision"])


def bits(run: Path) -> dict[str, Any]:
    """What a complete training leaves, but for times: weights, predictions, metrics, the optimizer's state."""
    result, lines = json.loads((run / "result.json").read_text()), (run / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    last = run / "checkpoints" / f"epoch-{result['epochs']:04d}"
    return {
        "weights": result["weights_sha256"],
        "predictions": hashlib.sha256((run / "predictions.safetensors").read_bytes()).hexdigest(),
        "metrics": [{key: value for key, value in row.items() if key not in _TIMES} for row in rows],
        "training": digest_tensors(load_file(last / "training.safetensors")),
    }


@contextmanager
def broken_off(saves: int) -> Iterator[None]:
    """Trainings end at once, with no word to their folder's checkpoints, behind so many of these."""
    save, count = fit.save_checkpoint, itertools.count(1)

    def counted(*arguments: Any) -> None:
        save(*arguments)
        if next(count) == saves:
            raise Broken

    fit.save_checkpoint = counted
    try:
        yield
    finally:
        fit.save_checkpoint = save
