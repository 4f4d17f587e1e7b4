"""What can be done to an image's pixels: each image of a batch [B] has a row of parameters of its own.

`steps` does it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

# Columns of a row of parameters.
BRIGHT, CONTRAST, COLOUR, XX, XY, X1, YX, YY, Y1, CENTRE_Y, CENTRE_X, HALF = range(12)
SHARP, MASK, THRESHOLD, STRETCH, EQUALISE, HUE = range(12, 18)
IDENTITY = (1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.5, 0.5, 0.0, 0.0, 255.0, 256.0, 0.0, 0.0, 0.0)
IDENTITY_ROW = torch.tensor(IDENTITY)

Setter = Callable[[Tensor], Tensor]


def _itself(magnitude: Tensor) -> Tensor:
    return magnitude


def _factor(magnitude: Tensor) -> Tensor:
    return 1 + magnitude


# operation → the parameters that its magnitude sets. Its unit: of the colour operations how far a factor is from 1, of
# rotate radians, of shears tangents, of translations and cutout (half a side) shares of the image, of posterize bits to
# be taken away, of solarize the grey level from which on pixels are inverted, of hue turns. Others have none.
OPERATIONS: Mapping[str, Mapping[int, Setter]] = {
    "identity": {},
    "brightness": {BRIGHT: _factor},
    "contrast": {CONTRAST: _factor},
    "saturation": {COLOUR: _factor},
    "hue": {HUE: _itself},
    "sharpness": {SHARP: _itself},
    "rotate": {
        XX: torch.cos,
        XY: lambda angle: -torch.sin(angle),
        YX: torch.sin,
        YY: torch.cos,
    },
    "shear_x": {XY: _itself},
    "shear_y": {YX: _itself},
    "translate_x": {X1: _itself},
    "translate_y": {Y1: _itself},
    "posterize": {MASK: lambda bits: 256 - torch.exp2(bits.round())},
    "solarize": {THRESHOLD: _itself},
    "invert": {THRESHOLD: torch.zeros_like},
    "autocontrast": {STRETCH: torch.ones_like},
    "equalize": {EQUALISE: torch.ones_like},
    "cutout": {HALF: torch.abs},
}
_ABOUT_CORNER = {"shear_x": X1, "shear_y": Y1}
COLOURED = ("saturation", "hue")


def names_for(channels: int, names: Sequence[str]) -> list[str]:
    """Those that change images of so many channels."""
    return [name for name in names if channels == 3 or name not in COLOURED]


def pick(uniform: Tensor, count: int) -> Tensor:
    """Numbers of [0, 1) as whole numbers 0 … count-1."""
    return (uniform * count).long().clamp(max=count - 1)


def unchanged(size: int, device: torch.device) -> Tensor:
    """Rows that leave images as they are: [size, columns]. On a device they are filled there, not copied to it: a copy
    from the host cannot be recorded."""
    if device.type == "cpu":
        return IDENTITY_ROW.expand(size, -1).clone()
    table = torch.empty(size, len(IDENTITY), device=device)
    for column, value in enumerate(IDENTITY):
        table[:, column].fill_(value)
    return table


def parameters(name: str, magnitude: Tensor, centre: Tensor | None = None) -> Tensor:
    """What an operation of `OPERATIONS` does: [N, columns].

    Args:
        magnitude: [N], in the operation's unit.
        centre: [N, 2], of a cut-out square: y and x as shares of height and width.
    """
    table = unchanged(len(magnitude), magnitude.device)
    if centre is not None:
        table[:, CENTRE_Y : CENTRE_X + 1] = centre
    for column, setter in OPERATIONS[name].items():
        table[:, column] = setter(magnitude)
    return table


def chosen_parameters(names: Sequence[str], number: Tensor, magnitude: Tensor, shape: Sequence[int]) -> Tensor:
    """What each image's own operation does: [B, columns]. Images are sheared about their corner, as PIL shears them.

    Args:
        number: [B], of its name.
        magnitude: [B], in its unit.
        shape: (H, W) of the images.
    """
    table: Tensor | None = None
    # On the CPU the host may look which there are; elsewhere it would wait for the device.
    there = set(number.tolist()) if number.device.type == "cpu" else range(len(names))
    for index, name in enumerate(names):
        if index not in there:
            continue
        its = parameters(name, magnitude)
        if name in _ABOUT_CORNER:
            height, width = shape
            side = height / width if name == "shear_x" else width / height
            its[:, _ABOUT_CORNER[name]] = magnitude * (side / 2)
        table = its if table is None else torch.where((number == index)[:, None], its, table)
    return unchanged(len(magnitude), magnitude.device) if table is None else table
