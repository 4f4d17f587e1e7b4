"""One .onnx file: preprocessing inside, any batch size, class names in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd_cli.errors import ConfigError
from kd_cli.export.deployed import Subject
from kd_cli.export.trace import graph_errors, quietly, trace

FILE = "model.onnx"
OPSET = 18  # of 2022; what PyTorch's exporter writes without converting


def check_installed() -> None:
    """Raises a ConfigError where the extra is missing."""
    try:
        with quietly():
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"--format onnx needs a package that is not installed ({error.name}): pip install 'kd-cli[onnx]'"
        ) from error


def write_onnx(folder: Path, subject: Subject) -> None:
    """Writes the network in float32."""
    import onnx

    program = trace(subject, subject.deployed(plain=True))
    with graph_errors(subject):
        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
        assert exported is not None
        model = exported.model_proto
        _tidy(model)
        onnx.save(model, folder / FILE)
    put_facts(folder / FILE, subject.facts)


def put_facts(path: Path, facts: Mapping[str, Any]) -> None:
    """Writes metadata into a file, text as it is and everything else as JSON, and checks the whole file."""
    import onnx

    model = onnx.load(path)
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
    onnx.helper.set_model_props(model, texts)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _tidy(model: Any) -> None:
    """Leaves out the exporter's notes (paths of this machine among them), and calls the batch `batch`."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output):
        del part.metadata_props[:]
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"


class Session:
    """A .onnx file in ONNX Runtime, with as many threads as PyTorch has."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors; it warns about what it optimises away
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, images: Tensor) -> Tensor:
        """[B, H, W, C], uint8 → [B, K]."""
        return torch.from_numpy(self._session.run(["logits"], {"images": images.numpy()})[0])
