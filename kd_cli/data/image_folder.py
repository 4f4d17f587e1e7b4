"""Any tree of images with a folder for each class: `train/` and `test/`, or one tree that is split. Your own."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kd_cli.data.base import DATASETS, Raw, checked_by
from kd_cli.data.common import InMemory
from kd_cli.data.decode import SUFFIXES, Files, Mode, file_status, walk_images
from kd_cli.data.sampling import stratified_split
from kd_cli.data.store import fits_in_memory
from kd_cli.errors import DataError
from kd_cli.storage.cache import cache_folder, read_cached, write_cached
from kd_cli.storage.tensors import digest_tensor

log = logging.getLogger("kd")

CACHE_FORMAT = 3  # raise it when decoding or resizing changes, or what is kept


class _File(NamedTuple):
    """An image file: its name relative to the data set's root, its label, its bytes, its time in ns."""

    name: str
    label: int
    size: int
    time: int


@dataclass(frozen=True)
class _Listing:
    """The image files under one folder."""

    class_names: tuple[str, ...]
    files: list[_File]

    @property
    def labels(self) -> Tensor:
        return torch.tensor([file.label for file in self.files])


def _check(*, root: str, image_size: int | None, test_fraction: float, **_: Any) -> None:
    if not root:
        raise ValueError("root is empty; type dataset.root=DIR")
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size={image_size} must be above 0 pixels; type dataset.image_size=32")
    if not 0 < test_fraction <= 0.9:
        raise ValueError(f"test_fraction={test_fraction} is outside 0 … 0.9; type dataset.test_fraction=0.2")


@DATASETS.register("image_folder")
@checked_by(_check)
def image_folder(
    root: str,
    image_size: int | None = None,
    mode: Mode = "rgb",
    test_fraction: float = 0.2,
    split_seed: int = 0,
    in_memory: InMemory = "auto",
    memory_limit_gb: float = 4.0,
    workers: int = 2,
) -> Raw:
    """The images of a tree; files that are not images are passed over, and links are followed.

    Args:
        root: holds `train/` and `test/`, each with a folder for each class, or the class folders themselves.
        image_size: H = W, pixels, to which all are stretched; none: they must all have one size.
        mode: colour or grey.
        test_fraction: share of each class that becomes the test part, where there is no `test/`; above 0, at most 0.9.
        split_seed: fixes that share.

    Raises:
        DataError: no such tree, an empty or unmatched class folder, or an image that cannot be read.
    """
    folder = Path(root).expanduser().resolve()
    listing, train, test = _divide(folder, test_fraction, split_seed)
    names, sizes = [file.name for file in listing.files], [file.size for file in listing.files]
    files, labels = Files(folder, names, sizes, image_size, mode), listing.labels
    height, width, channels = files.image_shape
    if not fits_in_memory(len(files) * height * width * channels, in_memory, memory_limit_gb):
        parts = (files.subset(rows.tolist()) for rows in (train, test))
        return Raw(next(parts), labels[train], next(parts), labels[test], listing.class_names)
    images, digest = _decoded(files, _key(files, listing), workers)
    division = hashlib.sha256(digest.encode() + test.numpy().tobytes()).hexdigest()
    return Raw(_take(images, train), labels[train], _take(images, test), labels[test], listing.class_names, division)


def _take(images: Tensor, rows: Tensor) -> Tensor:
    """Rows in ascending order; without a copy where they are neighbours."""
    first, last = int(rows[0]), int(rows[-1])
    return images[first : last + 1] if last - first + 1 == len(rows) else images[rows]


def _divide(folder: Path, test_fraction: float, split_seed: int) -> tuple[_Listing, Tensor, Tensor]:
    """All files, and the positions of the training and of the test images among them."""
    there = [name for name in ("train", "test") if (folder / name).is_dir()]
    if len(there) == 1:
        absent = "test" if there == ["train"] else "train"
        raise DataError(
            f"{folder} has a folder {there[0]}/ but no {absent}/: make it, or remove one level with dataset.root"
        )
    if not there:
        listing = _list(folder, "")
        return listing, *stratified_split(listing.labels, test_fraction, split_seed, key="dataset.test_fraction")
    train, test = _list(folder, "train"), _list(folder, "test")
    _check_same_classes(folder, train, test)
    rows = torch.arange(len(train.files) + len(test.files))
    first = len(train.files)
    return _Listing(train.class_names, train.files + test.files), rows[:first], rows[first:]


def _check_same_classes(folder: Path, train: _Listing, test: _Listing) -> None:
    one, other = set(train.class_names), set(test.class_names)
    if one != other:
        sides = (("train", one - other), ("test", other - one))
        only = [f"only in {part}/: {', '.join(sorted(names))}" for part, names in sides if names]
        raise DataError(f"{folder}: train/ and test/ have different class folders ({'; '.join(only)}); make them equal")


def _list(root: Path, part: str) -> _Listing:
    folder = root / part
    if not folder.is_dir():
        raise DataError(
            f"there is no folder {folder}: image_folder wants train/CLASS/*.jpg and test/CLASS/*.jpg, or CLASS/*.jpg, "
            "under dataset.root; type dataset.root=DIR"
        )
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if len(classes) < 2:
        raise DataError(
            f"{folder} has {len(classes)} class folders, two are needed: put each class's images in a folder"
        )
    files = [file for label, name in enumerate(classes) for file in _list_class(root, folder / name, label)]
    return _Listing(tuple(classes), files)


def _list_class(root: Path, folder: Path, label: int) -> Iterator[_File]:
    paths = list(walk_images(folder))
    if not paths:
        raise DataError(f"{folder} has no image ({', '.join(sorted(SUFFIXES))}); add some or remove the folder")
    start = len(f"{root}{os.sep}")
    for path in sorted(paths):
        status = file_status(path)
        yield _File(path[start:], label, status.st_size, status.st_mtime_ns)


def _key(files: Files, listing: _Listing) -> str:
    """Changes with any file's name, size or time, and with how files become pixels."""
    times = [file.time for file in listing.files]
    text = f"{CACHE_FORMAT}\n{files.root}\n{files.image_size}\n{files.digest}\n{times}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _decoded(files: Files, key: str, workers: int) -> tuple[Tensor, str]:
    """All images [N, H, W, C], uint8, from the cache if they are there undamaged, and their digest, hex."""
    path = cache_folder() / "data" / f"{key}.safetensors"
    found = read_cached(path)
    if found is not None:
        return found[0]["images"], found[1]["digest"]
    log.info("decoding %s images of %s, once", f"{len(files):,}", files.root)
    images = files.decode(workers)
    digest = digest_tensor(images)
    write_cached(path, {"images": images}, {"digest": digest})
    return images, digest
