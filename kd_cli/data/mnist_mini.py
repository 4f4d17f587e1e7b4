"""5,000 training and 1,000 test digits of MNIST, shipped with kd.

`python -m kd_cli.data.mnist_mini ROOT` makes the shipped file again from the MNIST under ROOT.
Licence: mnist_mini.LICENSE.txt.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd_cli.data.base import DATASETS, Raw
from kd_cli.data.sampling import generator
from kd_cli.errors import DataError

FILE = Path(__file__).with_name("mnist_mini.npz")
PER_CLASS = {"train": 500, "test": 100}
DRAW_SEED = 0


@DATASETS.register("mnist_mini")
def mnist_mini() -> Raw:
    """The shipped digits. Raises DataError: the shipped file is missing or damaged."""
    try:
        with np.load(FILE, allow_pickle=False) as arrays:
            train, test = (
                (torch.from_numpy(arrays[f"{part}_images"]), torch.from_numpy(arrays[f"{part}_labels"]).long())
                for part in PER_CLASS
            )
    except Exception as error:  # zipfile, zlib, numpy and the file system each have their own
        raise DataError(f"{FILE} is missing or damaged ({error}); install kd again") from error
    return Raw(train[0].unsqueeze(-1), train[1], test[0].unsqueeze(-1), test[1], tuple("0123456789"))


def draw(root: str) -> dict[str, Tensor]:
    """Draws the digits, class-balanced, from the MNIST under `root`.

    Returns:
        train_images [5000, 28, 28] and test_images [1000, 28, 28], uint8; train_labels and test_labels, uint8.
    """
    from kd_cli.data.mnist import mnist

    full = mnist(root=root, download=False)
    drawn = {}
    for part, images, labels in (
        ("train", full.train_images, full.train_labels),
        ("test", full.test_images, full.test_labels),
    ):
        assert isinstance(images, Tensor)
        rows = shipped_rows(labels, part)
        drawn[f"{part}_images"] = images[rows].squeeze(-1)
        drawn[f"{part}_labels"] = labels[rows].to(torch.uint8)
    return drawn


def shipped_rows(labels: Tensor, part: str) -> Tensor:
    """Positions in MNIST's `part` of the images that are shipped, in shuffled order: as many of each class."""
    shuffled = torch.randperm(len(labels), generator=generator(DRAW_SEED, "mnist_mini", part))
    rank = torch.zeros(len(labels), dtype=torch.int64)
    for label in labels.unique().tolist():
        members = labels[shuffled] == label
        rank[members] = torch.arange(int(members.sum()))
    return shuffled[rank < PER_CLASS[part]]


if __name__ == "__main__":
    drawn: dict[str, Any] = {name: tensor.numpy() for name, tensor in draw(sys.argv[1]).items()}
    np.savez_compressed(FILE, **drawn)
    print(f"{FILE}: {FILE.stat().st_size:,} bytes")
