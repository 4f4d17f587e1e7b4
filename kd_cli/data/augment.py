"""Batched augmentation: the random numbers of an epoch are drawn for all images at once, a batch takes its rows.

none       nothing
flip       horizontal, probability 1/2
crop_flip  four black pixels are added at each side and a random window of the old size cut out; then flip
strong     crop_flip, then two random operations (with replacement) of random signed strength, in the manner of
           RandAugment (Cubuk et al. 2019, arXiv:1909.13719; its strengths are one number for all, here each is drawn),
           one of which is Cutout (DeVries and Taylor 2017, arXiv:1708.04552)

Pixels are uint8 before and after every step and sampled nearest, so that an image's result never depends on its batch.
N training images, B per batch, [B, H, W, C] pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

NAMES = ("none", "flip", "crop_flip", "strong")
PADDING = 4  # pixels; He et al. 2016, arXiv:1512.03385, §4.2
NUM_OPERATIONS = 2  # RandAugment's N

# Columns of the table: the crop and the flip, then for each operation its parameters.
DOWN, RIGHT, FLIP, FIRST = 0, 1, 2, 3
FACTOR, TO_MEAN, TO_GREY, XX, XY, X1, YX, YY, Y1, CENTRE_Y, CENTRE_X, HALF = range(12)
IDENTITY = (1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.5, 0.5, 0.0)

Setter = Callable[[Tensor], Tensor]
ANGLE = math.radians(30)


def _factor(strength: Tensor) -> Tensor:
    return 1 + 0.9 * strength


def _three_tenths(strength: Tensor) -> Tensor:
    return 0.3 * strength


# operation → the parameters that its strength, -1 … 1, sets; strength 0 is the identity. The ranges are RandAugment's.
OPERATIONS: Mapping[str, Mapping[int, Setter]] = {
    "brightness": {FACTOR: _factor},
    "contrast": {FACTOR: _factor, TO_MEAN: torch.ones_like},
    "saturation": {FACTOR: _factor, TO_GREY: torch.ones_like},
    "rotate": {
        XX: lambda strength: torch.cos(ANGLE * strength),
        XY: lambda strength: -torch.sin(ANGLE * strength),
        YX: lambda strength: torch.sin(ANGLE * strength),
        YY: lambda strength: torch.cos(ANGLE * strength),
    },
    "shear_x": {XY: _three_tenths},
    "shear_y": {YX: _three_tenths},
    "translate_x": {X1: _three_tenths},
    "translate_y": {Y1: _three_tenths},
    "cutout": {HALF: lambda strength: 0.25 * strength.abs()},  # up to half the image: 16 pixels of 32
}


def draw(name: str, size: int, channels: int, generator: torch.Generator) -> Tensor:
    """The table of an epoch: [N, columns], float32; a row is all that is random about one image.

    Args:
        name: one of `NAMES`.
        size: N.
        channels: C; saturation is for three.
    """
    if name == "none":
        return torch.zeros(size, 0)
    down, right, flip = torch.rand(3, size, generator=generator)
    shift = [_pick(each, 2 * PADDING + 1).float() - PADDING for each in (down, right)]
    columns = [torch.stack([*shift, (flip < 0.5).float()], dim=1)]
    if name == "flip":
        columns[0][:, :FLIP] = 0
    if name == "strong":
        columns += [_draw_operation(size, channels, generator) for _ in range(NUM_OPERATIONS)]
    return torch.cat(columns, dim=1)


def _draw_operation(size: int, channels: int, generator: torch.Generator) -> Tensor:
    """For each image one operation's parameters: [N, 12]."""
    names = [name for name in OPERATIONS if channels == 3 or name != "saturation"]
    choice, strength, *centre = torch.rand(4, size, generator=generator)
    number, strength, middle = _pick(choice, len(names)), 2 * strength - 1, torch.stack(centre, dim=1)
    table = torch.empty(size, len(IDENTITY))
    for index, name in enumerate(names):
        chosen = number == index
        table[chosen] = parameters(name, strength[chosen], middle[chosen])
    return table


def _pick(uniform: Tensor, count: int) -> Tensor:
    """Numbers of [0, 1) as whole numbers 0 … count-1."""
    return (uniform * count).long().clamp(max=count - 1)


def parameters(name: str, strength: Tensor, centre: Tensor) -> Tensor:
    """What an operation of `OPERATIONS` does: [N, 12].

    Args:
        strength: [N], -1 … 1.
        centre: [N, 2], of a cut-out square: y and x as shares of height and width.
    """
    table = torch.tensor(IDENTITY).repeat(len(strength), 1)
    table[:, CENTRE_Y : CENTRE_X + 1] = centre
    for column, setter in OPERATIONS[name].items():
        table[:, column] = setter(strength)
    return table


def apply(name: str, pixels: Tensor, table: Tensor) -> Tensor:
    """Augments a batch.

    Args:
        name: one of `NAMES`.
        pixels: [B, H, W, C], uint8.
        table: [B, columns], these images' rows of what `draw` gave for this name.
    """
    if name == "none" or not len(pixels):
        return pixels
    pixels = shift_and_flip(pixels, table[:, DOWN], table[:, RIGHT], table[:, FLIP])
    for start in range(FIRST, table.shape[1], len(IDENTITY)):
        pixels = operate(pixels, table[:, start : start + len(IDENTITY)])
    return pixels


