"""The images that the default of `kd run` was chosen on: a data set for `plugins=`."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kd_cli.data.base import DATASETS, Raw
from kd_cli.data.mnist import mnist
from kd_cli.data.mnist_mini import mnist_mini, shipped_rows


@DATASETS.register("mnist_choice")
def mnist_choice(*, root: str) -> Raw:
    """The shipped training digits; to test on, all others that MNIST has to train on."""
    full, outside = mnist(root=root, download=False), torch.ones(60_000, dtype=torch.bool)
    outside[shipped_rows(full.train_labels, "train")] = False
    assert isinstance(full.train_images, Tensor)
    return replace(mnist_mini(), test_images=full.train_images[outside], test_labels=full.train_labels[outside])
