"""From encoded images with classes to a data set: what cannot be read, what is kept, how it is divided."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from kd_cli.data.base import Part, Raw
from kd_cli.data.common import InMemory
from kd_cli.data.decode import Mode
from kd_cli.data.files import Files
from kd_cli.data.geometry import Geometry, Interpolation, Resize
from kd_cli.data.sampling import others, stratified_split
from kd_cli.data.sources import Source
from kd_cli.data.store import fits_in_memory
from kd_cli.errors import DataError, listed
from kd_cli.storage.cache import cache_folder, read_cached, write_cached
from kd_cli.storage.tensors import digest_tensor

log = logging.getLogger("kd")

CACHE_FORMAT = 6  # raise it when decoding or resizing changes, or what is kept
PARTS: tuple[Part, ...] = ("train", "val", "test")
_SHOWN = 50  # of many unreadable files


@dataclass(frozen=True)
class Listing:
    """N encoded images with their classes and parts. Where there are no parts, all are training images.

    Args:
        where: they lie, as messages say it: the folder that their names begin with.
        source: opens them.
        class_names: K names, in label order.
        parts: which of `PARTS` each belongs to [N], uint8.
        labels: [N], int64.
        stamp: changes with names, bytes, times and whatever else tells that an image may be another, hex.
    """

    where: str
    source: Source
    class_names: tuple[str, ...]
    parts: Tensor
    labels: Tensor
    stamp: str

    def rows(self, part: Part) -> Tensor:
        """Where the images of a part are [n], int64."""
        return (self.parts == PARTS.index(part)).nonzero().flatten()

    def take(self, rows: Tensor) -> Listing:
        """Some of them, in the order given."""
        return Listing(
            self.where, self.source.subset(rows), self.class_names, self.parts[rows], self.labels[rows], self.stamp
        )


@dataclass(frozen=True)
class Reading:
    """The options by which encoded images become a data set; `image_folder` describes each.

    Args:
        geometry: how they are brought to one size.
        windows: larger images are cut where they are decoded, whenever they are seen.
    """

    geometry: Geometry
    mode: Mode
    test_fraction: float
    unreadable: Literal["refuse", "skip"]
    val_fraction: float
    split_seed: int
    in_memory: InMemory
    memory_limit_gb: float
    workers: int
    windows: bool

    def holds(self, files: Files) -> bool:
        """Whether the decoded images are to be held in memory."""
        height, width, channels = files.image_shape
        fits = fits_in_memory(len(files) * height * width * channels, self.in_memory, self.memory_limit_gb)
        return fits and not (files.resizes and self.windows)


def check_reading(
    *,
    root: str,
    image_size: int | None,
    resize: Resize | int,
    crop_pct: float,
    interpolation: Interpolation,
    test_fraction: float,
    **_: Any,
) -> None:
    """Raises ValueError: an option of encoded images is out of range."""
    if not root:
        raise ValueError("root is empty; type dataset.root=DIR")
    Geometry(image_size, resize, crop_pct, interpolation)
    if not 0 < test_fraction <= 0.9 and test_fraction != 1:
        raise ValueError(f"test_fraction={test_fraction} is outside 0 … 0.9, and not 1; type dataset.test_fraction=0.2")


def read_listing(listing: Listing, files: Files, reading: Reading) -> Raw:
    """The data set of what can be read.

    Args:
        files: all images of the listing.

    Raises:
        DataError: there is a single class, images cannot be read, or a class is too small to be divided.
    """
    if len(listing.class_names) < 2 and reading.test_fraction != 1:
        raise DataError(
            f"{listing.where} has 1 class ({listed(listing.class_names)}), two are needed to tell them apart"
        )
    read = _read(listing, files, reading)
    readable = _readable(files, read.errors)
    kept = listing if not read.errors else listing.take(readable)
    train, val, test = _divide(kept, reading)
    _tell_twins(kept, read.stamps, {"training": train, "validation": train[val], "test": test})
    whole = files.subset(readable)
    images: Tensor | Files = read.images if read.images is not None else whole
    parts = (_take(images, train), kept.labels[train], _take(images, test), kept.labels[test])
    division = hashlib.sha256(read.digest.encode() + test.numpy().tobytes()).hexdigest() if read.digest else None
    facts: Any = {"val_rows": val, "unreadable": len(read.errors), "geometry": files.geometry.record()}
    return Raw(*parts, listing.class_names, division, **facts)


def _take(images: Tensor | Files, rows: Tensor) -> Tensor | Files:
    """Rows in ascending order; without a copy where they are neighbours."""
    if isinstance(images, Files):
        return images.subset(rows)
    neighbours = len(rows) == 0 or int(rows[-1] - rows[0]) + 1 == len(rows)
    first = int(rows[0]) if len(rows) else 0
    return images[first : first + len(rows)] if neighbours else images[rows]


def _divide(listing: Listing, reading: Reading) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of the training and validation images, the places of the latter among them, the rows of the test."""
    train, val, test = map(listing.rows, PARTS)
    seed = reading.split_seed
    if not len(test):
        labels = listing.labels[train]
        kept, taken = stratified_split(labels, reading.test_fraction, seed, key="dataset.test_fraction")
        train, test = train[kept], train[taken]
    if len(val) or not len(train):
        return torch.cat([train, val]), torch.arange(len(train), len(train) + len(val)), test
    _, places = stratified_split(listing.labels[train], reading.val_fraction, seed, key="dataset.val_fraction")
    return train, places, test


