"""Does the operations of `operations` to a batch.

Pixels are uint8 before and after every step, warped ones are sampled nearest, and what becomes of an image never
depends on its batch. B per batch, [B, H, W, C] pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from kd_cli.data.augmentations.operations import (
    BRIGHT,
    CENTRE_X,
    CENTRE_Y,
    COLOUR,
    CONTRAST,
    EQUALISE,
    HALF,
    HUE,
    IDENTITY_ROW,
    MASK,
    SHARP,
    STRETCH,
    THRESHOLD,
    XX,
    Y1,
)
from kd_cli.data.resize import luma, rounded

_CHUNK = 2**18  # bytes of pixels that a step sees at a time on the CPU: they stay in its cache

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
    """Each step sees only the images that it changes, a few at a time, which is less work."""
    differs = table.ne(IDENTITY_ROW)
    wanted = differs.any(dim=0).tolist()
    together = max(1, _CHUNK // pixels[0].numel())
    result = pixels
    for step, columns in steps:
        if not any(wanted[columns]):
            continue
        if len(pixels) == 1:
            result = step(result, table)
            continue
        result = pixels.clone() if result is pixels else result
        for some in differs[:, columns].any(dim=1).nonzero().flatten().split(together):
            chosen = slice(int(some[0]), int(some[0]) + 1) if len(some) == 1 else some
            result[chosen] = step(result[chosen], table[chosen])
    return result


def _brighten(pixels: Tensor, table: Tensor) -> Tensor:
    return rounded(pixels.float().mul_(_spread(table[:, BRIGHT])))


def _contrast(pixels: Tensor, table: Tensor) -> Tensor:
    """Moves each pixel away from (factor > 1) or towards the image's mean grey."""
    grey = _grey(pixels, "L")
    mean = (grey.sum(dim=(1, 2), keepdim=True) + grey[0].numel() // 2) // grey[0].numel()
    return _away_from(mean.float(), pixels, table[:, CONTRAST])


def _saturate(pixels: Tensor, table: Tensor) -> Tensor:
    """Moves each pixel away from (factor > 1) or towards its own grey."""
    return _away_from(_grey(pixels, "RGB").float(), pixels, table[:, COLOUR])


def _away_from(middle: Tensor, pixels: Tensor, factor: Tensor) -> Tensor:
    """Each image moved away from float32 values, by factors [B]. (Whole numbers are exact in float32.)"""
    return rounded((pixels.float() - middle).mul_(_spread(factor)).add_(middle))


def _grey(pixels: Tensor, mode: str) -> Tensor:
    """[B, H, W, 1], whole numbers; of one image it may be [1, H, W, 3], three times the same, if that is its mode."""
    image = _one_image(pixels)
    if image is None:
        return luma(pixels)
    grey = np.array(image.convert("L").convert(mode))
    return torch.from_numpy(grey).view(1, *grey.shape[:2], -1)


def _one_image(pixels: Tensor) -> Image.Image | None:
    """The only one, if it is a coloured one on the CPU: some things PIL does there in a fraction of the time, and its
    bits are the same."""
    if pixels.device.type != "cpu" or len(pixels) != 1 or pixels.shape[-1] != 3:
        return None
    return Image.fromarray(pixels[0].numpy())


def _sharpen(pixels: Tensor, table: Tensor) -> Tensor:
    """Moves each pixel away from (or towards) the smoothed image, PIL's 3×3 filter; the outermost pixels stay."""
    if min(pixels.shape[1:3]) < 3:
        return pixels
    values = pixels.float()
    return rounded((values - _smooth(pixels)).mul_(_spread(table[:, SHARP])).add_(values))


def _smooth(pixels: Tensor) -> Tensor:
    """float32; the outermost pixels as they are. A sum of bytes is never half a thirteenth from two whole numbers."""
    values = pixels.to(torch.int16)  # sums of thirteen bytes
    rows = values[:, :-2] + values[:, 1:-1] + values[:, 2:]
    squares = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    result = values.float()
    result[:, 1:-1, 1:-1] = squares.add_(values[:, 1:-1, 1:-1], alpha=4).float().div_(13).round_()
    return result


def _warp(pixels: Tensor, table: Tensor) -> Tensor:
    """An affine map about the centre; the table holds where each output pixel comes from."""
    if pixels.device.type == "cpu" and len(pixels) == 1:
        return _warp_one(pixels, table[0, XX : Y1 + 1].numpy())
    _, height, width, _ = pixels.shape
    dy = (torch.arange(height, device=pixels.device) - (height - 1) / 2)[:, None]
    dx = torch.arange(width, device=pixels.device) - (width - 1) / 2
    xx, xy, x1, yx, yy, y1 = (each[:, None, None] for each in table[:, XX : Y1 + 1].unbind(dim=1))
    x = xx * dx + xy * dy + (width - 1) / 2 + x1 * width
    y = yx * dx + yy * dy + (height - 1) / 2 + y1 * height
    return _sample(pixels, y.round_().int(), x.round_().int())


def _warp_one(pixels: Tensor, row: Any) -> Tensor:
    """As `_warp`, of one image on the CPU: the same numbers in the same order, and a pixel is one number of C bytes."""
    _, height, width, channels = pixels.shape
    dy = (np.arange(height, dtype=np.float32) - np.float32((height - 1) / 2))[:, None]
    dx = np.arange(width, dtype=np.float32) - np.float32((width - 1) / 2)
    xx, xy, x1, yx, yy, y1 = row
    x, inside_x = _rounded(xx * dx + xy * dy if xy else xx * dx, x1, width)
    y, inside_y = _rounded(yx * dx + yy * dy if yx else yy * dy, y1, height)
    index = y * width + (x + 1)
    index *= inside_x & inside_y
    black = np.zeros((1, channels), dtype=np.uint8)  # number 0
    lined = np.concatenate([black, pixels.numpy().reshape(-1, channels)]).view(f"V{channels}")[:, 0]
    return torch.from_numpy(lined.take(index, mode="clip").view(np.uint8).reshape(pixels.shape))


def _rounded(values: Any, share: Any, side: int) -> tuple[Any, Any]:
    """Places on a side, from how far they are from its middle, moved by a share of it; and which are on it."""
    values += np.float32((side - 1) / 2)
    values += share * np.float32(side)
    whole = np.rint(values, out=values).astype(np.int64)
    return whole, whole.view(np.uint64) < side


def _sample(pixels: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """The pixels at (y, x), whole numbers that broadcast to [B, H, W]; black outside the image."""
    batch, height, width, channels = pixels.shape
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    index = (y.clamp(0, height - 1) * width).add_(x.clamp(0, width - 1))
    if batch > 1:
        index = torch.arange(batch, device=pixels.device)[:, None, None] * (height * width) + index
    index = index.flatten()
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
    bright = pixels >= _spread(table[:, THRESHOLD].ceil().to(torch.int16))
    return pixels ^ bright.to(torch.uint8).mul_(255)


def _autocontrast(pixels: Tensor, table: Tensor) -> Tensor:
    """Each channel from its darkest pixel to its brightest becomes 0 … 255; a channel of one value stays."""
    image = _one_image(pixels)
    if image is not None:
        limits = torch.tensor(image.getextrema(), dtype=torch.uint8).T[None, :, None]  # [1, 2, 1, C]
        ramp = torch.arange(256, dtype=torch.uint8)[None, :, None, None].expand(1, 256, 1, 3)
        curves = _stretched(ramp, limits, table)[0, :, 0].T  # what each channel's values become
        return torch.from_numpy(np.array(image.point(curves.flatten().tolist())))[None]
    limits = torch.stack([pixels.amin(dim=(1, 2)), pixels.amax(dim=(1, 2))], dim=1)[:, :, None]
    return _stretched(pixels, limits, table)


def _stretched(values: Tensor, limits: Tensor, table: Tensor) -> Tensor:
    """Values [B, …, C] from what is the least and the largest [B, 2, 1, C] to 0 … 255."""
    low, high = limits[:, :1].float(), limits[:, 1:].float()
    wanted = (_spread(table[:, STRETCH]) > 0) & (high > low)
    scale = torch.where(wanted, 255 / (high - low), 1.0)
    return rounded((values.float() - torch.where(wanted, low, 0.0)).mul_(scale))


def _equalize(pixels: Tensor, table: Tensor) -> Tensor:
    """Each channel's values as they are spread evenly over 0 … 255, by PIL's rule in whole numbers."""
    image = _one_image(pixels)
    if image is not None and bool(table[0, EQUALISE]):
        return torch.from_numpy(np.array(ImageOps.equalize(image)))[None]
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


COLOURS: Sequence[Step] = (
    (_brighten, slice(BRIGHT, BRIGHT + 1)),
    (_contrast, slice(CONTRAST, CONTRAST + 1)),
    (_saturate, slice(COLOUR, COLOUR + 1)),
)
WARP: Step = (_warp, slice(XX, Y1 + 1))
CUT_OUT: Step = (_cut_out, slice(HALF, HALF + 1))
HUE_STEP: Step = (_turn_hue, slice(HUE, HUE + 1))
STEPS: Sequence[Step] = (
    *COLOURS,
    WARP,
    CUT_OUT,
    HUE_STEP,
    (_sharpen, slice(SHARP, SHARP + 1)),
    (_posterize, slice(MASK, MASK + 1)),
    (_solarize, slice(THRESHOLD, THRESHOLD + 1)),
    (_autocontrast, slice(STRETCH, STRETCH + 1)),
    (_equalize, slice(EQUALISE, EQUALISE + 1)),
)
