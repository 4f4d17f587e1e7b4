"""Any tree of images with a folder for each class: `train/` and `test/`, or one tree that is split. Your own."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kd_cli.data.augment import Spec, source_crop
from kd_cli.data.base import DATASETS, Raw, checked_by
from kd_cli.data.common import InMemory
from kd_cli.data.decode import Mode
from kd_cli.data.files import Files, FolderSource
from kd_cli.data.geometry import Geometry, Interpolation, Resize
from kd_cli.data.names import pack
from kd_cli.data.sampling import others, stratified_split
from kd_cli.data.store import fits_in_memory
from kd_cli.data.tree import File, Tree, read_tree
from kd_cli.errors import DataError, listed
from kd_cli.storage.cache import cache_folder, read_cached, write_cached
from kd_cli.storage.files import file_digest
from kd_cli.storage.tensors import digest_tensor

log = logging.getLogger("kd")

CACHE_FORMAT = 4  # raise it when decoding or resizing changes, or what is kept
_SHOWN = 50  # of many unreadable files


def _check(
    *,
    root: str,
    image_size: int | None,
    resize: Resize | int,
    crop_pct: float,
    interpolation: Interpolation,
    test_fraction: float,
    **_: Any,
) -> None:
    if not root:
        raise ValueError("root is empty; type dataset.root=DIR")
    Geometry(image_size, resize, crop_pct, interpolation)
    if not 0 < test_fraction <= 0.9 and test_fraction != 1:
        raise ValueError(f"test_fraction={test_fraction} is outside 0 … 0.9, and not 1; type dataset.test_fraction=0.2")


@DATASETS.register("image_folder")
@checked_by(_check)
def image_folder(
    root: str,
    image_size: int | None = None,
    resize: Resize | int = "auto",
    crop_pct: float = 0.875,
    interpolation: Interpolation = "bilinear",
    mode: Mode = "rgb",
    train_folder: str | None = None,
    val_folder: str | None = None,
    test_folder: str | None = None,
    test_fraction: float = 0.2,
    unreadable: Literal["refuse", "skip"] = "refuse",
    val_fraction: float = 0.1,
    split_seed: int = 0,
    in_memory: InMemory = "auto",
    memory_limit_gb: float = 4.0,
    workers: int = 2,
    augment: Spec = "none",
) -> Raw:
    """The images of a tree; files that are not images are passed over with a notice, and links are followed.

    Args:
        root: holds `train/`, `test/` and, maybe, `val/`, each with a folder for each class, or the class folders
            themselves.
        image_size: H = W, pixels; none: they must all have one size.
        resize, crop_pct, interpolation: how others are brought to it, as of `Geometry`.
        mode: colour or grey.
        train_folder: what is `train/`, where it is not called so.
        val_folder: what is `val/`, `valid/`, `validation/` or `dev/`; its images validate, whatever `val_fraction`
            above 0.
        test_folder: what is `test/`.
        test_fraction: share of each class that becomes the test part, where there is no `test/`; above 0, at most 0.9,
            or 1: nothing but test images, to evaluate on.
        unreadable: what becomes of files that cannot be read.
        val_fraction, split_seed: fix which other images validate, and `split_seed` which are tested.

    Raises:
        DataError: no such tree, an unclear one, an empty or unmatched class folder, or images that cannot be read.
    """
    named: Any = {"train": train_folder, "val": val_folder, "test": test_folder}
    folder = Path(root).expanduser().resolve()
    tree = read_tree(folder, named, validated=val_fraction > 0, only_test=test_fraction == 1)
    sizes = torch.tensor([file.size for file in tree.files])
    geometry = Geometry(image_size, resize, crop_pct, interpolation)
    files = Files(FolderSource(folder, pack(file.name for file in tree.files), sizes), geometry, mode)
    height, width, channels = files.image_shape
    # What windows are cut out of is larger than what a network sees, and is decoded whenever it is seen.
    windows = files.resizes and source_crop(augment) is not None
    held = not windows and fits_in_memory(len(files) * height * width * channels, in_memory, memory_limit_gb)
    read = _read(folder, files, tree.files, workers, held=held, refused=unreadable == "refuse")
    tree = tree.without(read.errors)
    return _raw(folder, files, tree, read, *_divide(tree, test_fraction, val_fraction, split_seed))


def _raw(root: Path, files: Files, tree: Tree, read: _Read, train: Tensor, val: Tensor, test: Tensor) -> Raw:
    """The data set of what could be read.

    Args:
        tree: without the files that could not.
        train, test: rows of the tree; `val`: places in `train`.
    """
    _tell_twins(root, tree.files, read.stamps, {"training": train, "validation": train[val], "test": test})
    readable = others(len(files), torch.tensor(list(read.errors), dtype=torch.int64))
    images, labels = files.subset(readable) if read.images is None else read.images, tree.labels
    parts = (_take(images, train), labels[train], _take(images, test), labels[test])
    division = hashlib.sha256(read.digest.encode() + test.numpy().tobytes()).hexdigest() if read.digest else None
    return Raw(
        *parts, tree.class_names, division, val_rows=val, unreadable=len(read.errors), geometry=files.geometry.record()
    )


def _take(images: Tensor | Files, rows: Tensor) -> Tensor | Files:
    """Rows in ascending order; without a copy where they are neighbours."""
    if isinstance(images, Files):
        return images.subset(rows)
    neighbours = len(rows) == 0 or int(rows[-1] - rows[0]) + 1 == len(rows)
    first = int(rows[0]) if len(rows) else 0
    return images[first : first + len(rows)] if neighbours else images[rows]


def _divide(tree: Tree, test_fraction: float, val_fraction: float, split_seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of the training and validation images, the places of the latter among them, the rows of the test."""
    train, val, test = (tree.rows(part) for part in ("train", "val", "test"))
    if not len(test):
        labels = tree.labels[train]
        kept, taken = stratified_split(labels, test_fraction, split_seed, key="dataset.test_fraction")
        train, test = train[kept], train[taken]
    if len(val) or not len(train):
        return torch.cat([train, val]), torch.arange(len(train), len(train) + len(val)), test
    _, places = stratified_split(tree.labels[train], val_fraction, split_seed, key="dataset.val_fraction")
    return train, places, test


