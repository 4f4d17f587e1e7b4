"""Random images of CIFAR-10's sizes: one file for kd, and a tree of files for the plain script."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

CLASSES = 10
FILE = "images.safetensors"


def write_stored(folder: Path, train: int, test: int) -> None:
    """Writes as many random images [N, 32, 32, 3], with labels in turn."""
    random, parts = torch.Generator().manual_seed(0), {}
    for name, size in (("train", train), ("test", test)):
        parts[name] = torch.randint(256, (size, 32, 32, 3), dtype=torch.uint8, generator=random)
        parts[f"{name}_labels"] = torch.arange(size) % CLASSES
    save_file(parts, folder / FILE)


def write_tree(folder: Path, train: int, test: int) -> None:
    """Writes the first of them as JPEG files, `train/CLASS/NUMBER.jpg`."""
    parts = load_file(folder / FILE)
    for name, size in (("train", train), ("test", test)):
        for label in range(CLASSES):
            (folder / name / str(label)).mkdir(parents=True)
        for number, pixels in enumerate(parts[name][:size]):
            Image.fromarray(pixels.numpy()).save(folder / name / str(number % CLASSES) / f"{number}.jpg", quality=95)
