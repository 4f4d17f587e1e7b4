"""What a trained network said of every test image: kept beside its result, so that nothing asks it again."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from kd_cli.files import write_bytes

NAME = "predictions.safetensors"


def write_predictions(run: Path, logits: Tensor, labels: Tensor) -> None:
    """Writes a run's answers to the test images, in the order of the test images.

    Args:
        logits: [N, K], of the epoch that was chosen.
        labels: [N].

    Raises:
        OSError: the disk is full or cannot be written.
    """
    from safetensors.torch import save

    write_bytes(run / NAME, save({"logits": logits.contiguous(), "labels": labels.contiguous()}))


def read_predictions(run: Path) -> tuple[Tensor, Tensor] | None:
    """Logits [N, K] and labels [N] of the test images; None where there are none that can be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(run / NAME)
        return tensors["logits"], tensors["labels"]
    except (OSError, SafetensorError, KeyError):
        return None
