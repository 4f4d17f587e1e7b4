"""Images in a folder of the datasets package: what `save_to_disk` wrote, or Parquet files. Nothing is downloaded.

That package maps Arrow files into memory, so that a row is read by itself; Parquet files it first turns into Arrow
files, once, in its own cache (HF_HOME).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kd_cli.data.arrow_source import ArrowSource
from kd_cli.data.augment import Spec, source_crop
from kd_cli.data.base import DATASETS, Part, Raw, checked_by
from kd_cli.data.class_labels import Labels, check_known, in_order
from kd_cli.data.common import InMemory
from kd_cli.data.decode import Mode
from kd_cli.data.encoded import PARTS, Listing, Reading, check_reading, read_listing
from kd_cli.data.files import Files
from kd_cli.data.geometry import Geometry, Interpolation, Resize
from kd_cli.data.names import names_kept, pack
from kd_cli.data.sources import state_of
from kd_cli.data.tree import NAMES
from kd_cli.errors import ConfigError, DataError, listed, offer
from kd_cli.storage.tensors import digest_tensors

log = logging.getLogger("kd")


@DATASETS.register("hf_dataset")
@checked_by(check_reading)
def hf_dataset(
    root: str,
    train_split: str | None = None,
    val_split: str | None = None,
    test_split: str | None = None,
    image: str | None = None,
    label: str | None = None,
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
    """The images of a local folder of the datasets package, which is an extra of kd.

    Args:
        root: a folder that `save_to_disk` wrote, or one with Parquet files.
        train_split: what is called `train`, where it is called otherwise.
        val_split: what is `val`, `valid`, `validation` or `dev`; none there: `val_fraction` of `train`.
        test_split: what is `test`; none there: the validation split, or `test_fraction` of `train`.
        image: the column of the images; none: the only one there is.
        label: the column of the classes; none: the only one of them, or `label`.
        image_size, resize, crop_pct, interpolation, mode, test_fraction, unreadable, val_fraction, split_seed: as of
            `image_folder`.

    Raises:
        ConfigError: the package is not installed.
        DataError: no such folder, split or column, images without a class, or images that cannot be read.
    """
    folder = Path(root).expanduser().resolve()
    reading = Reading(
        Geometry(image_size, resize, crop_pct, interpolation),
        *(mode, test_fraction, unreadable, val_fraction, split_seed, in_memory, memory_limit_gb, workers),
        windows=source_crop(augment) is not None,
    )
    splits = _load(folder)
    named: dict[Part, str | None] = {"train": train_split, "val": val_split, "test": test_split}
    parts = _parts(folder, list(splits), named, validated=val_fraction > 0, only_test=test_fraction == 1)
    listing = _listing(folder, {part: (name, splits[name]) for part, name in parts.items()}, image, label)
    return read_listing(listing, Files(listing.source, reading.geometry, mode), reading)


def _load(folder: Path) -> Mapping[str, Any]:
    """Split → what the package has of it."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; type dataset.root=DIR, a folder that save_to_disk wrote")
    try:
        import datasets
    except ImportError as error:
        raise ConfigError("dataset=hf_dataset needs datasets; type: pip install 'kd-cli[datasets]'") from error
    saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    try:
        with _quiet_and_offline(datasets):
            found = datasets.load_from_disk(str(folder)) if saved else datasets.load_dataset("parquet", data_dir=folder)
            splits = found if isinstance(found, dict) else {"train": found}
        for split in splits.values():
            split.data.validate(full=True)  # of a damaged file Arrow otherwise reads what is outside it
        if not saved:
            _check_classes(folder, datasets, next(iter(splits.values())).features)
    except DataError:
        raise
    except Exception as error:  # the package's, Arrow's and the system's
        reason = " ".join(f"{error} {error.__cause__ or ''}".split())[:300]
        raise DataError(
            f"{folder} cannot be read as a folder of save_to_disk or of Parquet files ({reason}); type dataset.root=DIR"
        ) from error
    return splits


def _check_classes(folder: Path, library: Any, features: Mapping[str, Any]) -> None:
    """The package takes all Parquet files to have the classes of the first, whatever the others say.

    Raises:
        DataError: they say other classes, or these in another order.
    """
    from pyarrow.parquet import read_schema

    for path in sorted(path for path in folder.rglob("*.parquet") if path.is_file()):
        own = library.Features.from_arrow_schema(read_schema(path))
        for column, feature in own.items():
            names, known = (getattr(each, "names", None) for each in (feature, features.get(column)))
            if names is not None and known is not None and names != known:
                raise DataError(
                    f"{path}: {column} has the classes {listed(names)}, in other files {listed(known)}, which the "
                    "package would take for them; write all with the same ClassLabel (cast_column, then to_parquet)"
                )


@contextmanager
def _quiet_and_offline(library: Any) -> Iterator[None]:
    """Nothing is asked of the network, not even how often a format is used."""
    config, progress = library.config, library.utils.are_progress_bars_disabled()
    before, config.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE, True
    library.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the package about its own
            yield
    finally:
        config.HF_HUB_OFFLINE = before
        if not progress:
            library.enable_progress_bars()


