"""A teacher that is shown the student's images as its own training images were: of another normalisation or size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_cli.config.plan import View
from kd_cli.data.base import Data
from kd_cli.errors import ConfigError, listed
from kd_cli.taps import published_taps


class SeenAs(nn.Module):
    """A network behind a change of normalisation and size.

    (x·s + m − m')/s' is what a pixel becomes that was normalised to x with mean m and deviation s, and the network
    knows with m' and s'. Images are stretched bilinearly, with antialiasing. Its taps are the network's.

    Args:
        network: images [B, C, H', W'] → logits [B, K].
        given: `mean` and `std` of the images that it is shown.
        wanted: `mean` and `std` that it learned with; None: as they are given.
        sides: (H', W'); None: as they are.

    Raises:
        ConfigError: another number of means or deviations than channels.
    """

    def __init__(
        self,
        network: nn.Module,
        given: Mapping[str, Sequence[float]],
        wanted: Mapping[str, Sequence[float] | None],
        sides: Sequence[int] | None,
    ) -> None:
        super().__init__()
        self.network = network
        self.sides = None if sides is None else list(sides)
        mean, std = (_channels(given[key]) for key in ("mean", "std"))
        new = {key: _channels(wanted[key] or given[key], key, len(mean)) for key in ("mean", "std")}
        self.register_buffer("scale", (std / new["std"]).float()[:, None, None], persistent=False)
        self.register_buffer("bias", ((mean - new["mean"]) / new["std"]).float()[:, None, None], persistent=False)
        self.taps = {tap: f"network.{path}" for tap, path in published_taps(network).items()}

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] → [B, K]."""
        if self.sides is not None and list(images.shape[2:]) != self.sides:
            images = functional.interpolate(images, self.sides, mode="bilinear", antialias=True)
        return cast(Tensor, self.network(images * cast(Tensor, self.scale) + cast(Tensor, self.bias)))

    def extra_repr(self) -> str:
        """By which the cache of its answers knows it, beside its buffers."""
        return f"sides={self.sides}"


def _channels(values: Sequence[float], key: str = "", channels: int | None = None) -> Tensor:
    if channels is not None and len(values) not in (1, channels):
        example = ",".join(["0.5"] * channels)
        raise ConfigError(
            f"teacher.{key}={list(values)} has {len(values)} numbers, the images have {channels} channels; "
            f"type teacher.{key}=[{example}]"
        )
    return torch.tensor(list(values) * (channels or 1 if len(values) == 1 else 1), dtype=torch.float64)


def difference(learned: Mapping[str, Any], now: Mapping[str, Any], keys: Sequence[str]) -> str:
    """What a teacher's record and the images' say of `keys`, and what to type."""
    there, here = (" ".join(_typed(each, "dataset", keys)) for each in (learned, now))
    alone = " ".join(_typed(learned, "teacher", keys))
    return f"{there}, and the images now have {here}; type {there} (or to show them so to the teacher alone, {alone})"


def unsaid(view: View, data: Data) -> str:
    """Why a teacher without a record may be wrong, and how the user says what no record says."""
    names = listed(data.spec.class_names, 3)
    wrong = f"its weights are random, its classes in another order ({names})"
    if view.is_whole:
        return f"{wrong}, or teacher.mean, teacher.std and teacher.image_size are not those of its training"
    now = " ".join(_typed(data.preprocessing, "teacher", [key for key, value in vars(view).items() if value is None]))
    return (
        f"{wrong}, or its training images were normalised or sized otherwise, which no record says. Type "
        f"teacher.mean=… teacher.std=… teacher.image_size=… as it was trained ({now} if as the images are now), or "
        "name a run of kd, which records all that: teacher.checkpoint=RUN"
    )


def _typed(preprocessing: Mapping[str, Any], where: str, keys: Sequence[str]) -> Iterator[str]:
    for key in keys:
        value = preprocessing[key]
        square = key == "image_size" and value[0] == value[1]
        yield f"{where}.{key}={value[0] if square else value}".replace(" ", "")
