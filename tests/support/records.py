"""Folders of runs, written by hand with known numbers, as reports read them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from kd_cli.report.results import results_of
from kd_cli.runs.predictions import Predictions, write_predictions

TRAINERS = ("trainer", "teacher_trainer", "baseline_trainer", "distill_trainer")
CLASSES = ("ant", "bee", "cat")
CONFIG: dict[str, Any] = {
    "dataset": {"name": "synthetic", "augment": "none", "root": "somewhere"},
    "teacher": {"name": "mlp", "hidden": [64], "checkpoint": None},
    "student": {"name": "mlp", "hidden": [8]},
    "loss": {"name": "kd", "temperature": 4.0, "weight": 1.0},
    **{trainer: {"epochs": 2, "lr": 0.001, "eval_batch_size": 500} for trainer in TRAINERS},
    "device": "auto",
    "outputs": "outputs",
    "ensemble": {"size": 1, "weights": None},
}


def write_run(
    folder: Path,
    stage: str,
    top1: float | None,
    *,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    typed: Sequence[str] = (),
    record: Mapping[str, Any] | None = None,
    result: Mapping[str, Any] | None = None,
    logits: Tensor | None = None,
    labels: Tensor | None = None,
) -> Path:
    """One training.

    Args:
        top1: of the test images, percent; None: it did not finish.
        options: what differs from CONFIG: `{"loss.temperature": 1.0}`; `trainer.…` is every stage's.
        typed: its command line.
        record: more of run.json, and `result` of result.json.
        logits: of its predictions [N, K], with `labels` [N].
    """
    folder.mkdir(parents=True)
    config = config_with({"seed": seed, **(options or {})})
    model = config["teacher" if stage == "teacher" else "student"]
    facts = {
        "command": "run",
        "arguments": list(typed),
        "packages": {"kd-cli": "1", "torch": "2"},
        "device": "cpu",
        "threads": 1,
        "stage": stage,
        "seed": seed,
        "status": "interrupted" if top1 is None else "completed",
        "started": f"2026-01-01T00:{seed:02d}",
        "model": {key: value for key, value in model.items() if key != "checkpoint"},
        "data": {"name": "synthetic", "fingerprint": "f1", "classes": list(CLASSES)},
    }
    facts |= {"loss": config["loss"]} if stage == "distilled" else {}
    write(folder / "run.json", facts | dict(record or {}))
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    rows = [{"epoch": epoch, "train_loss": 1 / epoch, "val_top1": 50.0 + epoch, "lr": 0.001} for epoch in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if top1 is not None:
        write(folder / "result.json", _result(folder, stage, top1, seed, config) | dict(result or {}))
    if logits is not None and labels is not None:
        weights = json.loads((folder / "result.json").read_text())["weights_sha256"]["best"]
        write_predictions(folder, Predictions(logits, labels), weights=weights)
    return folder


def write_comparison(
    folder: Path,
    teacher: float,
    baseline: float,
    distilled: float,
    *,
    parts: Mapping[str, Any] | None = None,
    **told: Any,
) -> Path:
    """A `kd run` with three accuracies; what is told is told to all parts.

    Args:
        parts: more for one of them: `{"baseline": {"record": {…}}}`.
    """
    more = parts or {}
    for stage, top1 in (("teacher", teacher), ("baseline", baseline), ("distilled", distilled)):
        write_run(folder / stage, stage, top1, **{**told, **more.get(stage, {})})
    seed, typed = told.get("seed", 0), list(told.get("typed", ()))
    record = {"stage": None, "status": "completed", "command": "run", "arguments": typed}
    write(folder / "run.json", record | {"started": f"2026-01-01T00:{seed:02d}"})
    write(folder / "result.json", {"seed": seed, "gain": distilled - baseline})
    return folder


def write_sweep(folder: Path, keys: Sequence[str], points: Sequence[Mapping[str, Any]], **more: Any) -> None:
    """sweep.json."""
    write(folder / "sweep.json", {"command": "run", "keys": list(keys), "study": None, "points": list(points), **more})


def config_with(options: Mapping[str, Any]) -> dict[str, Any]:
    """CONFIG with some options changed."""
    config = json.loads(json.dumps(CONFIG))
    for key, value in options.items():
        group, _, name = key.partition(".")
        for section in TRAINERS if group == "trainer" else (group,):
            if name:
                config[section][name] = value
            else:
                config[section] = value
    return config


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def told_apart(right: Sequence[int], labels: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Logits [N, 3] that are right where `right` is 1 and otherwise take an image for the next class; labels [N]."""
    truth = torch.tensor(labels)
    said = torch.where(torch.tensor(right) == 1, truth, (truth + 1) % len(CLASSES))
    return 3.0 * torch.nn.functional.one_hot(said, len(CLASSES)).float(), truth


def _result(folder: Path, stage: str, top1: float, seed: int, config: Mapping[str, Any]) -> dict[str, Any]:
    digest = hashlib.sha256(str(folder).encode()).hexdigest()
    return {
        "run": str(folder),
        "test_top1": top1,
        "test_top1_last": top1 - 0.5,
        "test_nll": 0.5,
        "val_top1": top1 + 1,
        "best_epoch": 2,
        "epochs": 2,
        "parameters": 100,
        "train_seconds": 1.0,
        "images": {"train": 90, "val": 10, "test": 10_000},
        "weights_sha256": {"best": digest, "last": digest},
        "stage": stage,
        "seed": seed,
    } | ({"loss": config["loss"]["name"], "weight": config["loss"]["weight"]} if stage == "distilled" else {})


def report(*targets: str | Path) -> dict[str, Any]:
    return results_of([Path(target) for target in targets], ["report"])


def warned(results: dict[str, Any], *words: str) -> list[str]:
    """The warnings with all of these words."""
    return [text for text in results["warnings"] if all(word in text for word in words)]


def three_seeds(folder: Path, **told: Any) -> None:
    """Gaps of 5, gains of 1, 2 and 3."""
    for seed in range(3):
        write_comparison(folder / f"seed={seed}", 95.0 + seed, 90.0 + seed, 91.0 + 2 * seed, seed=seed, **told)