def _parts(
    folder: Path, there: Sequence[str], named: Mapping[Part, str | None], *, validated: bool, only_test: bool
) -> dict[Part, str]:
    """The split of each part: without `test`, the validation split is tested, unless the user says it validates."""
    for part, name in named.items():
        if name is not None and name not in there:
            raise DataError(f"dataset.{part}_split={name}: there is no such split in {folder}: {listed(there)}")
    free = [name for name in there if name not in named.values()]
    found = {part: named[part] or next((name for name in NAMES[part] if name in free), None) for part in PARTS}
    parts = {part: name for part, name in found.items() if name is not None}
    if "test" not in parts and "val" in parts and (only_test or not named["val"]):
        parts["test"] = name = parts.pop("val")
        log.warning("%s has no split test: %s is tested; dataset.val_fraction of train validates", folder, name)
    if only_test:
        return {"test": parts.get("test") or parts.get("train") or there[0]}
    if "train" not in parts:
        raise DataError(
            f"{folder} has no split train; type {offer('dataset.train_split', there[0])}. There: {listed(there)}"
        )
    if not validated:
        parts.pop("val", None)
    unread = [name for name in there if name not in parts.values()]
    if unread:
        log.warning(
            "%s: not read: %s (dataset.train_split, val_split and test_split say which)", folder, listed(unread)
        )
    return parts


def _listing(folder: Path, parts: Mapping[Part, tuple[str, Any]], image: str | None, label: str | None) -> Listing:
    splits = dict(parts.values())
    first = next(iter(splits.values()))
    column = _column(folder, first, "image", image, "Image")
    source = ArrowSource(folder, {name: split.data for name, split in splits.items()}, column)
    which = torch.tensor([PARTS.index(part) for part in parts], dtype=torch.uint8)
    of_part = which[source.places[:, 0]]
    labels, names = _labels(folder, parts, _column(folder, first, "label", label, "ClassLabel"))
    files = [file["filename"] for split in splits.values() for file in split.cache_files]
    states = torch.tensor([state_of(Path(file)) for file in files], dtype=torch.int64)
    told = {"states": states, "bytes": source.sizes, "places": source.places, **names_kept("splits", pack(splits))}
    return Listing(str(folder), source, names, of_part, labels, digest_tensors(told))


def _column(folder: Path, split: Any, what: str, given: str | None, kind: str) -> str:
    """The column that is given, the only one of a kind, or the one of its usual name."""
    kinds = {str(name): type(feature).__name__ for name, feature in split.features.items()}
    only = [name for name in kinds if kinds[name] == kind]
    chosen = given or (only[0] if len(only) == 1 else what)
    if chosen not in kinds or (kind == "Image" and kinds[chosen] != kind):
        there = listed([f"{name} ({each})" for name, each in kinds.items()])
        typed = (
            f"type dataset.{what}=COLUMN"
            if only or kind != "Image"
            else "cast_column(COLUMN, Image()) of datasets makes one"
        )
        raise DataError(f"{folder}: there is no column {chosen} of {what}s; {typed}. There: {there}")
    return chosen


def _labels(folder: Path, parts: Mapping[Part, tuple[str, Any]], column: str) -> tuple[Tensor, tuple[str, ...]]:
    """Of all parts' images [N], and the classes' names."""
    _, split = next(iter(parts.values()))
    names = getattr(split.features[column], "names", None)
    texts, found = Labels(), {}
    for part, (name, split) in parts.items():
        theirs = getattr(split.features.get(column), "names", None)
        if column not in split.features or theirs != names:
            raise DataError(
                f"{folder}: split {name} has other classes in {column} than {next(iter(parts.values()))[0]}"
            )
        found[part] = _numbers(f"{folder}: split {name}", part, split.data.column(column), texts, names)
    if names:
        return torch.cat(list(found.values())), tuple(names)
    labels, known = in_order(torch.cat(list(found.values())), texts.texts)
    by_part = dict(zip(found, labels.split([len(each) for each in found.values()]), strict=True))
    check_known(str(folder), known, by_part)
    return labels, known


def _numbers(where: str, part: Part, column: Any, texts: Labels, names: Sequence[str] | None) -> Tensor:
    """The classes' numbers of a column; without names, those of its texts."""
    try:
        encoded = column.combine_chunks().dictionary_encode()
        values = encoded.dictionary.to_pylist()
        if encoded.null_count or -1 in values:
            other = offer(f"dataset.{part}_split", "NAME")
            raise DataError(f"{where} has images without a class; leave them out, or type {other}")
        if outside := [value for value in values if names and value not in range(len(names))]:
            raise DataError(f"{where} has class {outside[0]}, of which 0 … {len(names or ()) - 1} have a name; mend it")
        if not all(isinstance(value, int | str) and not isinstance(value, bool) for value in values):
            raise ValueError(f"{values[0]!r} is neither a number nor a name")
        table = [value if names else texts.number(str(value)) for value in values]
    except (ValueError, NotImplementedError) as error:  # Arrow's, of columns that hold lists
        what = "kd is for single-label classification: type dataset.label=COLUMN"
        raise DataError(f"{where}: {error}; {what}") from error
    return torch.tensor(table, dtype=torch.int64)[torch.tensor(encoded.indices.to_numpy(), dtype=torch.int64)]
