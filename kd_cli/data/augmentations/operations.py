"""What can be done to an image's pixels, for a whole batch at once: each image has a row of parameters of its own.

Pixels are uint8 before and after every step, warped ones are sampled nearest, and what becomes of an image never
depends on its batch. B per batch, [B, H, W, C] pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from kd_cli.data.resize import luma

# Columns of a row of parameters.
FACTOR, TO_MEAN, TO_GREY, XX, XY, X1, YX, YY, Y1, CENTRE_Y, CENTRE_X, HALF = range(12)
SHARP, MASK, THRESHOLD, STRETCH, EQUALISE, HUE = range(12, 18)
IDENTITY = (1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.5, 0.5, 0.0, 0.0, 255.0, 256.0, 0.0, 0.0, 0.0)

Setter = Callable[[Tensor], Tensor]


def _itself(magnitude: Tensor) -> Tensor:
    return magnitude


def _factor(magnitude: Tensor) -> Tensor:
    return 1 + magnitude


# operation → the parameters that its magnitude sets. Its unit: of the colour operations how far a factor is from 1, of
# rotate radians, of shears tangents, of translations and cutout (half a side) shares of the image, of posterize bits that
# are taken away, of solarize the grey level from which on pixels are inverted, of hue turns. Others have none.
OPERATIONS: Mapping[str, Mapping[int, Setter]] = {
    "identity": {},
    "brightness": {FACTOR: _factor},
    "contrast": {FACTOR: _factor, TO_MEAN: torch.ones_like},
    "saturation": {FACTOR: _factor, TO_GREY: torch.ones_like},
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


def parameters(name: str, magnitude: Tensor, centre: Tensor | None = None) -> Tensor:
    """What an operation of `OPERATIONS` does: [N, columns].

    Args:
        magnitude: [N], in the operation's unit.
        centre: [N, 2], of a cut-out square: y and x as shares of height and width.
    """
    table = torch.tensor(IDENTITY, device=magnitude.device).repeat(len(magnitude), 1)
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
    table = torch.tensor(IDENTITY, device=magnitude.device).repeat(len(magnitude), 1)
    for index, name in enumerate(names):
        its = parameters(name, magnitude)
        if name in _ABOUT_CORNER:
            height, width = shape
            side = height / width if name == "shear_x" else width / height
            its[:, _ABOUT_CORNER[name]] = magnitude * (side / 2)
        table = torch.where((number == index)[:, None], its, table)
    return table


Step = tuple[Callable[[Tensor, Tensor], Tensor], slice]


def operate(pixels: Tensor, table: Tensor, steps: Sequence[Step] | None = None) -> Tensor:
    """One operation per image.

    Args:
        table: [B, columns], as `parameters` gives it.
        steps: which of `STEPS` may be wanted.
    """
    some = operate_on_some if pixels.device.type == "cpu" else operate_on_all
    return some(pixels, table, STEPS if steps is None else steps)


def operate_on_all(pixels: Tensor, table: Tensor, steps: Sequence[Step]) -> Tensor:
    """Each step sees all images, the same bits come of those that it leaves alone: the host need not know which."""
    for step, _ in steps:
        pixels = step(pixels, table)
    return pixels


def operate_on_some(pixels: Tensor, table: Tensor, steps: Sequence[Step]) -> Tensor:
    """Each step sees only the images that it changes, which is less work."""
    identity = torch.tensor(IDENTITY, device=table.device)
    for step, columns in steps:
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


def _sharpen(pixels: Tensor, table: Tensor) -> Tensor:
    """Moves each pixel away from (or towards) the smoothed image, PIL's 3×3 filter; the outermost pixels stay."""
    if min(pixels.shape[1:3]) < 3:
        return pixels
    values = pixels.int()
    rows = values[:, :-2] + values[:, 1:-1] + values[:, 2:]
    inner = values[:, 1:-1, 1:-1]
    smooth = ((rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * inner).float() / 13).round_()
    sharpened = (inner + (inner - smooth).mul_(_spread(table[:, SHARP]))).round_().clamp_(0, 255)
    result = pixels.clone()
    result[:, 1:-1, 1:-1] = sharpened.to(torch.uint8)
    return result


def _warp(pixels: Tensor, table: Tensor) -> Tensor:
    """An affine map about the centre; the table holds where each output pixel comes from."""
    _, height, width, _ = pixels.shape
    dy = (torch.arange(height, device=pixels.device) - (height - 1) / 2)[:, None]
    dx = torch.arange(width, device=pixels.device) - (width - 1) / 2
    xx, xy, x1, yx, yy, y1 = (each[:, None, None] for each in table[:, XX : Y1 + 1].unbind(dim=1))
    x = xx * dx + xy * dy + (width - 1) / 2 + x1 * width
    y = yx * dx + yy * dy + (height - 1) / 2 + y1 * height
    return _sample(pixels, y.round().long(), x.round().long())


