"""Data sets of a program's own: any that have a length and give (image, label) by number."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from kd_cli import console
from kd_cli.api.images import array, picture
from kd_cli.data.base import Raw
from kd_cli.data.common import InMemory
from kd_cli.data.decode import as_meant, pixels_of
from kd_cli.data.store import Images, fits_in_memory
from kd_cli.errors import DataError

_AGAIN = 8  # images that are read a second time: the teacher's answers are kept, so an image must stay as it is
_LARGEST_LABEL = 10**6  # a larger one is the number of something else, and each class takes memory
_CHUNK = 256  # images between two looks at the clock
_HOW = 'dataset={"mean": […], "std": […]}'
_AUGMENT = 'dataset={"augment": "crop_flip"}'


class Rows:
    """Images of data sets of one's own, one after the other, read one by one.

    Args:
        parts: `train` and the like → what gives (image, label) by number.

    Attributes:
        digest: of all pixels, once they were read.
    """

    def __init__(self, parts: Mapping[str, Any]) -> None:
        for name, data in parts.items():
            if not (hasattr(data, "__getitem__") and hasattr(data, "__len__") and len(data)):
                kind = type(data).__name__
                raise DataError(f"{name}: {kind} has no length and items: give a map-style Dataset of images")
        self.name, self.parts, self.digest = " + ".join(parts), parts, ""
        height, width, channels = self.read(0)[0].shape
        self.image_shape = (height, width, channels)

    def __len__(self) -> int:
        return sum(map(len, self.parts.values()))

    def __getitem__(self, row: int) -> Tensor:
        return self.read(row)[0]

    def read(self, row: int) -> tuple[Tensor, int]:
        """[H, W, C], uint8, and its label. Raises DataError: it is no such pair, or cannot be read."""
        name, data, place = self._found(row)
        where = f"{name}[{place}]"
        try:
            image, label = data[place]
        except Exception as error:  # foreign code: anything can happen in it
            raise DataError(f"{where} gives no (image, label): {type(error).__name__}: {error}") from error
        pixels = _pixels(image, where)
        shape = getattr(self, "image_shape", tuple(pixels.shape))
        if pixels.shape != shape:
            raise DataError(
                f"{where} is {list(pixels.shape)}, the first one {list(shape)} (height, width, channels); bring all "
                "images to one size, and to grey or colour, in the data set's transform"
            )
        return pixels, _label(label, where)

    def _found(self, row: int) -> tuple[str, Any, int]:
        for name, data in self.parts.items():
            if row < len(data):
                return name, data, row
            row -= len(data)
        raise IndexError(row)


def read_raw(
    train: Any, val: Any, test: Any, classes: Sequence[str] | None, in_memory: InMemory, memory_limit_gb: float
) -> Raw:
    """All images, read once, and held where they fit.

    Args:
        val: images that validate; None: a share of `train`.
        classes: K names, in label order; None: those of `train.classes`, or the numbers.

    Raises:
        DataError: something else than images of bytes, of one size, with whole numbers, or other ones every time.
    """
    parts = [Rows({"train": train} | ({} if val is None else {"val": val})), Rows({"test": test})]
    held = fits_in_memory(sum(len(rows) * prod(rows.image_shape) for rows in parts), in_memory, memory_limit_gb)
    (train_images, train_labels), (test_images, test_labels) = (_read(rows, held) for rows in parts)
    most = int(torch.cat([train_labels, test_labels]).max()) + 1
    names = getattr(train, "classes", None) if classes is None else classes
    if classes is not None and len(set(classes)) < len(classes):
        raise DataError(f"classes: {list(classes)} has a name twice; each class has one of its own")
    return Raw(
        *(train_images, train_labels, test_images, test_labels),
        class_names=tuple(map(str, range(most) if names is None else names)),
        val_rows=None if val is None else torch.arange(len(train), len(parts[0])),
    )


def _read(rows: Rows, held: bool) -> tuple[Images, Tensor]:
    """The images, in memory if they shall be held, and their labels; either way they have the same digest."""
    size, shape = len(rows), rows.image_shape
    kept, labels = torch.empty((size if held else 0, *shape), dtype=torch.uint8), torch.empty(size, dtype=torch.int64)
    digest = hashlib.blake2b(f"{torch.uint8}{(size, *shape)}".encode(), digest_size=32)  # as `digest_tensor`
    progress = console.Counted(f"{rows.name:<10} was read", size)
    for row in range(size):
        pixels, labels[row] = rows.read(row)
        digest.update(pixels.contiguous().numpy().data)
        if held:
            kept[row] = pixels
        elif row < _AGAIN and not torch.equal(pixels, rows[row]):
            raise _changing(rows, row)
        if row % _CHUNK == _CHUNK - 1:
            progress.add(_CHUNK)
    for row in range(min(_AGAIN, size) if held else 0):
        if not torch.equal(kept[row], rows[row]):
            raise _changing(rows, row)
    rows.digest = digest.hexdigest()
    return kept if held else rows, labels


def _changing(rows: Rows, row: int) -> DataError:
    return DataError(
        f"image {row} of {rows.name} is another image when it is read again; leave random transforms out of the "
        f"data set: kd augments, for student and teacher alike, {_AUGMENT}"
    )


def _pixels(image: Any, where: str) -> Tensor:
    if not isinstance(image, Image.Image):
        taken = torch.from_numpy(array(image, where, _HOW))
        if taken.shape[2:] != (4,):  # a fourth channel is how transparent it is
            return taken if taken.ndim == 3 else taken.unsqueeze(-1)
    try:
        seen, _ = as_meant(picture(image, where, _HOW))
    except ValueError as error:
        raise DataError(f"{where} cannot be read ({error})") from error
    return pixels_of(seen, "gray" if seen.mode == "L" else "rgb")


def _label(label: Any, where: str) -> int:
    plain = label.item() if getattr(label, "ndim", None) == 0 else label  # of torch and of numpy
    if not isinstance(plain, int) or isinstance(plain, bool) or plain > _LARGEST_LABEL:
        raise DataError(f"{where} has the label {label!r}; a label is one whole number, 0 … K-1")
    return plain
