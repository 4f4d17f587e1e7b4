"""Is the exported network the one that was trained? Its answers to real images, from a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from kd_cli.data.decode import Mode, read_image
from kd_cli.data.files import read_fitted
from kd_cli.data.geometry import Geometry, geometry_of
from kd_cli.data.preprocess import Prepare
from kd_cli.data.resize import resize_as_pil
from kd_cli.errors import KDError
from kd_cli.export.deployed import CPU, Subject
from kd_cli.metrics.evaluate import evaluating
from kd_cli.storage.files import open_regular

BATCHES = (1, 2, 7)
_MODES: dict[int, Mode] = {1: "gray", 3: "rgb"}
_RESAMPLED = 2  # grey levels between PIL's and PyTorch's resampling: bilinear 1, bicubic 2
TOLERANCE = 1e-4  # of the largest logit: float32 sums are rounded otherwise in another order

# The script beside the model answers and reads, so that what is checked is what will be used.
_ASK = """
import sys
import numpy as np
sys.path.insert(0, ".")
from infer import logits, read
answers = {name: logits(images) for name, images in np.load(sys.argv[1]).items()}
np.savez(sys.argv[2], **answers, **{name: read(name) for name in sys.argv[3:]})
"""


def parity(folder: Path, subject: Subject, tolerance: float = TOLERANCE) -> dict[str, Any]:
    """Compares an exported folder with the trained network: logits of test images, and how files are read.

    Args:
        tolerance: of the largest logit.

    Returns:
        `max_abs_difference`: batch size → the largest difference of any logit; `tolerance`: what was allowed.

    Raises:
        KDError: the exported network does not run, gives something else than logits, or differs by more, or its script
            reads a picture otherwise than kd.
    """
    count = sum(BATCHES)
    chosen = (torch.arange(count) * subject.data.size("test") // count).split(BATCHES)  # from all over the part
    pixels = [batch.images.contiguous() for batch in subject.data.pixels("test", chosen, CPU)]
    expected = _expected(subject, pixels)
    answers = _ask(folder, subject, pixels)
    allowed = tolerance * max(float(each.abs().max()) for each in expected)
    differences = {}
    for size, ours, theirs in zip(BATCHES, expected, answers, strict=True):
        if ours.shape != theirs.shape:
            raise KDError(f"the exported network gives {list(theirs.shape)} for {size} images, not {list(ours.shape)}")
        differences[str(size)] = difference = float((ours - theirs).abs().max())
        if not difference <= allowed:  # NaN is not
            raise KDError(
                f"the exported network is not the one that was trained: for a batch of {size} test images its logits "
                f"differ by {difference:.2g} from PyTorch's, {allowed:.2g} is allowed; nothing was written.\n"
                "A network that acts otherwise while it is traced, or for other batch sizes, cannot be exported so."
            )
    return {"max_abs_difference": differences, "tolerance": allowed}


def _expected(subject: Subject, pixels: list[Tensor]) -> list[Tensor]:
    """What the trained network says of images [B, H, W, C], normalised as for training and evaluation: [B, K] each."""
    network, seen = subject.saved.network(CPU), subject.data.preprocessing
    height, width, channels = pixels[0].shape[1:]
    prepare = Prepare("none", seen["mean"], seen["std"], (height, width, channels))
    with evaluating(network):
        return [network(prepare.normalise(images)).float() for images in pixels]


def _ask(folder: Path, subject: Subject, pixels: list[Tensor]) -> list[Tensor]:
    paths = os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path)  # the weights alone need kd
    with tempfile.TemporaryDirectory() as scratch:
        asked, answered = Path(scratch, "images.npz"), Path(scratch, "logits.npz")
        named: dict[str, Any] = {str(place): images.numpy() for place, images in enumerate(pixels)}
        np.savez(asked, **named)
        pictures = _draw_pictures(Path(scratch), pixels[0][0])
        done = subprocess.run(
            [sys.executable, "-B", "-W", "ignore", "-c", _ASK, str(asked), str(answered), *pictures],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise KDError(f"the exported {subject.name} does not run: {reason}; nothing was written")
        with np.load(answered) as answers:
            for name in pictures:
                _check_reading(Path(name), answers[name], pixels[0][0], geometry_of(subject.data.preprocessing))
            return [torch.from_numpy(answers[str(place)]) for place in range(len(pixels))]


def _draw_pictures(folder: Path, pixels: Tensor) -> list[str]:
    """Files of an image [H, W, C] as cameras and programs leave them; none where it has channels of its own."""
    height, width, channels = pixels.shape
    if channels not in _MODES:
        return []
    image = Image.fromarray(pixels.expand(-1, -1, 3).numpy()).resize((width + 3, height + 5))
    grey, turned = image.convert("L"), Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    faded = grey.copy()
    faded.putalpha(grey)
    image.save(folder / "turned.jpg", exif=turned)
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.quantize(16).save(folder / "palette.png", transparency=3)
    for name, each in (("grey", grey), ("colour", image), ("deep16", deep), ("faded", faded)):
        each.save(folder / f"{name}.png")
    return sorted(str(path) for path in folder.iterdir() if path.suffix in (".jpg", ".png"))


def _check_reading(path: Path, read: Any, like: Tensor, geometry: Geometry | None) -> None:
    height, width, channels = like.shape
    if geometry is not None:  # of which PIL's resampling may be off by a grey level
        own = read_fitted(path, _MODES[channels], open_regular(path), geometry)
    else:
        own = resize_as_pil(read_image(path, _MODES[channels]), (height, width, channels))
    apart = np.abs(own.numpy().astype(int) - read).max()
    if apart > (0 if geometry is None else _RESAMPLED):
        raise KDError(f"the exported infer.py does not read {path.name} as kd does; nothing was written")
