"""kd's training loop beside the same computation written out: what does everything around a step cost?"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.script import MEAN, STD
from kd_cli.config.recipe import Recipe
from kd_cli.data.base import Data, load_dataset
from kd_cli.data.image_folder import image_folder
from kd_cli.data.sampling import permutation
from kd_cli.experiments.build import build_network
from kd_cli.machine import keep_freed_memory
from kd_cli.training.task import Supervised
from kd_cli.training.trainer import Trainer

BATCH, LR, SEED, CPU = 128, 1e-3, 42, torch.device("cpu")
Epochs = Iterator[tuple[float, float]]  # seconds and mean loss


def kd_epochs(network: nn.Module, data: Data, epochs: int) -> Epochs:
    """kd's own loop."""
    trainer = Trainer(Recipe(epochs=epochs, batch_size=BATCH, lr=LR), seed=SEED, device=CPU)
    for record in trainer.epochs(Supervised(network), data):
        yield data.size("train") / record["images_per_second"], record["train_loss"]


def bare_epochs(network: nn.Module, root: str, epochs: int) -> Epochs:
    """The shortest loop that computes the same: the same batches and operations, nothing checked, nothing counted."""
    raw = image_folder(root)
    pixels, labels = raw.train_images, raw.train_labels
    std = torch.tensor(STD)
    scale, bias = (each.repeat(*pixels.shape[1:3], 1) for each in (1 / (255 * std), -torch.tensor(MEAN) / std))
    optimizer = torch.optim.Adam(network.parameters(), lr=LR, fused=True)
    network.train()
    for epoch in range(epochs):
        start = time.perf_counter()
        total = torch.zeros(())
        for rows in permutation(len(pixels), SEED, epoch).split(BATCH):
            images = pixels.index_select(0, rows).float().mul_(scale).add_(bias).permute(0, 3, 1, 2)
            loss = F.cross_entropy(network(images), labels[rows])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            total += loss.detach() * len(rows)
        yield time.perf_counter() - start, float(total) / len(pixels)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sides", nargs="+", choices=("kd", "bare"), help="in one process, epoch by epoch in turns")
    parser.add_argument("--data", required=True, help="holds train/CLASS/*.jpg and test/CLASS/*.jpg")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--dropout", type=float, default=0.1)
    args = parser.parse_args(arguments)
    keep_freed_memory()  # as kd does; the bare loop gains by it too
    data = load_dataset({"name": "image_folder", "root": args.data, "val_fraction": 0, "mean": MEAN, "std": STD})
    options = {"name": "cnn", "blocks": [[16], [16]], "hidden": [256], "dropout": args.dropout}
    loops = {
        "kd": lambda network: kd_epochs(network, data, args.epochs),
        "bare": lambda network: bare_epochs(network, args.data, args.epochs),
    }
    running = {side: loops[side](build_network(options, "student", SEED, data, CPU)) for side in args.sides}
    report = {side: {"seconds": [], "losses": []} for side in args.sides}
    for epoch in range(args.epochs):
        for side in args.sides if epoch % 2 == 0 else reversed(args.sides):
            seconds, loss = next(running[side])
            report[side]["seconds"].append(seconds)
            report[side]["losses"].append(loss)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
