"""Decoded images on disk, so that they are decoded once. A cache: whatever is wrong with it, the images are remade."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kd_cli.data.store import digest_tensor
from kd_cli.files import sync

log = logging.getLogger("kd")


def cache_folder() -> Path:
    """KD_CACHE, else kd/ in XDG_CACHE_HOME, else ~/.cache/kd."""
    own, shared = os.environ.get("KD_CACHE"), os.environ.get("XDG_CACHE_HOME")
    folder = own or (shared and Path(shared, "kd")) or Path("~/.cache/kd")
    return Path(folder).expanduser().absolute()


def cached(key: str, make: Callable[[], Tensor]) -> tuple[Tensor, str]:
    """The images that `make` gives, from the cache if they are there undamaged.

    Args:
        key: a file name's worth of hash of all that the images depend on.
        make: gives [N, H, W, C], uint8.

    Returns:
        The images, and their digest, hex.
    """
    path = cache_folder() / "data" / f"{key}.safetensors"
    found = _read(path)
    if found is not None:
        return found
    images = make()
    digest = digest_tensor(images)
    _write(path, images, digest)
    return images, digest


def _read(path: Path) -> tuple[Tensor, str] | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            images, digest = file.get_tensor("images"), (file.metadata() or {}).get("digest")
    except (SafetensorError, OSError) as error:
        log.warning("the cache file %s is damaged (%s): decoding the images again", path, error)
        return None
    # safetensors checks its header only; a flipped bit in the pixels shows here.
    if digest != digest_tensor(images):
        log.warning("the cache file %s is damaged (wrong checksum): decoding the images again", path)
        return None
    return images, digest


def _write(path: Path, images: Tensor, digest: str) -> None:
    """Writes beside the destination and renames, so that a cache file is whole or not there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file({"images": images}, temporary, metadata={"digest": digest})
            sync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (SafetensorError, OSError) as error:
        log.warning("%s cannot be written (%s): the images will be decoded again next time", path, error)
