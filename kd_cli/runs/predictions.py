"""What a trained network said of every test image: kept beside its result, so that nothing asks it again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kd_cli.errors import DataError
from kd_cli.storage.files import write_bytes
from kd_cli.storage.tensors import read_sealed, sealed

if TYPE_CHECKING:
    from torch import Tensor

FILE = "predictions.safetensors"


class Predictions(NamedTuple):
    """What a network said of the test images, in their order: logits [N, K] in float32, labels [N]."""

    logits: Tensor
    labels: Tensor


def write_predictions(run: Path, said: Predictions, *, weights: str) -> None:
    """Writes what a run's chosen epoch said.

    Args:
        weights: SHA-256 of the network's weights file.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    from safetensors.torch import save

    tensors = {"logits": said.logits.contiguous(), "labels": said.labels.contiguous()}
    write_bytes(run / FILE, save(tensors, sealed(FILE, tensors, {"weights": weights})))


def read_predictions(run: Path, *, weights: str | None) -> Predictions | None:
    """What a run said; None where there is nothing, nothing that is whole, or what other weights said."""
    try:
        tensors, facts = read_sealed(run / FILE, FILE)
        logits, labels = tensors["logits"].float(), tensors["labels"].long()
    except (DataError, KeyError):
        return None
    if facts.get("weights") != weights:
        return None
    whole = logits.ndim == 2 and labels.shape == logits.shape[:1] and len(labels) > 0 and bool(logits.isfinite().all())
    fits = whole and bool(((labels >= 0) & (labels < logits.shape[1])).all())
    return Predictions(logits, labels) if fits else None
