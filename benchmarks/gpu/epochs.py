"""Epochs of E1's teacher and student under several settings, in one process: seconds with and without validation."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.lab import Lab, options, precisions
from kd_cli import console

EXPERIMENT = ("experiment=cifar10_kl", "dataset.name=stored", "dataset.download=false")  # with a root


@dataclass(frozen=True)
class Setting:
    """One training.

    Args:
        command: as `kd` has it.
        trainer: options; a build without one of them measures nothing under this name.
        epochs: the first is not counted.
    """

    command: str
    trainer: Mapping[str, Any]
    epochs: int


SETTINGS = {
    "student": Setting("distill", {}, 6),
    "student, not deterministic": Setting("distill", {"deterministic": False}, 6),
    "student, eager": Setting("distill", {"cuda_graphs": False}, 4),
    "student, tf32": Setting("distill", {"precision": "tf32"}, 6),
    "teacher": Setting("train-teacher", {}, 4),
    "teacher, not deterministic": Setting("train-teacher", {"deterministic": False}, 4),
    "teacher, tf32": Setting("train-teacher", {"precision": "tf32"}, 5),
    "teacher, bf16": Setting("train-teacher", {"precision": "bf16"}, 5),
}


def measure(lab: Lab, setting: Setting) -> dict[str, list[float]]:
    """Seconds of each epoch: `all`, and `training` without validation."""
    edits = {f"trainer.{option}": value for option, value in setting.trainer.items()}
    run = lab.train(setting.command, {**edits, "trainer.epochs": setting.epochs}, loss="cifar10_kl")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    images = json.loads((run / "result.json").read_text())["images"]["train"]
    return {
        "all": [row["seconds"] for row in rows],
        "training": [images / row["images_per_second"] for row in rows],
    }


def possible(setting: Setting) -> bool:
    """Whether this build has all of its options."""
    return set(setting.trainer) <= set(options()) and setting.trainer.get("precision", "fp32") in precisions()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True, help="of the images")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--settings", nargs="*", choices=list(SETTINGS), default=list(SETTINGS))
    args = parser.parse_args(arguments)
    importlib.import_module("benchmarks.gpu.stored_images")  # it registers the data set
    console.setup(as_json=True)  # what it says goes to standard error
    lab = Lab(args.folder, args.device, (*EXPERIMENT, f"dataset.root={args.root}"))
    chosen = {name: SETTINGS[name] for name in args.settings if possible(SETTINGS[name])}
    report = {name: measure(lab, setting) for name, setting in chosen.items()}
    print(json.dumps(report | {"teacher_run": str(lab.teacher)}))


if __name__ == "__main__":
    main()
