"""A finished network in an ONNX file, which ONNX Runtime asks: a teacher, and nothing that could be trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd_cli.models.base import MODELS
from kd_cli.storage.files import file_digest


@MODELS.register("onnx")
class Onnx(nn.Module):
    """Asks an ONNX file, on the CPU; an extra of kd: `pip install 'kd-cli[onnx]'`.

    Its first input is floating-point images [B, C, H, W], normalised as `teacher.mean` and `teacher.std` say, or bytes
    [B, H, W, C] as `kd export` writes it (type `teacher.mean=[0] teacher.std=[1]`, for the normalisation is inside);
    its first output the logits. A file for one image at a time is given one at a time.

    Args:
        file: of the network, without custom operators.

    Raises:
        ValueError: no file, ONNX Runtime is missing or cannot read it, or it takes or gives something else.
    """

    ready = True  # as a teacher, without a checkpoint

    def __init__(self, num_classes: int, in_channels: int, image_size: int, *, file: str | None = None) -> None:
        super().__init__()
        if file is None or not Path(file).expanduser().is_file():
            raise ValueError(f"file: there is no file {file}; type teacher.file=NETWORK.onnx")
        self.file = Path(file).expanduser()
        self._digest = file_digest(self.file)
        self._session = _session(self.file)
        asked = self._session.get_inputs()[0]
        self._input, self._bytes = asked.name, asked.type == "tensor(uint8)"
        self._half = asked.type == "tensor(float16)"
        self._batch = asked.shape[0] if isinstance(asked.shape[0], int) else None
        images = torch.zeros(2, in_channels, image_size, image_size)
        try:
            shape = list(self(images).shape)
        except Exception as error:  # ONNX Runtime's own errors have no common kind
            reason = str(error).splitlines()[0][:200]
            raise ValueError(f"file: {file} cannot take images {list(images.shape)}: {reason}") from error
        if shape != [2, num_classes]:
            raise ValueError(
                f"file: {file} gave {shape} for images {list(images.shape)}, not logits {[2, num_classes]}"
            )

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] → [B, K]."""
        given = images.detach().float().cpu()
        if self._bytes:
            given = given.mul(255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        parts = given.split(self._batch) if self._batch else [given]
        said = [self._session.run(None, {self._input: self._array(part)})[0] for part in parts]
        return torch.cat([torch.from_numpy(part).float() for part in said]).to(images.device)

    def _array(self, images: Tensor) -> Any:
        return (images.half() if self._half else images).contiguous().numpy()

    def extra_repr(self) -> str:
        """By which the cache of its answers knows it: it has no parameters."""
        return f"sha256={self._digest}"


def _session(file: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError("file: ONNX Runtime is not installed; type pip install 'kd-cli[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # likewise
        reason = str(error).splitlines()[0][:200]
        raise ValueError(f"file: {file} is no network that ONNX Runtime can read: {reason}") from error
