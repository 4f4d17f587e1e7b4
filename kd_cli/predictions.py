"""What a trained network said of every test image: kept beside its result, so that nothing asks it again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kd_cli.files import write_bytes

if TYPE_CHECKING:
    from torch import Tensor

FILE = "predictions.safetensors"


class Predictions(NamedTuple):
    """What a network said of the test images, in their order: logits [N, K] in float32, labels [N]."""

    logits: Tensor
    labels: Tensor


def write_predictions(run: Path, said: Predictions) -> None:
    """Writes what a run's chosen epoch said.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    from safetensors.torch import save

    write_bytes(run / FILE, save({"logits": said.logits.contiguous(), "labels": said.labels.contiguous()}))


def read_predictions(run: Path) -> Predictions | None:
    """What a run said; None where there is nothing, or nothing that is whole."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(run / FILE)
        logits, labels = tensors["logits"].float(), tensors["labels"].long()
    except (OSError, ValueError, KeyError, SafetensorError):
        return None
    whole = logits.ndim == 2 and labels.shape == logits.shape[:1] and len(labels) > 0 and bool(logits.isfinite().all())
    fits = whole and bool(((labels >= 0) & (labels < logits.shape[1])).all())
    return Predictions(logits, labels) if fits else None
