"""What to say of a teacher whose training images may have been normalised or sized otherwise than the student's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kd_cli.data.base import Data
from kd_cli.errors import listed
from kd_cli.models import VIEW

_SAID = VIEW[:-1]


def difference(learned: Mapping[str, Any], now: Mapping[str, Any], keys: Sequence[str]) -> str:
    """What a teacher's record and the images' say of `keys`, and what to type."""
    there, here = (" ".join(_typed(each, "dataset", keys)) for each in (learned, now))
    alone = " ".join(_typed(learned, "teacher", keys))
    return f"{there}, and the images now have {here}; type {there} (or to show them so to the teacher alone, {alone})"


def unsaid(said: Mapping[str, Any], data: Data) -> str:
    """Why a teacher without a record may be wrong, and how the user says what no record says.

    Args:
        said: how it is shown the images, as far as the user says it.
    """
    names = listed(data.spec.class_names, 3)
    wrong = f"its weights are random, its classes in another order ({names})"
    if said.keys() >= set(_SAID):
        return f"{wrong}, or teacher.mean, teacher.std and teacher.image_size are not those of its training"
    now = " ".join(_typed(data.preprocessing, "teacher", [key for key in _SAID if key not in said]))
    return (
        f"{wrong}, or its training images were normalised or sized otherwise, which no record says. Type "
        f"teacher.mean=… teacher.std=… teacher.image_size=… as it was trained ({now} if as the images are now), or "
        "name a run of kd, which records all that: teacher.checkpoint=RUN"
    )


def contradicted(recorded: Mapping[str, Any], said: Mapping[str, Any]) -> str:
    """What is typed of how a network is shown the images, and is not what its options on record say."""
    typed = [f"teacher.{key}={value}".replace(" ", "") for key, value in said.items() if value != recorded.get(key)]
    return f", or {' '.join(typed)} is not as it was trained: leave it out" if typed else ""


def _typed(preprocessing: Mapping[str, Any], where: str, keys: Sequence[str]) -> Iterator[str]:
    for key in keys:
        value = preprocessing[key]
        square = key == "image_size" and value[0] == value[1]
        yield f"{where}.{key}={value[0] if square else value}".replace(" ", "")
