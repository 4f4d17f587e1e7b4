"""How images of any size become pixels of one size. Images are uint8, [H, W, C]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional

from kd_cli.data.resize import resize_as_pil

Interpolation = Literal["bilinear", "bicubic"]
Resize = Literal["auto", "stretch"]
Box = tuple[int, int, int, int]  # top, left, height, width, pixels

_SMALL = 64  # pixels: up to here images are stretched by default
# Of a JPEG, decoded at 1/2, 1/4 or 1/8 of its size, at least twice the pixels are left that are wanted: the resampling
# that follows is then hardly another than that of the whole image (Pillow's documentation of `reducing_gap`).
_GAP = 2
_SCALES = (8, 4, 2)


@dataclass(frozen=True)
class Geometry:
    """How image files become images of one size.

    Args:
        image_size: H = W, pixels; None: all files must have one size.
        resize: pixels of the shorter side, of which the middle is cut out; `stretch`: to the square, whatever the
            shape; `auto`: `stretch` up to 64 pixels and image_size / crop_pct above.
        crop_pct: the share of the shorter side that is cut out, where `resize` does not say it, in (0, 1].
        interpolation: with antialiasing, as PIL has it.

    Raises:
        ValueError: a value out of range.
    """

    image_size: int | None = None
    resize: Resize | int = "auto"
    crop_pct: float = 0.875
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        size = self.image_size
        if size is not None and size < 1:
            raise ValueError(f"image_size={size} must be above 0 pixels; type dataset.image_size=32")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct={self.crop_pct} is outside 0 … 1; type dataset.crop_pct=0.875")
        if self.resize != "auto" and size is None:
            raise ValueError(f"resize={self.resize} says nothing without image_size; type dataset.image_size=224")
        if isinstance(self.resize, int) and size is not None and self.resize < size:
            raise ValueError(
                f"resize={self.resize}: {size}×{size} pixels cannot be cut out of that; type dataset.resize={size}"
            )

    @property
    def shorter(self) -> int | None:
        """Pixels of the shorter side once resized; None where images are stretched."""
        if self.image_size is None or self.resize == "stretch":
            return None
        if isinstance(self.resize, int):
            return self.resize
        return None if self.image_size <= _SMALL else int(self.image_size / self.crop_pct)

    def record(self) -> dict[str, Any]:
        """What a run keeps of it; nothing where images are as they were, or stretched as ever."""
        if self.shorter is None:
            return {}
        return {"resize": self.shorter, "interpolation": self.interpolation}

    def fitted(self, pixels: Tensor) -> Tensor:
        """[H, W, C] → [image_size, image_size, C]."""
        size = self.image_size
        if size is None:
            return pixels
        if self.shorter is None:
            shape = (size, size, pixels.shape[-1])
            return pixels if pixels.shape == shape else resize_as_pil(pixels, shape)
        sides = shorter_to(pixels.shape[0], pixels.shape[1], self.shorter)
        return cut_middle(resample(pixels, sides, self.interpolation), size)

    def window(self, pixels: Tensor, box: Box) -> Tensor:
        """What is inside a box, resized to [image_size, image_size, C]."""
        assert self.image_size is not None
        top, left, tall, wide = box
        return resample(pixels[top : top + tall, left : left + wide], (self.image_size,) * 2, self.interpolation)

    def scale(self, height: int, width: int) -> int:
        """1, 2, 4 or 8: of a JPEG of this size every so many pixels are enough."""
        return reduction(height, width, self.shorter or self.image_size or max(height, width))

    def window_scale(self, box: Box) -> int:
        """As `scale`, for a box of an image."""
        return reduction(*box[2:], self.image_size or 1)


def reduction(height: int, width: int, wanted: int) -> int:
    """The largest of 1, 2, 4, 8 that leaves twice the wanted pixels of the shorter side."""
    return next((scale for scale in _SCALES if min(height, width) >= scale * _GAP * wanted), 1)


def scaled_box(box: Box, scale: int, height: int, width: int) -> Box:
    """A box of an image in the same image of 1/scale of its size, whose height and width are given."""
    if scale == 1:
        return box
    top, left = (round(each / scale) for each in box[:2])
    tall, wide = (max(1, round(each / scale)) for each in box[2:])
    return top, left, min(tall, height - top), min(wide, width - left)


def shorter_to(height: int, width: int, shorter: int) -> tuple[int, int]:
    """(H, W) once the shorter side has so many pixels; the longer one's fraction is dropped, as torchvision does."""
    if height <= width:
        return shorter, int(shorter * width / height)
    return int(shorter * height / width), shorter


def cut_middle(pixels: Tensor, size: int) -> Tensor:
    """[size, size, C] out of the middle; where a pixel is over, as torchvision cuts."""
    top, left = (round((side - size) / 2) for side in pixels.shape[:2])
    return pixels[top : top + size, left : left + size].contiguous()


def resample(pixels: Tensor, sides: tuple[int, int], interpolation: str) -> Tensor:
    """[H, W, C] → [*sides, C], antialiased; off by at most one grey level from PIL."""
    if tuple(pixels.shape[:2]) == sides:
        return pixels.contiguous()
    # A batch of one, made before its dimensions are permuted: only so is it known to be channels last, and not copied.
    planes = pixels[None].permute(0, 3, 1, 2)
    resized = functional.interpolate(planes, size=sides, mode=interpolation, antialias=True)
    return resized.permute(0, 2, 3, 1)[0].contiguous()


def geometry_of(record: Mapping[str, Any]) -> Geometry | None:
    """How a run's images were brought to one size; None where they were not, or were stretched."""
    if "resize" not in record:
        return None
    return Geometry(record["image_size"][0], record["resize"], interpolation=record["interpolation"])
