"""An epoch of E1's student on as many images as CIFAR-10 has, and the checkpoint after it: what does it add?"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.loop import BATCH, CPU, LR, SEED
from kd_cli.config.recipe import Recipe
from kd_cli.data.base import Data, Raw
from kd_cli.data.common import Common
from kd_cli.experiments.build import build_network
from kd_cli.machine import keep_freed_memory
from kd_cli.runs.folder import RunDir
from kd_cli.training.fit import save_checkpoint
from kd_cli.training.task import Supervised
from kd_cli.training.trainer import Trainer

IMAGES, CLASSES = 50_000, 10


def random_images() -> Data:
    """What is in the images does not matter here."""
    pixels, labels = torch.randint(256, (IMAGES, 32, 32, 3), dtype=torch.uint8), torch.arange(IMAGES) % CLASSES
    names = tuple(map(str, range(CLASSES)))
    return Data("random", Raw(pixels, labels, pixels[:100], labels[:100], names), Common(val_fraction=0.0))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args(arguments)
    keep_freed_memory()  # as kd does
    data = random_images()
    options = {"name": "cnn", "blocks": [[16], [16]], "hidden": [256], "dropout": 0.1, "padding": 1}
    network = build_network(options, "student", SEED, data, CPU)
    trainer = Trainer(Recipe(epochs=args.epochs, batch_size=BATCH, lr=LR), seed=SEED, device=CPU)
    report: dict[str, list[float]] = {"epoch": [], "checkpoint": []}
    with tempfile.TemporaryDirectory() as folder, RunDir.open(Path(folder), {}, {}, exact=True) as run:
        for record in trainer.epochs(Supervised(network), data):
            start = time.perf_counter()
            save_checkpoint(run, trainer)
            report["checkpoint"].append(time.perf_counter() - start)
            report["epoch"].append(IMAGES / record["images_per_second"])
    print(json.dumps(report))


if __name__ == "__main__":
    main()
