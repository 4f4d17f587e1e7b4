"""Images that several tests make: in memory, as a tree of files, as CIFAR's archives."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from kd_cli.data.sampling import generator

FOUR = ("class 0", "class 1", "class 2", "class 3")


def make_pixels(size: int = 12, height: int = 9, width: int = 11, channels: int = 3) -> Tensor:
    """[B, H, W, C], uint8, none of them black."""
    return torch.randint(1, 256, (size, height, width, channels), generator=generator(0, "pixels"), dtype=torch.uint8)


def make_tree(
    root: Path, *, parts: tuple[str, ...] = ("train", "test"), per_class: int = 5, suffix: str = "png"
) -> Path:
    """Three classes of 8×6 (wide × high) images; every pixel of an image holds values that tell it from others."""
    random = np.random.default_rng(0)
    for part in parts:
        for label in ("cat", "dog", "eel"):
            folder = root / part / label
            folder.mkdir(parents=True)
            for number in range(per_class):
                Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).save(folder / f"{number}.{suffix}")
    return root


def make_photographs(
    root: Path, *, parts: Sequence[str] = ("train", "test"), per_class: int = 6, suffix: str = "jpg"
) -> Path:
    """Three classes of smooth images of 90 to 120 pixels a side, of many sizes; cats are red, dogs blue, eels green.

    Args:
        parts: an empty name: there are none.
    """
    random = np.random.default_rng(0)
    for part in parts:
        for label, tint in (("cat", [255, 120, 120]), ("dog", [120, 120, 255]), ("eel", [120, 255, 120])):
            (root / part / label).mkdir(parents=True)
            for number in range(per_class):
                small = (random.random((9, 12, 3)) * tint).astype(np.uint8)
                sides = (120 - number % 30, 90 + 7 * number % 31)
                image = Image.fromarray(small).resize(sides, Image.Resampling.BICUBIC)
                image.save(root / part / label / f"{number}.{suffix}")
    return root


def make_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, name: str, names: Sequence[str] = FOUR) -> dict[str, Any]:
    """Forty training and twenty test images in torchvision's layout; its checksums are set to these files'."""
    from torchvision import datasets

    kind: Any = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    key = "labels" if name == "cifar10" else "fine_labels"
    content: dict[str, Any] = {}

    def write(file: str, value: dict[str, Any]) -> str:
        content[file] = value
        (folder / file).write_bytes(pickle.dumps(value))
        return hashlib.md5((folder / file).read_bytes()).hexdigest()

    for part in ("train_list", "test_list"):
        count = (40 if part == "train_list" else 20) // len(getattr(kind, part))
        sums = []
        for file, _ in getattr(kind, part):
            pixels = random.integers(0, 256, (count, 3072), dtype=np.uint8)
            value = {"data": pixels, key: [i % len(names) for i in range(count)], "coarse_labels": [9] * count}
            sums.append([file, write(file, value)])
        monkeypatch.setattr(kind, part, sums)
    md5 = write(kind.meta["filename"], {kind.meta["key"]: list(names), "coarse_label_names": ["other"]})
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5})
    return content
