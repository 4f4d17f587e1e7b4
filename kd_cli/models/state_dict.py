"""Names and tensors of a file of weights: safetensors, or torch.save with dictionaries around them."""

from __future__ import annotations

import argparse
import logging
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd_cli.errors import DataError, listed
from kd_cli.storage.files import open_regular
from kd_cli.storage.tensors import read_tensors

log = logging.getLogger("kd")

# What training scripts put a state dict under. A moving average of the weights is what they evaluated: as in timm, it
# comes first.
_AVERAGES = ("state_dict_ema", "model_ema", "ema", "ema_state_dict", "params_ema")
_WRAPPINGS = (*_AVERAGES, "state_dict", "model_state_dict", "model", "net", "network", "params", "weights")
_DEEPEST = 4  # dictionaries inside one another
_MOST_TENSORS = 100_000
_SHARED = 8  # times a file's bytes that its tensors may have: some are there under two names
WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and DDP, of torch.compile
PREFIXES = (*WRAPPERS, "model.", "net.", "network.")  # and of what trained it
_COUNT = "n_averaged"  # of torch's AveragedModel, beside its module
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_DETAIL = re.compile(r"WeightsUnpickler error: (.{1,200})")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Name → tensor, as the file names them.

    Raises:
        DataError: there is no such file, or it holds no state dict, or something else than tensors that could run code.
            Nothing of it was executed.
    """
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    if not path.exists():
        raise DataError(f"there is no file {path}; download it, then type its path")
    try:
        found = _read_torch(path)
    except Exception as error:  # what is no state dict fails in PyTorch's reader in any way
        raise DataError(
            f"{path} is not a file of weights that can be read as tensors alone: {_reason(error)}"
        ) from error
    tensors = _unwrapped(found, path)
    _check_plain(tensors, path)
    return tensors


def without_prefixes(tensors: Mapping[str, Tensor], prefixes: Sequence[str] = PREFIXES) -> dict[str, Tensor]:
    """Without the first prefix that all names have, if there is one."""
    named = {name: tensor for name, tensor in tensors.items() if name != _COUNT}
    prefix = next((each for each in prefixes if named and all(name.startswith(each) for name in named)), "")
    return {name.removeprefix(prefix): tensor for name, tensor in named.items()} if prefix else dict(tensors)


def _read_torch(path: Path) -> Any:
    with open_regular(path) as file:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                    raise ValueError("it is compressed, which files of torch.save are not")
        elif (file.seek(0), file.read(1))[1] != b"\x80":
            raise ValueError("it does not begin as files of torch.save do")
        file.seek(0)
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):  # a script's options
            warnings.simplefilter("ignore")  # of other protocols than torch.save's own
            return torch.load(file, "cpu", weights_only=True)


def _reason(error: Exception) -> str:
    asked = _GLOBAL.search(str(error))
    if asked is None:
        detail = _DETAIL.search(str(error))  # what PyTorch says around it is how to run the code
        first = (str(error) or type(error).__name__).splitlines()[0]
        return detail[1] if detail else "it holds more than that" if "weights_only" in first else first[:200]
    return (
        f"it asks for {asked[1]}, which is code, and kd runs none of a file's. If you trust whoever made it, load it "
        "in a program of yours and save the network's state_dict() as .safetensors (safetensors.torch.save_file)"
    )


def _unwrapped(found: Any, path: Path) -> dict[str, Tensor]:
    for _ in range(_DEEPEST):
        if _is_state(found) or not isinstance(found, Mapping):
            break
        inner = {key: value for key, value in found.items() if isinstance(key, str) and isinstance(value, Mapping)}
        states = [key for key, value in inner.items() if _is_state(value)]
        chosen = [key for key in _WRAPPINGS if key in inner] or (states if len(states) == 1 else [])
        if not chosen:
            break
        if len(chosen) > 1:
            log.warning("%s holds %s; %s is taken", path, ", ".join(chosen), chosen[0])
        found = inner[chosen[0]]
    if not _is_state(found):
        keys = f"; it has {listed([repr(key)[:40] for key in found])}" if isinstance(found, Mapping) and found else ""
        raise DataError(f"{path} holds no state dict (name → tensor){keys}; save the network's state_dict()")
    return dict(found)


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) and isinstance(each, Tensor) for name, each in value.items())
    )


def _check_plain(tensors: Mapping[str, Tensor], path: Path) -> None:
    """A few bytes can claim to be a tensor of any size, or one of a kind that no network begins with."""
    if len(tensors) > _MOST_TENSORS:
        raise DataError(f"{path} claims to have {len(tensors):,} tensors")
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise DataError(f"{path}: {name} is no plain tensor ({tensor.layout}, {tensor.dtype}, {tensor.device})")
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if size > _SHARED * path.stat().st_size:
        raise DataError(f"{path} has {path.stat().st_size:,} bytes and claims to hold {size:,} bytes of numbers")