def _sample(pixels: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """The pixels at (y, x), whole numbers that broadcast to [B, H, W]; black outside the image."""
    batch, height, width, channels = pixels.shape
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    first = torch.arange(batch, device=pixels.device)[:, None, None] * (height * width)
    index = (first + y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).flatten()
    taken = pixels.reshape(-1, channels).index_select(0, index).view(pixels.shape)
    return taken.mul_(inside.unsqueeze(-1))


def _cut_out(pixels: Tensor, table: Tensor) -> Tensor:
    """Blackens a square."""
    _, height, width, _ = pixels.shape
    rows = torch.arange(height, device=pixels.device) + 0.5
    columns = torch.arange(width, device=pixels.device) + 0.5
    half = table[:, HALF, None]
    hit_row = (rows - table[:, CENTRE_Y, None] * height).abs() < half * height
    hit_column = (columns - table[:, CENTRE_X, None] * width).abs() < half * width
    return pixels.masked_fill((hit_row[:, :, None] & hit_column[:, None, :]).unsqueeze(-1), 0)


def _posterize(pixels: Tensor, table: Tensor) -> Tensor:
    """Keeps the highest bits."""
    return pixels & _spread(table[:, MASK].to(torch.uint8))


def _solarize(pixels: Tensor, table: Tensor) -> Tensor:
    """Inverts the pixels that are as bright as the threshold."""
    return torch.where(pixels >= _spread(table[:, THRESHOLD]), 255 - pixels, pixels)


def _autocontrast(pixels: Tensor, table: Tensor) -> Tensor:
    """Each channel from its darkest pixel to its brightest becomes 0 … 255; a channel of one value stays."""
    low, high = pixels.amin(dim=(1, 2), keepdim=True).float(), pixels.amax(dim=(1, 2), keepdim=True).float()
    wanted = (_spread(table[:, STRETCH]) > 0) & (high > low)
    scale = torch.where(wanted, 255 / (high - low), 1.0)
    return (pixels - torch.where(wanted, low, 0.0)).mul_(scale).round_().clamp_(0, 255).to(torch.uint8)


def _equalize(pixels: Tensor, table: Tensor) -> Tensor:
    """Each channel's values as they are spread evenly over 0 … 255, by PIL's rule in whole numbers."""
    batch, height, width, channels = pixels.shape
    planes = pixels.permute(0, 3, 1, 2).reshape(batch * channels, -1)
    upto = _counts_upto(planes)
    brightest = planes.amax(dim=1, keepdim=True).long()
    before = functional.pad(upto, (1, 0))  # [planes, 257]: pixels below a value
    step = before.gather(1, brightest) // 255  # all but those of the brightest value
    curve = (step // 2 + before[:, :-1]) // step.clamp(min=1)
    wanted = (table[:, EQUALISE] > 0).repeat_interleave(channels)[:, None] & (step > 0)
    curve = torch.where(wanted, curve, torch.arange(256, device=pixels.device)).clamp(max=255).to(torch.uint8)
    first = torch.arange(len(planes), device=pixels.device)[:, None] * 256
    mapped = curve.flatten().index_select(0, (planes + first).flatten())
    return mapped.view(batch, channels, height, width).permute(0, 2, 3, 1).contiguous()


def _counts_upto(planes: Tensor) -> Tensor:
    """How many pixels are at most 0, 1, … 255: [planes, 256]. Elsewhere than on the CPU by sorting: no atomics."""
    if planes.device.type == "cpu":
        first = torch.arange(len(planes))[:, None] * 256
        counts = torch.bincount((planes + first).flatten(), minlength=256 * len(planes))
        return counts.view(-1, 256).cumsum(dim=1)
    levels = torch.arange(256, device=planes.device, dtype=torch.uint8).expand(len(planes), 256).contiguous()
    return torch.searchsorted(planes.sort(dim=1).values, levels, right=True)


def _turn_hue(pixels: Tensor, table: Tensor) -> Tensor:
    """Turns the hue of HSV; saturation and value stay."""
    if pixels.shape[-1] != 3:
        return pixels
    values = pixels.float()
    high, low = values.amax(dim=-1), values.amin(dim=-1)
    range_ = high - low
    red, green, blue = values.unbind(dim=-1)
    among = torch.where(range_ > 0, range_, 1.0)
    hue = torch.where(
        high == red,
        (green - blue) / among,
        torch.where(high == green, 2 + (blue - red) / among, 4 + (red - green) / among),
    )
    turned = (hue / 6 + table[:, HUE, None, None]).remainder(1) * 6
    # A channel is at `high` within a sixth of the circle beside its own hue, at `low` opposite, on a line between.
    channels = [(turned + offset).remainder(6) for offset in (5.0, 3.0, 1.0)]
    made = [high - range_ * torch.minimum(each, 4 - each).clamp(0, 1) for each in channels]
    same = (table[:, HUE] == 0)[:, None, None, None]
    return torch.where(same, pixels, torch.stack(made, dim=-1).round_().to(torch.uint8))


def _spread(column: Tensor) -> Tensor:
    """[B] → [B, 1, 1, 1]."""
    return column[:, None, None, None]


BLEND: Step = (_blend, slice(FACTOR, FACTOR + 1))
WARP: Step = (_warp, slice(XX, Y1 + 1))
CUT_OUT: Step = (_cut_out, slice(HALF, HALF + 1))
HUE_STEP: Step = (_turn_hue, slice(HUE, HUE + 1))
STEPS: Sequence[Step] = (
    BLEND,
    WARP,
    CUT_OUT,
    HUE_STEP,
    (_sharpen, slice(SHARP, SHARP + 1)),
    (_posterize, slice(MASK, MASK + 1)),
    (_solarize, slice(THRESHOLD, THRESHOLD + 1)),
    (_autocontrast, slice(STRETCH, STRETCH + 1)),
    (_equalize, slice(EQUALISE, EQUALISE + 1)),
)
