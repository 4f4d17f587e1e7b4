"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747), 28×28 grey."""

from __future__ import annotations

from kd_cli.data.base import DATASETS, Raw
from kd_cli.data.download import open_parts
from kd_cli.data.mnist import grey, source_of


@DATASETS.register("fashion_mnist")
def fashion_mnist(root: str, download: bool = True) -> Raw:
    """Photographs of clothes, 60,000 + 10,000.

    Args:
        root: the folder that holds `FashionMNIST/raw/`.
        download: fetch it if it is not there.
    """
    from torchvision.datasets import FashionMNIST

    source = source_of("FashionMNIST", FashionMNIST, "https://github.com/zalandoresearch/fashion-mnist")
    train, test = open_parts(source, root, download=download)
    return grey(train, test, class_names=tuple(train.classes))
