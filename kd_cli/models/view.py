"""What a network is shown: the images that all networks see, normalised and sized as it was made for.

It is a hook of the network itself, with buffers that are in no state dict: names of weights, layers and taps stay what
they are, and the network takes its view with it wherever it is copied, saved or exported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_cli.errors import ConfigError, offer
from kd_cli.ranges import Positive, check_ranges
from kd_cli.registry import bind_options
from kd_cli.types import DataSpec

_LARGEST = 2**14  # pixels of a side


@dataclass(frozen=True)
class View:
    """How a network is shown the images; None: as all see them.

    Args:
        mean, std: per channel, of values 0 … 1; one number serves all channels.
        image_size: pixels of a side, or height and width.
        interpolation: by which they are resized, with antialiasing.

    Raises:
        ValueError: a number outside its range, or an interpolation for no size.
    """

    mean: Sequence[float] | None = None
    std: Sequence[Positive] | None = None
    image_size: int | Sequence[int] | None = None
    interpolation: Literal["bilinear", "bicubic"] | None = None

    def __post_init__(self) -> None:
        check_ranges(View, vars(self))
        if self.sides is not None and (len(self.sides) != 2 or min(self.sides) < 1 or max(self.sides) > _LARGEST):
            raise ValueError(
                f"image_size: {self.image_size} is not possible; type a number of 1 … {_LARGEST} or [height,width]"
            )
        if self.interpolation is not None and self.sides is None:
            raise ValueError(
                f"interpolation: {self.interpolation} says nothing without a size; type its image_size, too"
            )

    @property
    def sides(self) -> tuple[int, ...] | None:
        """Height and width."""
        size = self.image_size
        return None if size is None else (size, size) if isinstance(size, int) else tuple(size)


@dataclass(frozen=True)
class SeenAs:
    """A forward pre-hook: images [B, C, H, W] → [B, C, H', W'], normalised by the network's buffers.

    Args:
        sides: (H', W'); None: as they are.
        interpolation: with antialiasing.
    """

    sides: tuple[int, ...] | None
    interpolation: str

    def __call__(self, network: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        images, *others = inputs
        if self.sides is not None and tuple(images.shape[2:]) != self.sides:
            images = functional.interpolate(images, self.sides, mode=self.interpolation, antialias=True)
        return images * network.seen_scale + network.seen_bias, *others


def view_of(options: Mapping[str, Any], where: str) -> View:
    """The view that a network's options describe. Raises ConfigError: of a wrong type or outside its range."""
    try:
        return View(**bind_options(View, options, where=where, what="a network"))
    except ValueError as error:
        raise ConfigError(f"{where}.{error}") from error


def show(network: nn.Module, view: View, spec: DataSpec, where: str) -> nn.Module:
    """Has a network show itself images, which are as `spec` says, as `view` says.

    (x·s + m − m')/s' is what a pixel becomes that was normalised to x with mean m and deviation s, and the network
    knows with m' and s'.

    Raises:
        ConfigError: another number of means or deviations than channels, or a size that the network cannot take.
    """
    given = {"mean": spec.mean or (0.0,), "std": spec.std or (1.0,)}
    channels, *sides = spec.image_shape
    shown = tuple(view.sides or sides)
    mean, std = (_channels(given[key], channels) for key in ("mean", "std"))
    new_mean, new_std = (_wanted(vars(view)[key], given[key], channels, where, key) for key in ("mean", "std"))
    if (mean, std, sides) == (new_mean, new_std, list(shown)):
        return network
    scale = [old / new for old, new in zip(std, new_std, strict=True)]
    bias = [(old - new) / deviation for old, new, deviation in zip(mean, new_mean, new_std, strict=True)]
    for name, values in (("seen_scale", scale), ("seen_bias", bias)):
        network.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
    network.seen_as = SeenAs(view.sides, view.interpolation or "bilinear")  # type: ignore[assignment]
    if shown[0] != shown[1]:
        _try(network, torch.zeros(1, channels, *shown), f"{where}.image_size", shown)
    network.register_forward_pre_hook(network.seen_as)  # type: ignore[arg-type]
    return network


def _wanted(
    values: Sequence[float] | None, given: Sequence[float], channels: int, where: str, kind: str
) -> list[float]:
    key = f"{where}.{kind}"
    if values is not None and len(values) not in (1, channels):
        example, both = ",".join(["0.5"] * channels), [offer(f"{where}.{each}", "data") for each in ("mean", "std")]
        raise ConfigError(
            f"{key}={list(values)} has {len(values)} numbers, the images have {channels} channels; "
            f"type {offer(key, f'[{example}]')}, or {' '.join(both)} to leave both as the data have them"
        )
    return _channels(given if values is None else values, channels)


def _channels(values: Sequence[float], channels: int) -> list[float]:
    return [float(value) for value in values] * (channels if len(values) == 1 else 1)


def _try(network: nn.Module, images: Tensor, key: str, sides: Sequence[int]) -> None:
    """A network was told no more than the height."""
    modes = {module: module.training for module in network.modules()}
    place = next((tensor.device for tensor in network.parameters()), None)
    try:
        with torch.no_grad():
            network.eval()(images.to(place))
    except Exception as error:  # each network has its own words
        raise ConfigError(
            f"{key}=[{sides[0]},{sides[1]}]: the network is made for squares; type {offer(key, sides[0])}"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
