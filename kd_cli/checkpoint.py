"""One checkpoint: a folder that is written whole or not at all, and whose every bit is checked when it is read."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_cli.errors import DataError
from kd_cli.files import file_digest, read_json, whole_folder

if TYPE_CHECKING:
    from torch import Tensor, nn


class Checkpoint:
    """One whole checkpoint: every file has the SHA-256 that the manifest gives.

    Args:
        path: its folder.

    Raises:
        DataError: missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_json(path / "manifest.json")
        if self.manifest is None:
            raise DataError(f"{path} is not a checkpoint: it has no readable manifest.json")
        for name, digest in self.manifest.items():
            if file_digest(path / name) != digest:
                raise DataError(f"{path / name} is damaged: its SHA-256 is not the one in manifest.json")
        self.plain: dict[str, Any] = read_json(path / "state.json") or {}

    @property
    def place(self) -> tuple[int, int]:
        """Where the training stands: epochs done, and updates done in the epoch after them."""
        return self.plain["epoch"], self.plain["step"]

    @property
    def model_digest(self) -> str:
        """SHA-256 of the network's weights file."""
        assert self.manifest is not None
        return str(self.manifest["model.safetensors"])

    def tensors(self, stem: str) -> dict[str, Tensor]:
        """Name → tensor of `model` or `training`."""
        from safetensors.torch import load_file

        return load_file(self.path / f"{stem}.safetensors")


def load_state(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """`load_state_dict` of tensors that come from a safetensors file.

    Such a file has no place for the format versions that `state_dict()` carries along, and some networks (MNASNet)
    refuse to load without them; the module's own are used.

    Raises:
        RuntimeError: names or shapes differ.
    """
    state = OrderedDict(tensors)
    state._metadata = module.state_dict()._metadata  # type: ignore[attr-defined]
    module.load_state_dict(state)


def write_checkpoint(path: Path, tensors: Mapping[str, Mapping[str, Tensor]], plain: Mapping[str, Any]) -> None:
    """Writes a folder under a temporary name, makes sure that it is on the disk, then gives it its name.

    Args:
        tensors: file stem → name → tensor.
        plain: everything else, as plain JSON values.

    Raises:
        OSError: the disk is full or cannot be written; nothing is left behind.
    """
    from safetensors.torch import save

    files = {f"{stem}.safetensors": save(_on_cpu(values)) for stem, values in tensors.items()}
    files["state.json"] = json.dumps(plain).encode()
    manifest = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    files["manifest.json"] = json.dumps(manifest, indent=2).encode()
    with whole_folder(path) as temporary:  # in the place of a damaged one of the same epoch
        for name, content in files.items():
            (temporary / name).write_bytes(content)


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
