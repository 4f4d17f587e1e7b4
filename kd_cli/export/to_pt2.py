"""One .pt2 file, PyTorch's own format of a graph with its weights: preprocessing inside, any batch size."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from kd_cli.export.deployed import Subject
from kd_cli.export.trace import graph_errors, trace

FILE = "model.pt2"


def write_pt2(folder: Path, subject: Subject) -> None:
    """Writes the network; `kd.json` inside the file holds the facts.

    Raises:
        KDError: PyTorch cannot make a graph of this network.
    """
    program = trace(subject, subject.deployed())
    with graph_errors(subject):
        torch.export.save(program, folder / FILE, extra_files={"kd.json": json.dumps(subject.facts)})
