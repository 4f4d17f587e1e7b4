"""Labels as others write them, numbers or names, as 0 … K-1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kd_cli.errors import DataError, listed

_LONGEST = 200  # characters of a class's name
_DIGITS = 9
_NONE = "-1"  # what data sets write of images without a class


class Labels:
    """Gives each text that is met a number, so that a million labels are numbers and not texts.

    Attributes:
        texts: the texts, in the order in which they were met.
    """

    def __init__(self, texts: Sequence[str] = ()) -> None:
        self._numbers = {text: number for number, text in enumerate(texts)}

    @property
    def texts(self) -> list[str]:
        return list(self._numbers)

    def number(self, text: str) -> int:
        """Raises ValueError: it is no class's name or number."""
        if text in ("", _NONE) or len(text) > _LONGEST or not text.isprintable():
            raise ValueError(f"{text[:50]!r} is no class")
        text = str(int(text)) if _is_number(text) else text
        return self._numbers.setdefault(text, len(self._numbers))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= _DIGITS


def in_order(numbers: Tensor, texts: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
    """Labels and class names in the order of the classes' numbers, or of their names.

    Args:
        numbers: of the images' texts [N].
    """
    key = int if all(map(_is_number, texts)) else str
    names = sorted(texts, key=key)
    places = {name: place for place, name in enumerate(names)}
    table = torch.tensor([places[text] for text in texts], dtype=torch.int64)
    return table[numbers], tuple(names)


def as_named(numbers: Tensor, texts: Sequence[str], names: Sequence[str], where: str) -> Tensor:
    """Labels where the classes' numbers are those of a list of names, or the names themselves.

    Raises:
        DataError: a class is not in the list.
    """
    places = {name: place for place, name in enumerate(names)}
    if all(map(_is_number, texts)):
        places = {str(place): place for place in range(len(names))}
    unknown = [text for text in texts if text not in places]
    if unknown:
        raise DataError(f"{where}: class {listed(unknown)} is none of the {len(names)} classes that are named")
    return torch.tensor([places[text] for text in texts], dtype=torch.int64)[numbers]


def check_known(where: str, names: Sequence[str], labels: Mapping[str, Tensor]) -> None:
    """Raises DataError: a class of another part has no training image."""
    first, *others = labels
    known = set(labels[first].unique().tolist())
    for part in others:
        only = [names[label] for label in labels[part].unique().tolist() if label not in known]
        if only:
            raise DataError(f"{where}: classes only in {part}, none of them in {first}: {listed(only)}; mend them")
