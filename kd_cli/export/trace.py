"""The network as a graph that needs none of its Python code; and as a .pt2 file, PyTorch's own format of one."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from kd_cli.errors import KDError
from kd_cli.export.deployed import Deployed, Subject

PT2 = "model.pt2"
_ADVICE = "Its forward must be the same for any number of images; --format safetensors exports the weights alone"


def trace(subject: Subject, network: Deployed) -> ExportedProgram:
    """The graph of a network, for any number of images."""
    height, width = subject.facts["image_size"]
    example = torch.zeros(2, height, width, subject.facts["channels"], dtype=torch.uint8)
    dynamic = {"images": {0: Dim("batch")}}
    with graph_errors(subject):
        program = torch.export.export(network, (example,), dynamic_shapes=dynamic, strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def write_pt2(folder: Path, subject: Subject) -> None:
    """Writes the network, preprocessing inside, for any batch size; `kd.json` inside the file holds the facts."""
    program = trace(subject, subject.deployed())
    with graph_errors(subject):
        torch.export.save(program, folder / PT2, extra_files={"kd.json": json.dumps(subject.facts)})


@contextmanager
def graph_errors(subject: Subject, advice: str = _ADVICE) -> Iterator[None]:
    """What an exporter says of a network that it cannot take, as a KDError."""
    try:
        with quietly():
            yield
    except (KDError, OSError):
        raise
    except Exception as error:  # the exporters have dozens of kinds, and the network's own code is run
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise KDError(f"{subject.name} cannot be exported: {reason}\n{advice}") from error


@contextmanager
def quietly() -> Iterator[None]:
    """The exporters warn about themselves (deprecated calls of their own, weights that share memory)."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
