"""Static int8 quantisation of a .onnx file, calibrated on training images as they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd_cli.data.sampling import generator
from kd_cli.export.deployed import CPU, Subject
from kd_cli.export.to_onnx import FILE, Session, put_facts
from kd_cli.export.trace import graph_errors

CALIBRATION_IMAGES = 512
_CALIBRATION_SEED = 0  # not the run's: every network of one data set is calibrated on the same images
_BATCH = 64


def quantise(folder: Path, subject: Subject) -> dict[str, Any]:
    """Replaces the float32 file by one whose weights and activations have 8 bits.

    Returns:
        `images`: how many it was calibrated on; `seed`: which chose them.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    chosen = _chosen(subject.data.size("train"))
    fused, path = folder / "fused.onnx", folder / FILE
    with graph_errors(subject, "leave --int8 out"):
        quant_pre_process(path, fused, skip_symbolic_shape=True)  # PyTorch's exporter has inferred the shapes
        quantize_static(
            fused,
            path,
            _Images(subject, chosen),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            # Unsigned activations have the fast kernels on x86. Products of 8 × 8 bits overflow on processors without
            # VNNI and falsify logits there; weights of 7 bits do not, on any.
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,
        )
    fused.unlink()
    put_facts(path, subject.facts)
    return {"images": len(chosen), "seed": _CALIBRATION_SEED}


def measure(path: Path, subject: Subject) -> tuple[float, Tensor]:
    """Top-1 of a .onnx file on the whole test part, percent, and the classes that it chose [N]."""
    session, data = Session(path), subject.data
    chosen, labels = [], []
    for batch in data.pixels("test", list(torch.arange(data.size("test")).split(_BATCH)), CPU):
        chosen.append(session(batch.images).argmax(dim=1))
        labels.append(batch.labels)
    found, wanted = torch.cat(chosen), torch.cat(labels)
    return round(100 * float((found == wanted).double().mean()), 2), found


def _chosen(size: int) -> Tensor:
    """Positions in the training part, ascending."""
    order = torch.randperm(size, generator=generator(_CALIBRATION_SEED, "calibrate"))
    return order[:CALIBRATION_IMAGES].sort().values


class _Images:
    """Training images, in the form that ONNX Runtime's calibration asks for."""

    def __init__(self, subject: Subject, chosen: Tensor) -> None:
        batches = subject.data.pixels("train", list(chosen.split(_BATCH)), CPU)
        self._feeds: Iterator[dict[str, Any]] = ({"images": batch.images.numpy()} for batch in batches)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)
