"""Images in tar files as the webdataset package writes them (key.jpg, key.cls, key.json), read where they lie.

That package reads them in the order in which they lie, which gives neither splits nor the shuffling of a seed; so the
places of the members are looked up once, and each image is read by itself. It is not needed for this.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kd_cli.data.augment import Spec, source_crop
from kd_cli.data.base import DATASETS, Part, Raw, checked_by
from kd_cli.data.class_labels import Labels, as_named, check_known, in_order
from kd_cli.data.common import InMemory
from kd_cli.data.decode import Mode
from kd_cli.data.encoded import PARTS, Listing, Reading, check_reading, read_listing
from kd_cli.data.files import Files
from kd_cli.data.geometry import Geometry, Interpolation, Resize
from kd_cli.data.names import Names, joined, kept_names, names_kept, pack
from kd_cli.data.shards import find_shards
from kd_cli.data.sources import state_of
from kd_cli.data.tar_source import Member, TarSource, as_states, members_of
from kd_cli.data.walk import SUFFIXES
from kd_cli.errors import DataError
from kd_cli.storage.cache import cache_folder, read_cached, write_cached
from kd_cli.storage.files import read_text
from kd_cli.storage.tensors import digest_tensors

log = logging.getLogger("kd")

INDEX_FORMAT = 2  # raise it when shards are read otherwise
_LARGEST_LABEL = 2**20  # bytes; a .json may hold more than the class


def _check(*, label: str, train: str, **others: Any) -> None:
    check_reading(**others)
    if not train:
        raise ValueError("train is empty; type dataset.train='\"train-{0000..0009}.tar\"'")
    if not label or label.startswith("json") != (":" in label):
        raise ValueError(f"label={label} is no extension; type dataset.label=cls, or dataset.label='\"json:label\"'")


@DATASETS.register("webdataset")
@checked_by(_check)
def webdataset(
    root: str,
    train: str = "*train*.tar",
    val: str | None = None,
    test: str | None = None,
    label: str = "cls",
    image: str | None = None,
    class_names: str | None = None,
    image_size: int | None = None,
    resize: Resize | int = "auto",
    crop_pct: float = 0.875,
    interpolation: Interpolation = "bilinear",
    mode: Mode = "rgb",
    test_fraction: float = 0.2,
    unreadable: Literal["refuse", "skip"] = "refuse",
    val_fraction: float = 0.1,
    split_seed: int = 0,
    in_memory: InMemory = "auto",
    memory_limit_gb: float = 4.0,
    workers: int = 2,
    augment: Spec = "none",
) -> Raw:
    """The images of tar files; whatever the names of their members are, nothing is extracted.

    Args:
        root: the folder of the tar files.
        train: the files of the training images: names with `*`, `{000..009}`, `{a,b}`, several of them with `::`.
        val: of the images that validate; none: `val_fraction` of `train`.
        test: of the images that are tested; none: `test_fraction` of `train`.
        label: extension of the member that has the class, a number or a name: `cls`, `txt`; `json:KEY`: KEY's value in
            the member .json.
        image: extension of the images: `jpg`; none: each sample has one that is an image's.
        class_names: a file with a name on each line, in the order of the labels' numbers.
        image_size, resize, crop_pct, interpolation, mode, test_fraction, unreadable, val_fraction, split_seed: as of
            `image_folder`.

    Raises:
        DataError: files are missing, damaged or compressed, a sample has no class, or images cannot be read.
    """
    folder = Path(root).expanduser().resolve()
    reading = Reading(
        Geometry(image_size, resize, crop_pct, interpolation),
        *(mode, test_fraction, unreadable, val_fraction, split_seed, in_memory, memory_limit_gb, workers),
        windows=source_crop(augment) is not None,
    )
    patterns: dict[Part, str | None] = {"train": train, "val": val if val_fraction > 0 else None, "test": test}
    if test_fraction == 1:
        patterns = {"test": test or train}
    shards = find_shards(folder, patterns)
    index = _index(folder, shards, label, image)
    listing = _listing(folder, shards, index, Path(class_names).expanduser() if class_names else None)
    return read_listing(listing, Files(listing.source, reading.geometry, mode), reading)


@dataclass
class _Index:
    """The samples of tar files.

    Args:
        states: bytes and time (ns) of each file [S, 2].
        names: of the images' members.
        places: file, offset and bytes of each image [N, 3].
        numbers: of the images' classes [N], in the order of `texts`.
    """

    states: Tensor
    names: Names
    places: Tensor
    numbers: Tensor
    texts: list[str]


def _index(root: Path, shards: Mapping[Part, Sequence[str]], label: str, image: str | None) -> _Index:
    """What is in the tar files, unless that is kept and none of them has changed."""
    every = [name for names in shards.values() for name in names]
    states = as_states([state_of(root / name) for name in every])
    key = json.dumps([INDEX_FORMAT, str(root), every, states.tolist(), label, image])
    path = cache_folder() / "data" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    found = read_cached(path)
    if found is not None:
        tensors, facts = found
        names = kept_names("names", tensors)
        return _Index(states, names, tensors["places"], tensors["numbers"], json.loads(facts["texts"]))
    log.info("reading what is in %s tar files of %s, once", f"{len(every):,}", root)
    labels, read = Labels(), []
    for number, name in enumerate(every):
        read.append(_Shard(root / name, number, label, image, labels).read())
    names = joined(names for names, _ in read)
    if not len(names):
        raise DataError(f"the tar files in {root} have no image (KEY.jpg); type dataset.image=EXTENSION")
    columns = torch.cat([columns for _, columns in read])
    index = _Index(states, names, columns[:, :3].contiguous(), columns[:, 3].contiguous(), labels.texts)
    tensors = {"places": index.places, "numbers": index.numbers, **names_kept("names", names)}
    write_cached(path, tensors, {"texts": json.dumps(index.texts)})
    return index


@dataclass
class _Shard:
    """One tar file, read from its beginning to its end; members of one key that follow each other are a sample."""

    path: Path
    number: int
    label: str
    image: str | None
    labels: Labels
    _names: list[str] = field(default_factory=list)
    _columns: list[tuple[int, int, int, int]] = field(default_factory=list)
    _key: str | None = None
    _image: Member | None = None
    _class: int | None = None

    def read(self) -> tuple[Names, Tensor]:
        """Names of the images, and of each the file, offset, bytes and class [n, 4]."""
        for member, content in members_of(self.path, self._holds_class):
            key, extension = split_key(member.name)
            if key is None:
                continue
            if key != self._key:
                self._end()
                self._key = key
            if self._holds_class(member):
                self._class = self._read_class(member, content)
            elif self._is_image(extension):
                self._take(member)
        self._end()
        return pack(self._names), torch.tensor(self._columns, dtype=torch.int64).view(-1, 4)

    def _holds_class(self, member: Member) -> bool:
        if split_key(member.name)[1] != self.label.partition(":")[0]:
            return False
        if member.size > _LARGEST_LABEL:
            raise DataError(
                f"{self.path}/{member.name} has {member.size:,} bytes, which is no class; mend the tar file"
            )
        return True

    def _is_image(self, extension: str) -> bool:
        return extension == self.image if self.image else f".{extension}" in SUFFIXES

    def _take(self, member: Member) -> None:
        if self._image is not None:
            raise DataError(
                f"{self.path}: the sample {self._key} has two images, {self._image.name} and {member.name}; type "
                f"dataset.image={split_key(member.name)[1]}, or another extension"
            )
        self._image = member

    def _read_class(self, member: Member, content: bytes) -> int:
        if self._class is not None:
            raise DataError(
                f"{self.path}: the sample {self._key} has two members .{self.label.partition(':')[0]}; mend it"
            )
        try:
            text = content.decode().strip()
            if ":" in self.label:
                value = json.loads(text)[self.label.partition(":")[2]]
                text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
            return self.labels.number(text)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{self.path}/{member.name} has no class ({error}); kd is for single-label classification: mend it, or "
                "type dataset.label=EXTENSION, dataset.label='\"json:KEY\"'"
            ) from error

    def _end(self) -> None:
        """Keeps the sample that has ended; one without an image is none."""
        image, number = self._image, self._class
        self._image = self._class = None
        if image is None:
            return
        if number is None:
            raise DataError(
                f"{self.path}: the sample {self._key} has an image and no .{self.label.partition(':')[0]}; type "
                "dataset.label=EXTENSION (of the member with the class), or dataset.label='\"json:KEY\"'"
            )
        self._names.append(image.name)
        self._columns.append((self.number, image.offset, image.size, number))


def split_key(name: str) -> tuple[str | None, str]:
    """The key of a member's sample and its extension in small letters: all from the first dot behind the last `/`."""
    folder, slash, file = name.rpartition("/")
    stem, dot, extension = file.partition(".")
    return (f"{folder}{slash}{stem}", extension.lower()) if stem and dot else (None, "")


