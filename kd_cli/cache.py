"""Tensors on disk that can be made again: whatever is wrong with a file, whoever made it makes it anew."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kd_cli.files import sync

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("kd")


def cache_folder() -> Path:
    """KD_CACHE, else kd/ in XDG_CACHE_HOME, else ~/.cache/kd."""
    own, shared = os.environ.get("KD_CACHE"), os.environ.get("XDG_CACHE_HOME")
    folder = own or (shared and Path(shared, "kd")) or Path("~/.cache/kd")
    return Path(folder).expanduser().absolute()


def digest_tensor(tensor: Tensor) -> str:
    """BLAKE2b of type, shape and values, hex: on processors without SHA instructions twice as fast as SHA-256."""
    import torch

    digest = hashlib.blake2b(f"{tensor.dtype}{tuple(tensor.shape)}".encode(), digest_size=32)
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """BLAKE2b of the names and the tensors, hex; a tensor alone has the digest of `digest_tensor`."""
    each = {name: digest_tensor(tensors[name]) for name in sorted(tensors)}
    if len(each) == 1:
        return next(iter(each.values()))
    text = "\n".join(f"{name} {digest}" for name, digest in each.items())
    return hashlib.blake2b(text.encode(), digest_size=32).hexdigest()


def read_cached(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """The tensors of a file and the facts beside them (`digest` is one); None, with a notice, if it is damaged."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            facts = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError) as error:
        log.warning("the cache file %s is damaged (%s) and not used", path, error)
        return None
    # safetensors checks its header only; a flipped bit in the values shows here.
    if facts.get("digest") != digest_tensors(tensors):
        log.warning("the cache file %s is damaged (wrong checksum) and not used", path)
        return None
    return tensors, facts


def write_cached(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """Writes beside the destination and renames, so that a cache file is whole or not there.

    Where that is not possible there is a notice, and next time the tensors are made again.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(dict(tensors), temporary, metadata=dict(facts))
            sync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (SafetensorError, OSError) as error:
        log.warning("%s cannot be written (%s): it will be made again next time", path, error)


def folder_size(folder: Path) -> int:
    """Bytes of all files below a folder; 0 if there is none."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # another process has just removed it
            total += path.stat().st_size
    return total


def make_room(keep: Path, limit: int) -> None:
    """Removes the folders beside `keep`, those first that were not used for longest, until all take `limit` bytes."""
    sizes = {folder: folder_size(folder) for folder in keep.parent.glob("*") if folder.is_dir()}
    for folder in sorted(sizes, key=last_used):
        if sum(sizes.values()) <= limit:
            return
        if folder != keep:
            shutil.rmtree(folder, ignore_errors=True)
            del sizes[folder]


def last_used(entry: Path) -> float:
    """When the answers in a folder, or a file, were used last: seconds since 1970."""
    marker = entry / "about.json" if entry.is_dir() else entry
    return marker.stat().st_mtime if marker.exists() else 0.0
