"""What is kept of a tree of very many files, so that a second look need not ask for each of them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd_cli.data.base import Part
from kd_cli.data.names import Names, kept_names, names_kept, pack
from kd_cli.data.tree import Tree, read_tree
from kd_cli.data.walk import LeftOut
from kd_cli.storage.cache import cache_folder, read_cached, write_cached

log = logging.getLogger("kd")

INDEX_FORMAT = 2  # raise it when a tree is read otherwise
FEWEST = 100_000  # files; fewer are all asked for, which takes a second
_SAMPLE = 1_000  # of the files are asked for, all the same
_SETTLED = 2_000_000_000  # ns; a folder that was changed since may have changed again without another time


def find_tree(
    root: Path, named: Mapping[Part, str | None], *, validated: bool, only_test: bool, trusts: Callable[[Tree], bool]
) -> Tree:
    """As `read_tree`, or what is kept of it, where no folder has changed since; what else is there is told.

    Args:
        trusts: whether that is enough for such a tree; otherwise each file is asked for its size and time.
    """
    asked = json.dumps([INDEX_FORMAT, str(root), dict(named), validated, only_test], sort_keys=True)
    path = cache_folder() / "data" / f"{hashlib.sha256(asked.encode()).hexdigest()[:32]}.safetensors"
    kept = _kept(root, path)
    if kept is None or not trusts(kept[0]):
        kept = _read(root, path, named, validated=validated, only_test=only_test)
    tree, notices = kept
    for notice in notices:
        log.warning("%s", notice)
    return tree


def _read(root: Path, path: Path, named: Mapping[Part, str | None], **wanted: bool) -> tuple[Tree, list[str]]:
    begun, left_out = time.time_ns(), LeftOut(root)
    tree = read_tree(root, named, left_out, **wanted)
    if len(tree.names) >= FEWEST and max(left_out.folders.values()) < begun - _SETTLED:
        _keep(path, tree, left_out)
    return tree, left_out.notices()


def _keep(path: Path, tree: Tree, left_out: LeftOut) -> None:
    folders = pack(left_out.folders)
    columns = {name: getattr(tree, name) for name in ("parts", "labels", "sizes", "times")}
    tensors = {
        **columns,
        **names_kept("names", tree.names),
        **names_kept("folders", folders),
        "changed": torch.tensor(list(left_out.folders.values())),
    }
    write_cached(path, tensors, {"tree": json.dumps([tree.class_names, tree.stamp, left_out.notices()])})


def _kept(root: Path, path: Path) -> tuple[Tree, list[str]] | None:
    """The tree and what was told of it, if it is as it was."""
    found = read_cached(path)
    if found is None:
        return None
    tensors, facts = found
    classes, stamp, notices = json.loads(facts["tree"])
    columns: Any = {name: tensors[name] for name in ("parts", "labels", "sizes", "times")}
    tree = Tree(tuple(classes), kept_names("names", tensors), **columns, stamp=stamp)
    return (tree, notices) if _is_as_it_was(root, tree, kept_names("folders", tensors), tensors["changed"]) else None


def _is_as_it_was(root: Path, tree: Tree, folders: Names, changed: Tensor) -> bool:
    """Whether no folder has changed, and none of a sample of the files."""
    rows = torch.arange(0, len(tree.names), -(-len(tree.names) // _SAMPLE))
    files = [os.fsencode(root) + b"/" + name for name in chain(*tree.names.take(rows).chunks())]
    try:
        now = [(status.st_size, status.st_mtime_ns) for status in map(os.stat, files)]
        return (
            now == list(zip(tree.sizes[rows].tolist(), tree.times[rows].tolist(), strict=True))
            and [os.stat(folder).st_mtime_ns for folder in chain(*folders.chunks())] == changed.tolist()  # noqa: PTH116
        )
    except OSError:  # gone
        return False