@dataclass(frozen=True)
class _Read:
    """What reading all images has shown.

    Args:
        stamps: of the readable images [M], int64: equal where their bytes are, and seldom otherwise.
        errors: row → why it cannot be read.
        images: [M, H, W, C], uint8; None: they are streamed, and only the headers were read.
        digest: of the readable images, hex; none: the parts that they are divided into have theirs.
    """

    stamps: Tensor
    errors: Mapping[int, str]
    images: Tensor | None = None
    digest: str = ""


def _read(listing: Listing, files: Files, reading: Reading) -> _Read:
    """Decodes all images, or reads their headers, unless that is kept since an earlier time.

    Nothing is kept where images that cannot be read are refused, for they will be mended.
    """
    held, refused = reading.holds(files), reading.unreadable == "refuse"
    path = cache_folder() / "data" / f"{_key(listing, files, 'images' if held else 'headers')}.safetensors"
    found = read_cached(path)
    read = _kept(*found) if found else None
    if read is None or (read.errors and refused):
        log.info("%s %s images of %s, once", "decoding" if held else "checking", f"{len(files):,}", listing.where)
        images, wrong = files.decode(reading.workers) if held else (None, {})
        stamps, wrong = files.check(reading.workers) if images is None else (_stamps(images), wrong)
        errors = {row: str(error) for row, error in wrong.items()}
        _tell(errors, len(files), refused=refused)
        read = _Read(stamps, errors, images, _known(files.subset(_readable(files, errors)), images))
        kept = {"stamps": stamps} if images is None else {"stamps": stamps, "images": images}
        write_cached(path, kept, {"digest": read.digest, "errors": json.dumps(errors)})
    else:
        _tell(read.errors, len(files), refused=refused)
    return read


def _readable(files: Files, errors: Mapping[int, str]) -> Tensor:
    """The rows of the others, ascending."""
    return others(len(files), torch.tensor(list(errors), dtype=torch.int64))


def _known(files: Files, images: Tensor | None) -> str:
    """Photographs are known by their files, whether their pixels are held or windows are cut out of them."""
    if files.geometry.shorter is not None:
        return files.digest
    return "" if images is None else digest_tensor(images)


def _kept(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> _Read:
    errors = {int(row): why for row, why in json.loads(facts["errors"]).items()}
    return _Read(tensors["stamps"], errors, tensors.get("images"), facts["digest"])


def _key(listing: Listing, files: Files, kind: str) -> str:
    """Changes with any image's name, size or time, with how it becomes pixels, and with what is kept."""
    how = [files.mode, files.image_shape, files.geometry]
    text = "\n".join(map(str, [CACHE_FORMAT, kind, listing.where, *how, listing.stamp]))
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


def _tell_twins(listing: Listing, stamps: Tensor, sides: Mapping[str, Tensor]) -> None:
    """One notice of the images whose very bytes are on another side of the split, too: those are no test."""
    twins = [pair for group in _alike(listing, stamps, sides) for pair in _equal(listing.source, group)]
    if twins:
        names = ((listing.source.name(row).removeprefix(f"{listing.where}/") for row in pair) for pair in twins)
        log.warning(
            "%s: %s validation or test images are the very bytes of an image on another side of the split, which makes "
            "accuracies too good; remove the copies: %s",
            *(listing.where, len(twins), listed([f"{one} = {other}" for one, other in names], 3)),
        )


def _alike(listing: Listing, stamps: Tensor, sides: Mapping[str, Tensor]) -> list[list[tuple[int, int]]]:
    """The images of one size and stamp, as (side, row), where they are on several sides."""
    _, kinds, counts = torch.unique(stamps * 31 + listing.source.sizes, return_inverse=True, return_counts=True)
    side_of = torch.zeros(len(stamps), dtype=torch.int64)
    for side, rows in enumerate(sides.values()):  # the validation images are among the training images
        side_of[rows] = side
    rows = torch.cat([sides["training"], sides["test"]])
    rows = rows[counts[kinds[rows]] > 1]
    groups: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for row, side in zip(rows.tolist(), side_of[rows].tolist(), strict=True):
        groups[int(listing.source.sizes[row]), int(stamps[row])].append((side, row))
    return [group for group in groups.values() if len({side for side, _ in group}) > 1]


def _equal(source: Source, group: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Of images that seem equal: each that is, and one on a side before its own."""
    digests = {row: _digest(source, row) for _, row in group}
    pairs = []
    for side, row in group:
        same = next((other for before, other in group if before < side and digests[other] == digests[row]), None)
        pairs += [] if same is None else [(row, same)]
    return pairs


def _digest(source: Source, row: int) -> str:
    digest = hashlib.sha256()
    try:
        with source.open(row) as file:
            while piece := file.read(2**20):
                digest.update(piece)
    except OSError:  # gone meanwhile: like no other
        return str(row)
    return digest.hexdigest()
