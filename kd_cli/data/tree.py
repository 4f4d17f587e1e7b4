"""A tree of images: which folders are its parts and which its classes, and the files of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kd_cli.data.base import Part
from kd_cli.data.encoded import PARTS
from kd_cli.data.names import Names, joined, names_kept, pack
from kd_cli.data.walk import LeftOut, file_state, folders_in, images_in, walk_images
from kd_cli.errors import DataError, listed, offer
from kd_cli.storage.tensors import digest_tensors

# How parts are called, and what else people call them: read only where the user says so.
NAMES: Mapping[Part, Sequence[str]] = {
    "train": ("train",),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test",),
}
_LIKE: Mapping[Part, Sequence[str]] = {"train": ("training",), "val": (), "test": ("testing", "eval", "evaluation")}


@dataclass(frozen=True)
class Tree:
    """The N image files of a tree. Where it has no parts, all are training images until it is divided.

    Args:
        class_names: K names, in label order.
        names: of the files, relative to the root.
        parts: which of `PARTS` each belongs to [N], uint8.
        labels: [N], int64.
        sizes: bytes [N], int64.
        times: of the last change, ns [N], int64.
        stamp: changes with names, sizes and times, hex.
    """

    class_names: tuple[str, ...]
    names: Names
    parts: Tensor
    labels: Tensor
    sizes: Tensor
    times: Tensor
    stamp: str


def read_tree(
    root: Path, named: Mapping[Part, str | None], left_out: LeftOut, *, validated: bool, only_test: bool
) -> Tree:
    """The files below a folder, by part and class.

    Args:
        named: the folders of parts that the user names.
        left_out: is told what else is there.
        validated: whether validation images are wanted.
        only_test: nothing but test images are wanted; a tree without parts is all test images.

    Raises:
        DataError: there is no such folder, it is not clear which folders are parts, or a class has no image.
    """
    if not root.is_dir():
        raise DataError(
            f"there is no folder {root}: image_folder wants train/CLASS/*.jpg and test/CLASS/*.jpg, or CLASS/*.jpg, "
            "under dataset.root; type dataset.root=DIR"
        )
    parts = _wanted(root, _parts(root, named, left_out), named, left_out, validated=validated, only_test=only_test)
    folders = {part: root / name for part, name in parts.items()} or {_alone(only_test): root}
    classes = {part: _classes(folder, left_out) for part, folder in folders.items()}
    names = _common(root, parts, classes, least=1 if only_test else 2)
    files = [_files(root, folder / name, left_out) for folder in folders.values() for name in names]
    counts = torch.tensor([len(packed) for packed, _ in files])
    which = torch.tensor([PARTS.index(part) for part in folders], dtype=torch.uint8).repeat_interleave(len(names))
    labels = torch.arange(len(names)).repeat(len(folders))
    packed, sizes, times = joined(packed for packed, _ in files), *torch.cat([states for _, states in files], dim=1)
    stamp = digest_tensors({"sizes": sizes, "times": times, **names_kept("names", packed)})
    return Tree(names, packed, which.repeat_interleave(counts), labels.repeat_interleave(counts), sizes, times, stamp)


def _alone(only_test: bool) -> Part:
    return "test" if only_test else "train"


def _parts(root: Path, named: Mapping[Part, str | None], left_out: LeftOut) -> dict[Part, str]:
    """The folder of each part that is there; none where the folders in the root are classes."""
    parts = {part: name for part, name in named.items() if name}
    for part, name in parts.items():
        if not (root / name).is_dir():
            there = listed(folders_in(root, LeftOut(root))) or "none"
            raise DataError(f"dataset.{part}_folder={name}: there is no such folder in {root}. Folders there: {there}")
    folders = [name for name in folders_in(root, left_out) if name not in parts.values()]
    called = [name for name in folders if _role(name) and _holds_folders(root / name)]
    if not called and not parts:
        return {}
    for part in NAMES:
        found = [name for name in folders if name in NAMES[part]]
        if part not in parts and found:
            _check_one(root, part, found)
            parts[part] = found[0]
    _check_like(root, parts, called)
    for name in (name for name in folders if name not in parts.values()):
        left_out.pass_over(f"{name}/")
    return {part: parts[part] for part in NAMES if part in parts}


def _role(name: str) -> Part | None:
    """What a folder is called like."""
    return next((part for part in NAMES if name.lower() in (*NAMES[part], *_LIKE[part])), None)


def _holds_folders(folder: Path) -> bool:
    """Whether a folder has folders and no image of its own: it is no class then."""
    unsaid = LeftOut(folder)
    return bool(folders_in(folder, unsaid)) and next(images_in(folder, unsaid), None) is None


def _check_one(root: Path, part: Part, found: Sequence[str]) -> None:
    if len(found) > 1:
        names = " and ".join(f"{name}/" for name in found)
        raise DataError(f"{root} has {names}; type {offer(f'dataset.{part}_folder', found[0])}, or another one")


def _check_like(root: Path, parts: Mapping[Part, str], called: Sequence[str]) -> None:
    """Refuses folders that are called like parts which are not there otherwise."""
    like = {role: name for name in called if (role := _role(name)) and role not in parts and name not in parts.values()}
    if not like:
        return
    if "test" not in parts and "test" not in like and "val" in {**parts, **like}:
        like["test"] = {**parts, **like}["val"]
        like.pop("val", None)
    typed = " ".join(offer(f"dataset.{part}_folder", like[part]) for part in NAMES if part in like)
    names = " and ".join(f"{like[part]}/" for part in NAMES if part in like)
    raise DataError(f"{root} has {names}, called like parts of a data set and not train/, val/ or test/; type {typed}")


def _wanted(
    root: Path,
    parts: Mapping[Part, str],
    named: Mapping[Part, str | None],
    left_out: LeftOut,
    *,
    validated: bool,
    only_test: bool,
) -> dict[Part, str]:
    """The parts that are read: without test/, val/ is what is tested, unless the user says that it validates."""
    wanted = dict(parts)
    if "test" not in wanted and "val" in wanted and (only_test or not named["val"]):
        wanted["test"] = name = wanted.pop("val")
        if not only_test:
            left_out.note(
                f"{root} has no test/: {name}/ is tested, once and at the end; dataset.val_fraction of train/ "
                f"validates. Type dataset.test_folder={name} to have it so, or dataset.val_folder={name} to validate "
                f"with {name}/ and to test dataset.test_fraction of train/"
            )
    needed: Part = _alone(only_test)
    if wanted and needed not in wanted:
        raise DataError(
            f"{root} has {', '.join(f'{name}/' for name in wanted.values())} but no {needed}/: make it, name it with "
            f"dataset.{needed}_folder=NAME, or remove one level with dataset.root"
        )
    if only_test:
        return {"test": wanted["test"]} if wanted else {}
    if list(wanted) == ["train"]:
        raise DataError(
            f"{root} has a folder {wanted['train']}/ but no test/: make it, or type "
            f"dataset.root={root / wanted['train']} to divide that one"
        )
    if "val" in wanted and not validated:
        left_out.note(f"{root}/{wanted.pop('val')}/ is not read: dataset.val_fraction is 0")
    return wanted


def _classes(folder: Path, left_out: LeftOut) -> tuple[str, ...]:
    """The folders in a folder, each with an image of its own; images that lie beside them are counted."""
    for path in images_in(folder, LeftOut(folder)):
        left_out.pass_over(f"{Path(path).suffix.lower()} beside the classes")
    names = folders_in(folder, left_out)
    above = [name for name in names if _holds_folders(folder / name)]
    if above:
        raise DataError(
            f"{folder}: {listed([f'{name}/' for name in above])} hold folders and no image of their own, so they are "
            f"no classes; type dataset.root={folder / above[0]}, or move the images up into the folder of their class"
        )
    return tuple(names)


def _common(
    root: Path, parts: Mapping[Part, str], classes: Mapping[Part, tuple[str, ...]], least: int
) -> tuple[str, ...]:
    """The classes that all parts have."""
    (first, names), *others = classes.items()
    folder = root / parts.get(first, "")
    if names and not parts and all(map(_role, names)):
        raise DataError(
            f"{root}: {', '.join(f'{name}/' for name in names)} are called like parts of a data set and hold no folder "
            "for each class; make them: train/CLASS/*.jpg"
        )
    if len(names) < least:
        needed = "two are" if least > 1 else "one is"
        raise DataError(
            f"{folder} has {len(names)} class folders, {needed} needed: put each class's images in a folder"
        )
    for part, theirs in others:
        sides = ((first, set(names) - set(theirs)), (part, set(theirs) - set(names)))
        only = [f"only in {parts[side]}/: {listed(sorted(rest))}" for side, rest in sides if rest]
        if only:
            which = f"{parts[first]}/ and {parts[part]}/"
            raise DataError(f"{root}: {which} have different class folders ({'; '.join(only)}); make them equal")
    return names


def _files(root: Path, folder: Path, left_out: LeftOut) -> tuple[Names, Tensor]:
    """Names, and of each bytes and time [2, n], int64."""
    paths = sorted(walk_images(folder, left_out))
    if not paths:
        raise DataError(f"{folder} has no image; add some or remove the folder")
    start = len(str(root)) + 1
    states = np.fromiter(chain.from_iterable(map(file_state, paths)), dtype=np.int64)
    return pack(path[start:] for path in paths), torch.from_numpy(states).view(-1, 2).T
