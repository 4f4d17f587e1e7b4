"""How far kd's preprocessing is from torchvision's and PIL's: grey levels on real images, as a table.

python -m benchmarks.augmentations FOLDER    # of photographs; without one, of enlarged digits
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as v2

from kd_cli.data.augmentations import operations, steps
from kd_cli.data.augmentations.random_resized_crop import RandomResizedCrop
from kd_cli.data.geometry import Geometry

SIDE = 224
_DEGREES = math.degrees


def _pil(change: Callable[[Image.Image], Image.Image]) -> Callable[[Tensor], Tensor]:
    return lambda pixels: torch.from_numpy(np.array(change(Image.fromarray(pixels.numpy()))))


def _affine(angle: float, move: tuple[float, float], shear: tuple[float, float], corner: bool) -> Callable[..., Tensor]:
    centre = [0.0, 0.0] if corner else None
    return lambda planes: v2.affine(planes, angle, [round(each) for each in move], 1.0, list(shear), center=centre)


# operation → its magnitude, torchvision's on [C, H, W] and PIL's on an image, where it has the operation
SAME: Mapping[str, tuple[float, Callable[[Tensor], Tensor], Callable[[Image.Image], Image.Image] | None]] = {
    "brightness": (0.5, lambda x: v2.adjust_brightness(x, 1.5), lambda x: ImageEnhance.Brightness(x).enhance(1.5)),
    "contrast": (-0.5, lambda x: v2.adjust_contrast(x, 0.5), lambda x: ImageEnhance.Contrast(x).enhance(0.5)),
    "saturation": (0.8, lambda x: v2.adjust_saturation(x, 1.8), lambda x: ImageEnhance.Color(x).enhance(1.8)),
    "sharpness": (0.9, lambda x: v2.adjust_sharpness(x, 1.9), lambda x: ImageEnhance.Sharpness(x).enhance(1.9)),
    "hue": (0.1, lambda x: v2.adjust_hue(x, 0.1), None),
    "posterize": (4.0, lambda x: v2.posterize(x, 4), lambda x: ImageOps.posterize(x, 4)),
    "solarize": (128.0, lambda x: v2.solarize(x, 128), lambda x: ImageOps.solarize(x, 128)),
    "invert": (0.0, v2.invert, ImageOps.invert),
    "autocontrast": (0.0, v2.autocontrast, ImageOps.autocontrast),
    "equalize": (0.0, v2.equalize, ImageOps.equalize),
    "rotate": (math.radians(20), lambda x: v2.rotate(x, 20), lambda x: x.rotate(20)),
    "shear_x": (
        0.2,
        _affine(0.0, (0, 0), (_DEGREES(math.atan(0.2)), 0.0), corner=True),
        lambda x: x.transform(x.size, Image.Transform.AFFINE, (1, 0.2, 0, 0, 1, 0)),
    ),
    "translate_y": (
        0.125,
        _affine(0.0, (0, -0.125 * SIDE), (0.0, 0.0), corner=False),
        lambda x: x.transform(x.size, Image.Transform.AFFINE, (1, 0, 0, 0, 1, 0.125 * SIDE)),
    ),
}


def own(name: str, magnitude: float, pixels: Tensor) -> Tensor:
    """What kd makes of an image [H, W, C]."""
    rows = operations.chosen_parameters([name], torch.zeros(1), torch.tensor([magnitude]), pixels.shape[:2])
    return steps.operate(pixels[None], rows)[0]


def results(name: str, pixels: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """kd's result beside another library's, and that one's name."""
    magnitude, with_torchvision, with_pil = SAME[name]
    ours = own(name, magnitude, pixels)
    yield "torchvision", ours, with_torchvision(pixels.permute(2, 0, 1)).permute(1, 2, 0)
    if with_pil is not None:
        yield "PIL", ours, _pil(with_pil)(pixels)


def resampled(pixels: Tensor, interpolation: str) -> Iterator[tuple[str, Tensor, Tensor]]:
    """As `results`, of the shorter side at 256 and the middle 224 of a large image [H, W, C]."""
    ours = Geometry(SIDE, 256, interpolation=interpolation).fitted(pixels)  # type: ignore[arg-type]
    resized = v2.resize(pixels.permute(2, 0, 1), [256], getattr(v2.InterpolationMode, interpolation.upper()))
    yield "torchvision", ours, v2.center_crop(resized, [SIDE, SIDE]).permute(1, 2, 0)
    image = Image.fromarray(pixels.numpy())
    theirs = v2.center_crop(v2.resize(image, [256], getattr(v2.InterpolationMode, interpolation.upper())), [SIDE, SIDE])
    yield "PIL", ours, torch.from_numpy(np.array(theirs))


def windows(pixels: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """As `results`, of a random window, cut out where an image is decoded."""
    top, left, tall, wide = box = RandomResizedCrop().box(*pixels.shape[:2], torch.Generator().manual_seed(0))
    ours = Geometry(SIDE).window(pixels, box)
    planes = pixels.permute(2, 0, 1)
    yield "torchvision", ours, v2.resized_crop(planes, top, left, tall, wide, [SIDE, SIDE]).permute(1, 2, 0)
    inside = (left, top, left + wide, top + tall)
    cut = _pil(lambda image: image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=inside))(pixels)
    yield "PIL (which reads beyond the window's edge)", ours, cut


def difference(ours: Tensor, theirs: Tensor) -> tuple[int, float]:
    """The largest and the mean difference, grey levels."""
    apart = (ours.int() - theirs.int()).abs()
    return int(apart.max()), float(apart.float().mean())


def photographs(folder: str | None) -> list[Tensor]:
    """[H, W, C], uint8, of at least 256 pixels a side."""
    if folder is None:
        from kd_cli.data.base import load_dataset

        data = load_dataset({"name": "mnist_mini"})
        digits = next(data.pixels("test", [torch.arange(20)], torch.device("cpu"))).images
        return [v2.resize(each.permute(2, 0, 1).expand(3, -1, -1), [300, 340]).permute(1, 2, 0) for each in digits]
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))[:20]
    images = [torch.from_numpy(np.array(Image.open(path).convert("RGB"))) for path in paths]
    return [image for image in images if min(image.shape[:2]) >= 256]


def main() -> None:
    """Prints the table."""
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for image in photographs(sys.argv[1] if sys.argv[1:] else None):
        small = image[:SIDE, :SIDE].contiguous()
        rows = [(name, each) for name in SAME for each in results(name, small)]
        rows += [
            (f"resize 256, cut 224, {mode}", each)
            for mode in ("bilinear", "bicubic")
            for each in resampled(image, mode)
        ]
        rows += [("random window", each) for each in windows(image)]
        for what, (beside, ours, theirs) in rows:
            found.setdefault((what, beside), []).append(difference(ours, theirs))
    print("| operation | beside | largest | mean |\n|---|---|---|---|")
    for (what, beside), differences in found.items():
        largest, means = max(each for each, _ in differences), [each for _, each in differences]
        print(f"| {what} | {beside} | {largest} | {sum(means) / len(means):.3g} |")


if __name__ == "__main__":
    main()