def _listing(root: Path, shards: Mapping[Part, Sequence[str]], index: _Index, named: Path | None) -> Listing:
    part_of = torch.tensor([PARTS.index(part) for part, names in shards.items() for _ in names], dtype=torch.uint8)
    parts = part_of[index.places[:, 0]]
    if named is None:
        labels, names = in_order(index.numbers, index.texts)
        check_known(str(root), names, {part: labels[parts == PARTS.index(part)] for part in shards})
    else:
        names = _read_names(named)
        labels = as_named(index.numbers, index.texts, names, str(root))
    packed = pack(name for each in shards.values() for name in each)
    source = TarSource(root, packed, index.states, index.names, index.places)
    files = {"states": index.states, **names_kept("files", packed)}
    stamp = digest_tensors({"places": index.places, **names_kept("names", index.names), **files})
    return Listing(os.fspath(root), source, names, parts, labels, stamp)


def _read_names(path: Path) -> tuple[str, ...]:
    try:
        names = tuple(line.strip() for line in read_text(path).splitlines() if line.strip())
    except (OSError, ValueError) as error:
        raise DataError(f"dataset.class_names={path} cannot be read ({error})") from error
    if len(names) < 2 or len(set(names)) < len(names):
        raise DataError(f"dataset.class_names={path}: one name on each line, at least two, no two alike")
    return names