@dataclass(frozen=True)
class _Read:
    """What reading all files has shown.

    Args:
        stamps: of the readable files [M], int64: equal where the files are, and seldom otherwise.
        errors: row → why it cannot be read.
        images: [M, H, W, C], uint8; None: they are streamed, and only the headers were read.
        digest: of the images, hex.
    """

    stamps: Tensor
    errors: Mapping[int, str]
    images: Tensor | None = None
    digest: str = ""


def _read(root: Path, files: Files, listing: Sequence[File], workers: int, *, held: bool, refused: bool) -> _Read:
    """Decodes all files, or reads their headers, unless that is kept since an earlier time.

    Args:
        refused: whether files that cannot be read are; nothing is kept then, for they will be mended.
    """
    kind = "images" if held else "headers"
    path = cache_folder() / "data" / f"{_key(root, files, listing, kind)}.safetensors"
    found = read_cached(path)
    read = _kept(*found) if found else None
    if read is None or (read.errors and refused):
        log.info("%s %s images of %s, once", "decoding" if held else "checking", f"{len(files):,}", root)
        images, wrong = files.decode(workers) if held else (None, {})
        stamps, wrong = files.check(workers) if images is None else (_stamps(images), wrong)
        digest = "" if images is None else digest_tensor(images)
        read = _Read(stamps, {row: str(error) for row, error in wrong.items()}, images, digest)
        _tell(read.errors, len(files), refused=refused)
        kept = {"stamps": stamps} if images is None else {"stamps": stamps, "images": images}
        write_cached(path, kept, {"digest": digest, "errors": json.dumps(read.errors)})
    else:
        _tell(read.errors, len(files), refused=refused)
    return read


def _kept(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> _Read:
    errors = {int(row): why for row, why in json.loads(facts["errors"]).items()}
    return _Read(tensors["stamps"], errors, tensors.get("images"), facts["digest"])


def _key(root: Path, files: Files, listing: Sequence[File], kind: str) -> str:
    """Changes with any file's name, size or time, with how files become pixels, and with what is kept."""
    times = [file.time for file in listing]
    text = f"{CACHE_FORMAT}\n{kind}\n{root}\n{files.geometry}\n{files.digest}\n{times}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _stamps(images: Tensor) -> Tensor:
    digests = [hashlib.blake2b(image.numpy(), digest_size=8).digest() for image in images]
    return torch.tensor([int.from_bytes(each, "big", signed=True) for each in digests], dtype=torch.int64)


def _tell(errors: Mapping[int, str], count: int, *, refused: bool) -> None:
    """Refuses the files that cannot be read, or says how many are left out."""
    if not errors:
        return
    if not refused:
        log.warning("%s of %s files cannot be read and are left out (dataset.unreadable=skip)", len(errors), count)
    elif len(errors) == 1:
        raise DataError(f"{next(iter(errors.values()))}, or type dataset.unreadable=skip")
    else:
        lines = "\n".join(list(errors.values())[:_SHOWN])
        rest = f"\nand {len(errors) - _SHOWN:,} more" if len(errors) > _SHOWN else ""
        what = f"{len(errors):,} of {count:,} files cannot be read; type dataset.unreadable=skip to leave them out"
        raise DataError(f"{what}:\n{lines}{rest}")


def _tell_twins(root: Path, files: Sequence[File], stamps: Tensor, sides: Mapping[str, Tensor]) -> None:
    """One notice of the files whose very bytes are on another side of the split, too: those are no test."""
    seen: dict[tuple[int, int], list[tuple[str, int]]] = defaultdict(list)
    marks = stamps.tolist()
    side_of = {row: side for side, rows in sides.items() for row in rows.tolist()}
    for row, side in side_of.items():
        seen[files[row].size, marks[row]].append((side, row))
    groups = [group for group in seen.values() if len({side for side, _ in group}) > 1]
    twins = [pair for group in groups for pair in _equal(root, files, group)]
    if twins:
        examples = listed([f"{files[one].name} = {files[other].name}" for one, other in twins], 3)
        log.warning(
            "%s: %s validation or test images are the very bytes of an image on another side of the split, which makes "
            "accuracies too good; remove the copies: %s",
            *(root, len(twins), examples),
        )


def _equal(root: Path, files: Sequence[File], group: Sequence[tuple[str, int]]) -> list[tuple[int, int]]:
    """Of files that seem equal: each that is, and one on a side before its own."""
    digests = {row: file_digest(root / files[row].name) for _, row in group}
    order = ["training", "validation", "test"]
    pairs = []
    for side, row in group:
        before = [other for their, other in group if order.index(their) < order.index(side)]
        same = next((other for other in before if digests[other] == digests[row]), None)
        pairs += [] if same is None else [(row, same)]
    return pairs
