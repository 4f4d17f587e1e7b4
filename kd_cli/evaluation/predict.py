"""What saved networks say of pictures: of files, or of the images that they were tested on."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd_cli import console
from kd_cli.data.decode import Mode, open_image, pixels_of
from kd_cli.data.files import read_fitted
from kd_cli.data.geometry import geometry_of
from kd_cli.data.preprocess import Prepare
from kd_cli.data.resize import resize_as_pil
from kd_cli.data.walk import LeftOut, walk_images
from kd_cli.errors import ConfigError, DataError
from kd_cli.evaluation.networks import Opened
from kd_cli.metrics.evaluate import evaluating
from kd_cli.saved.network import Saved
from kd_cli.storage.files import open_regular
from kd_cli.types import DataSpec

_BATCH = 64
_MODES: dict[int, Mode] = {1: "gray", 3: "rgb"}
_STORED: dict[Mode, str] = {"gray": "grey", "rgb": "colour"}
_KINDS = 3  # of pictures, that the notice names


@dataclass(frozen=True)
class Picture:
    """One image as the networks see it.

    Args:
        name: the file, or `test 1`.
        pixels: [H, W, C], uint8.
        truth: the true class, where it is known.
    """

    name: str
    pixels: Tensor
    truth: int | None = None


@dataclass(frozen=True)
class Answers:
    """What was said of all pictures.

    Args:
        rows: of each picture `image`, `true` where it is known, `predictions`: network → its most probable classes.
        first: the first pictures with all probabilities, for a grid.
    """

    classes: tuple[str, ...]
    rows: list[dict[str, Any]]
    first: list[Panel]


class Reader:
    """Decodes files one by one, as they are asked for, and remembers what had to be done to them.

    Args:
        spec: of the network that is to see them.
        seen: what is on record of the preprocessing of its images.

    Attributes:
        unreadable: file → why.

    Raises:
        ConfigError: no picture has so many channels.
    """

    def __init__(self, files: Sequence[Path], spec: DataSpec, seen: Mapping[str, Any]) -> None:
        channels, height, width = spec.image_shape
        if channels not in _MODES:
            raise ConfigError(f"the network takes images of {channels} channels; pictures have 1 or 3")
        self.unreadable: dict[str, str] = {}
        self._files, self._mode = files, _MODES[channels]
        self._shape = (height, width, channels)
        self._changed: Counter[str] = Counter()
        self._geometry = geometry_of(seen)

    def __iter__(self) -> Iterator[Picture]:
        for file in self._files:
            try:
                yield Picture(str(file), self._read(file))
            except DataError as error:
                self.unreadable[str(file)] = str(error)
                console.notice(str(error))

    def say_changed(self) -> None:
        """One notice: how many pictures were not as the network wants them, and what they were."""
        if not self._changed:
            return
        kinds = [f"{count} of {kind}" for kind, count in self._changed.most_common(_KINDS)]
        rest = len(self._changed) - len(kinds)
        console.notice(
            f"{sum(self._changed.values())} of {len(self._files)} pictures were brought to {self._shape[1]}×"
            f"{self._shape[0]} {_STORED[self._mode]}: {', '.join(kinds)}{f' and {rest} other kinds' if rest else ''}"
        )

    def _read(self, file: Path) -> Tensor:
        if self._geometry is not None:
            return read_fitted(file, self._mode, open_regular(file), self._geometry)
        image, stored = open_image(file)
        pixels = pixels_of(image, self._mode)
        if pixels.shape != self._shape or stored != _STORED[self._mode]:
            self._changed[f"{image.width}×{image.height} {stored}"] += 1
        return pixels if pixels.shape == self._shape else resize_as_pil(pixels, self._shape)


def find_images(words: Iterable[str]) -> list[Path]:
    """The files that are meant: files, all images below folders, globs; each once, in the order given.

    Raises:
        DataError: nothing is there, or a folder holds no image.
    """
    return list(dict.fromkeys(file for word in words for file in _find(word)))


def _find(word: str) -> list[Path]:
    path = Path(word).expanduser()
    if path.is_dir():
        found = _below(path)
    elif path.exists():
        return [path]
    else:
        # Path.glob would refuse absolute patterns.
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
        if not matches:
            raise DataError(f"nothing matches {word}" if glob.has_magic(word) else f"there is no picture {word}")
        found = [file for match in matches for file in (_below(match) if match.is_dir() else [match])]
    if not found:
        raise DataError(f"{word} has no image")
    return found


def _below(folder: Path) -> list[Path]:
    """Images in a folder and its folders."""
    left_out = LeftOut(folder)
    found = sorted(map(Path, walk_images(folder, left_out)))
    for notice in left_out.notices():
        console.notice(notice)
    return found


def tested_pictures(saved: Saved, count: int) -> list[Picture]:
    """The first test images of the run's own data, with their classes."""
    data = saved.data()
    (batch,) = data.pixels("test", [torch.arange(data.size("test"))[:count]], torch.device("cpu"))
    images, labels = batch.images, batch.labels
    return [Picture(f"test {row + 1}", images[row], int(labels[row])) for row in range(len(labels))]


