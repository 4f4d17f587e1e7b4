"""MNIST (LeCun, Cortes, Burges), 28×28 grey."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd_cli.data.base import DATASETS, Raw
from kd_cli.data.download import Source, open_parts
from kd_cli.errors import DataError

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@DATASETS.register("mnist")
def mnist(root: str, download: bool = True) -> Raw:
    """Handwritten digits, 60,000 + 10,000.

    Args:
        root: the folder that holds `MNIST/raw/`.
        download: fetch it if it is not there.
    """
    from torchvision.datasets import MNIST

    parts = open_parts(
        source_of("MNIST", MNIST, "https://ossci-datasets.s3.amazonaws.com/mnist/"), root, download=download
    )
    return grey(*parts, class_names=tuple("0123456789"))


def source_of(title: str, dataset: Any, url: str) -> Source:
    """The four files in the folder `title`, with the digests that torchvision's class knows; a page that has them."""
    files = [str(Path(title, "raw", name)) for name in NAMES]
    archives = {str(Path(title, "raw", name)): digest for name, digest in dataset.resources}
    return Source(title, dataset, files, archives, url)


def grey(train: Any, test: Any, class_names: tuple[str, ...]) -> Raw:
    """Both parts as `kd` takes them; a DataError where they are no grey images with labels."""
    for part in (train, test):
        images, labels = part.data, part.targets
        if not (isinstance(images, Tensor) and images.dtype == torch.uint8 and images.ndim == 3):
            raise DataError(f"{train.raw_folder}: what is there are no grey images of 8 bits; remove it")
        if not (isinstance(labels, Tensor) and labels.dtype == torch.int64 and labels.ndim == 1):
            raise DataError(f"{train.raw_folder}: what is there are no labels; remove it")
    return Raw(train.data.unsqueeze(-1), train.targets, test.data.unsqueeze(-1), test.targets, class_names)