def shift_and_flip(pixels: Tensor, down: Tensor, right: Tensor, flip: Tensor) -> Tensor:
    """The window that lies `down` and `right` of the image, [B] pixels each; mirrored where `flip` is 1."""
    batch, height, width, channels = pixels.shape
    padded = functional.pad(pixels, (0, 0, PADDING, PADDING, PADDING, PADDING))
    image, line, pixel, _ = padded.stride()
    number = torch.arange(batch, device=pixels.device)
    corner = number * image + (down.long() + PADDING) * line + (right.long() + PADDING) * pixel
    starts = corner[:, None] + torch.arange(height, device=pixels.device) * line  # [B, H]
    # Each byte of `padded` as the start of a run as long as one line: a line is then one copy.
    run = width * channels
    runs = padded.as_strided((padded.numel() - run + 1, run), (1, 1))
    window = runs.index_select(0, starts.flatten()).view(pixels.shape)
    both = torch.cat([window, window.flip(2)])
    return both.index_select(0, number + flip.long() * batch)


def operate(pixels: Tensor, table: Tensor) -> Tensor:
    """One operation per image; `table` [B, 12] as `parameters` gives it."""
    return operate_on_some(pixels, table) if pixels.device.type == "cpu" else operate_on_all(pixels, table)


def operate_on_all(pixels: Tensor, table: Tensor) -> Tensor:
    """Each step sees all images, the same bits come of those that it leaves alone: the host need not know which."""
    for step, _ in STEPS:
        pixels = step(pixels, table)
    return pixels


def operate_on_some(pixels: Tensor, table: Tensor) -> Tensor:
    """Each step sees only the images that it changes, which is less work."""
    identity = torch.tensor(IDENTITY, device=table.device)
    for step, columns in STEPS:
        differs = (table[:, columns] != identity[columns]).any(dim=1).nonzero().flatten()
        if len(differs):
            pixels = pixels.index_copy(0, differs, step(pixels[differs], table[differs]))
    return pixels


def _blend(pixels: Tensor, table: Tensor) -> Tensor:
    """Moves each pixel away from (factor > 1) or towards black, the image's mean grey, or its own grey."""
    grey = luma(pixels)
    mean = (grey.sum(dim=(1, 2), keepdim=True) + grey[0].numel() // 2) // grey[0].numel()
    factor, to_mean, to_grey = (_spread(table[:, column]) for column in (FACTOR, TO_MEAN, TO_GREY))
    origin = mean * to_mean + grey * to_grey
    return origin.add((pixels - origin).mul_(factor)).round_().clamp_(0, 255).to(torch.uint8)


def luma(pixels: Tensor) -> Tensor:
    """Luma in whole numbers (ITU-R 601 in 16 bits, as PIL has it): [B, H, W, 1]. Sums of it are exact in any order."""
    if pixels.shape[-1] != 3:
        return pixels.int().sum(dim=-1, keepdim=True) // pixels.shape[-1]
    red, green, blue = pixels.int().unbind(dim=-1)
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).unsqueeze(-1)


def _warp(pixels: Tensor, table: Tensor) -> Tensor:
    """An affine map about the centre; the table holds where each output pixel comes from."""
    _, height, width, _ = pixels.shape
    dy = (torch.arange(height, device=pixels.device) - (height - 1) / 2)[:, None]
    dx = torch.arange(width, device=pixels.device) - (width - 1) / 2
    xx, xy, x1, yx, yy, y1 = (each[:, None, None] for each in table[:, XX : Y1 + 1].unbind(dim=1))
    x = xx * dx + xy * dy + (width - 1) / 2 + x1 * width
    y = yx * dx + yy * dy + (height - 1) / 2 + y1 * height
    return _sample(pixels, y.round().long(), x.round().long())


def _cut_out(pixels: Tensor, table: Tensor) -> Tensor:
    """Blackens a square."""
    _, height, width, _ = pixels.shape
    rows = torch.arange(height, device=pixels.device) + 0.5
    columns = torch.arange(width, device=pixels.device) + 0.5
    half = table[:, HALF, None]
    hit_row = (rows - table[:, CENTRE_Y, None] * height).abs() < half * height
    hit_column = (columns - table[:, CENTRE_X, None] * width).abs() < half * width
    return pixels.masked_fill((hit_row[:, :, None] & hit_column[:, None, :]).unsqueeze(-1), 0)


def _sample(pixels: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """The pixels at (y, x), whole numbers that broadcast to [B, H, W]; black outside the image."""
    batch, height, width, channels = pixels.shape
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    first = torch.arange(batch, device=pixels.device)[:, None, None] * (height * width)
    index = (first + y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).flatten()
    taken = pixels.reshape(-1, channels).index_select(0, index).view(pixels.shape)
    return taken.mul_(inside.unsqueeze(-1))


def _spread(column: Tensor) -> Tensor:
    """[B] → [B, 1, 1, 1]."""
    return column[:, None, None, None]


STEPS: tuple[tuple[Callable[[Tensor, Tensor], Tensor], slice], ...] = (
    (_blend, slice(FACTOR, FACTOR + 1)),
    (_warp, slice(XX, Y1 + 1)),
    (_cut_out, slice(HALF, HALF + 1)),
)
