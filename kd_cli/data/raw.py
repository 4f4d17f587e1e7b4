"""An undivided data set, as its component returns it.

N images, H/W size, C channels, K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor

from kd_cli.data.common import Common
from kd_cli.data.store import Images, Store, check_part, digest_of, fits_in_memory, shape_of
from kd_cli.errors import DataError
from kd_cli.storage.tensors import digest_tensor


@dataclass(frozen=True)
class Raw:
    """An undivided data set.

    Args:
        train_images: [N, H, W, C], uint8, or images that are read one by one.
        train_labels: [N], int64, 0 … K-1.
        test_images: as `train_images`.
        test_labels: as `train_labels`.
        class_names: K names, in label order.
        digest: hex, where the source already knows what identifies its pixels.
        val_rows: the training images that validate, int64; None: `val_fraction` of each class.
        unreadable: files that were left out because they cannot be read.
        geometry: how the images were brought to one size, as a record of the preprocessing has it.
    """

    train_images: Images
    train_labels: Tensor
    test_images: Images
    test_labels: Tensor
    class_names: tuple[str, ...]
    digest: str | None = None
    val_rows: Tensor | None = None
    unreadable: int = 0
    geometry: Mapping[str, Any] | None = None


def stores_of(raw: Raw, common: Common, validating: int, *, cropped: bool) -> tuple[Store, Store, Store]:
    """Of the images that train, validate and are tested.

    Args:
        validating: images that validate.
        cropped: windows are cut out of the images that train, so that their pixels are not kept.
    """
    both = (raw.train_images, raw.test_images)
    num_bytes = sum(images.numel() for images in both if isinstance(images, Tensor))
    streamed = not fits_in_memory(num_bytes, common.in_memory, common.memory_limit_gb)
    room = {"auto": int(common.memory_limit_gb * 1e9), True: 2**62, False: 0}[common.in_memory]
    stores = []
    # What is read most often is kept first.
    for images, count in ((both[0], validating), (both[1], len(both[1])), (both[0], 0 if cropped else len(both[0]))):
        kept = 0 if isinstance(images, Tensor) else min(room, count * prod(shape_of(images)))
        stores.append(Store(images, streamed=streamed, workers=common.workers, kept=kept))
        room -= kept
    val, test, train = stores
    return train, train if train.resident else val, test


def check_raw(name: str, raw: Raw) -> tuple[int, int, int]:
    """The shape (H, W, C) that all images have."""
    check_part(name, "train", raw.train_images, raw.train_labels, len(raw.class_names), least=0)
    check_part(name, "test", raw.test_images, raw.test_labels, len(raw.class_names), least=1)
    shapes = shape_of(raw.train_images), shape_of(raw.test_images)
    if shapes[0] != shapes[1]:
        raise DataError(f"dataset {name!r}: training images are {shapes[0]}, test images {shapes[1]} (H, W, C)")
    return shapes[0]


def fingerprint_of(raw: Raw, split: Sequence[Tensor]) -> str:
    """SHA-256 of pixels, labels, class names and the positions that are the split, hex."""
    pixels = [raw.digest] if raw.digest else [digest_of(raw.train_images), digest_of(raw.test_images)]
    others = [digest_tensor(each) for each in (raw.train_labels, raw.test_labels, *split)]
    return hashlib.sha256("\n".join([*pixels, *others, *raw.class_names]).encode()).hexdigest()
