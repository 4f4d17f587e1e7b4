"""Weights of a network from elsewhere, given as a file: torchvision's and timm's downloads, your own."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd_cli.errors import DataError, suggest
from kd_cli.storage.files import open_regular
from kd_cli.storage.tensors import check_numbers, read_tensors

log = logging.getLogger("kd")

_WRAPPINGS = ("state_dict", "model_state_dict", "model")  # what training scripts put a state dict into
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile


def load_pretrained(network: nn.Module, path: str) -> None:
    """Puts the weights of a file into a network, but for layers whose shapes depend on the data.

    A classifier for another number of classes and a first convolution for other channels keep their random weights; a
    notice names them.

    Args:
        path: of a .safetensors file, or of one by `torch.save` that holds nothing but tensors.

    Raises:
        ValueError: it is missing, cannot be read safely, or belongs to another network.
    """
    loaded, own = _read(Path(path).expanduser()), network.state_dict()
    missing, unknown = sorted(own.keys() - loaded.keys()), sorted(loaded.keys() - own.keys())
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]  # older files have none
    if missing or unknown:
        first = f"it has no {missing[0]!r}" if missing else f"it has {unknown[0]!r}{suggest(unknown[0], own)}"
        raise ValueError(f"pretrained: {path} is of another network: {first}")
    try:
        check_numbers(loaded, own, Path(path))
    except DataError as error:
        raise ValueError(f"pretrained: {error}") from error
    differing = [name for name, tensor in loaded.items() if tensor.shape != own[name].shape]
    kept = {name.rpartition(".")[0] for name in differing}
    if kept - _ends(network):
        name = next(name for name in differing if name.rpartition(".")[0] not in _ends(network))
        raise ValueError(
            f"pretrained: {path} is of another network: {name} is {list(loaded[name].shape)} there, "
            f"{list(own[name].shape)} here"
        )
    network.load_state_dict({k: v for k, v in loaded.items() if k.rpartition(".")[0] not in kept}, strict=False)
    if kept:
        log.warning("%s: %s learned on other data; random weights are kept there", path, ", ".join(sorted(kept)))


def _read(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise ValueError(f"pretrained: there is no file {path}; download it, then type its path")
    try:
        found = read_tensors(path)[0] if path.suffix == ".safetensors" else _read_torch(path)
    except Exception as error:  # what is no state dict fails in PyTorch's reader in any way
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"pretrained: {path} cannot be read as tensors alone ({reason}); save its state_dict() as .safetensors"
        ) from error
    return _unwrapped(found, path)


def _read_torch(path: Path) -> Any:
    with open_regular(path) as file:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                    raise ValueError("it is compressed, which files of torch.save are not")
        file.seek(0)
        return torch.load(file, "cpu", weights_only=True)


def _unwrapped(found: Any, path: Path) -> dict[str, Tensor]:
    for key in _WRAPPINGS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"pretrained: {path} holds no state dict (name → tensor); save its state_dict()")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): value for name, value in found.items()}
    return dict(found)


def _ends(network: nn.Module) -> set[str]:
    """The first convolution and the last linear layer, which fit the data."""
    named = list(network.named_modules())
    first = [name for name, module in named if isinstance(module, nn.Conv2d)][:1]
    last = [name for name, module in named if isinstance(module, nn.Linear)][-1:]
    return {*first, *last}
