"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images"), 32×32 RGB."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kd_cli.data.base import DATASETS, Raw
from kd_cli.data.download import Source, open_parts


@DATASETS.register("cifar10")
def cifar10(root: str, download: bool = True) -> Raw:
    """Ten classes, 50,000 + 10,000.

    Args:
        root: the folder that holds `cifar-10-batches-py/`.
        download: fetch it if it is not there.
    """
    from torchvision.datasets import CIFAR10

    return _raw(*open_parts(_source("CIFAR-10", CIFAR10), root, download=download))


@DATASETS.register("cifar100")
def cifar100(root: str, download: bool = True) -> Raw:
    """A hundred classes (the fine labels), 50,000 + 10,000.

    Args:
        root: the folder that holds `cifar-100-python/`.
        download: fetch it if it is not there.
    """
    from torchvision.datasets import CIFAR100

    return _raw(*open_parts(_source("CIFAR-100", CIFAR100), root, download=download))


def _source(title: str, dataset: Any) -> Source:
    names = [name for name, _ in dataset.train_list + dataset.test_list] + [dataset.meta["filename"]]
    files = [f"{dataset.base_folder}/{name}" for name in names]
    return Source(title, dataset, files, {dataset.filename: dataset.tgz_md5}, dataset.url)


def _raw(train: Any, test: Any) -> Raw:
    return Raw(*_tensors(train), *_tensors(test), tuple(train.classes))


def _tensors(part: Any) -> tuple[Tensor, Tensor]:
    """torchvision's array is a transposed view: made contiguous here, once."""
    return torch.from_numpy(part.data).contiguous(), torch.tensor(part.targets, dtype=torch.int64)