def ask(networks: Sequence[Opened], pictures: Iterable[Picture], *, top: int, device: torch.device) -> Answers:
    """What each network says of each picture; pictures are read as they are needed.

    Args:
        top: how many classes to name.
    """
    answers = Answers(check_alike(networks).class_names, [], [])
    for panel in _asked(networks, pictures, device):
        answers.rows.append(_row(panel, answers.classes, top))
        if len(answers.first) < PANELS:
            answers.first.append(panel)
    return answers


def _asked(networks: Sequence[Opened], pictures: Iterable[Picture], device: torch.device) -> Iterator[Panel]:
    source = iter(pictures)
    while batch := list(islice(source, _BATCH)):
        pixels = torch.stack([picture.pixels for picture in batch]).to(device)
        said = {opened.name: probabilities(opened, pixels).tolist() for opened in networks}
        for row, picture in enumerate(batch):
            yield Panel(picture.name, picture.pixels, {name: rows[row] for name, rows in said.items()}, picture.truth)


def _row(panel: Panel, classes: Sequence[str], top: int) -> dict[str, Any]:
    truth = {} if panel.truth is None else {"true": classes[panel.truth]}
    predictions = {
        name: [{"class": classes[label], "probability": row[label]} for label in most_probable(row, top)]
        for name, row in panel.probabilities.items()
    }
    return {"image": panel.name, **truth, "predictions": predictions}


def probabilities(opened: Opened, pixels: Tensor) -> Tensor:
    """[B, H, W, C], uint8, on the network's device → [B, K], float32, on the CPU."""
    facts, (channels, height, width) = opened.first.facts["preprocessing"], opened.first.spec().image_shape
    prepare = Prepare("none", facts["mean"], facts["std"], (height, width, channels))
    with evaluating(opened.network):
        logits = opened.network(prepare.normalise(pixels))
    return torch.softmax(logits.float(), dim=1).cpu()


def check_alike(networks: Sequence[Opened]) -> DataSpec:
    """What all of them take and give.

    Raises:
        DataError: they do not see the same images and classes.
    """
    *others, last = networks
    spec = last.first.spec()
    for other in others:
        one = other.first.spec()
        if (one.class_names, one.image_shape) != (spec.class_names, spec.image_shape):
            raise DataError(f"{other.first.path} and {last.first.path} do not see the same images and classes")
    return spec


PANELS = 9  # three rows of three


@dataclass(frozen=True)
class Panel:
    """One image and what each network says of it.

    Args:
        name: of the image.
        pixels: [H, W, C], uint8, C = 1 or 3.
        probabilities: network → one for each class.
        truth: the true class, where it is known.
    """

    name: str
    pixels: Tensor
    probabilities: Mapping[str, Sequence[float]]
    truth: int | None = None


def most_probable(probabilities: Sequence[float], top: int) -> list[int]:
    """Classes, most probable first."""
    return sorted(range(len(probabilities)), key=lambda label: -probabilities[label])[:top]
