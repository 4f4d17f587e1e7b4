"""Files of tensors (.safetensors), which anybody may have made and time may have damaged: read whole or refused."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_cli.errors import DataError, listed
from kd_cli.storage.files import open_regular

if TYPE_CHECKING:
    from torch import Tensor, nn

log = logging.getLogger("kd")

_LARGEST_HEADER = 2**24  # bytes; a network of 100,000 tensors has less
_MOST_TENSORS = 100_000
_SEALED = "kd"  # the header's entry with all facts
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # how files of torch.save begin


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Name → tensor, and the facts in the file's header.

    Raises:
        DataError: there is no such file, or it is damaged or something else. Nothing of it was executed.
    """
    with _opened(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def names_in(path: Path) -> list[str]:
    """The tensors' names; they themselves are not read.

    Raises:
        DataError: as `read_tensors`.
    """
    with _opened(path, "np") as file:
        return list(file.keys())


def read_tables(path: Path) -> dict[str, bytes]:
    """Name → bytes of the tensors of whole numbers, counters left out; nothing else is read, and no PyTorch needed.

    Raises:
        DataError: as `read_tensors`.
    """
    with _opened(path, "np") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        tables = [name for name, each in slices.items() if each.get_dtype()[0] in "IU" and each.get_shape()]
        return {name: file.get_tensor(name).tobytes() for name in tables}


@contextmanager
def _opened(path: Path, framework: str) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        _check_header(path)
        with safe_open(path, framework=framework) as file:
            yield file
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}") from error
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError, RecursionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path} is damaged or no safetensors file ({reason[:200]}){_hint(path)}") from error


def check_names(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> None:
    """Refuses tensors of other names or shapes than the network's own.

    Raises:
        DataError: with the first of them, and how many more there are.
    """
    missing, unknown = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    other = [
        f"{name} is {list(tensors[name].shape)} there, {list(own.shape)} here"
        for name, own in wanted.items()
        if name in tensors and tensors[name].shape != own.shape
    ]
    found = {"it has no": missing, "it has, and the network has not,": unknown, "": other}
    reasons = [f"{what} {listed(names)}".strip() for what, names in found.items() if names]
    if reasons:
        raise DataError(f"{path} does not fit this network, it is of another network: {'; '.join(reasons)}")


def check_numbers(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> None:
    """Refuses what loading would turn into other numbers, or into nothing of use, and say nothing.

    Args:
        wanted: the network's own, by name.

    Raises:
        DataError: whole numbers where fractions belong, or the reverse; NaN or infinite ones.
    """
    common = {name: tensor for name, tensor in tensors.items() if name in wanted}
    for name, tensor in common.items():
        own = wanted[name]
        if (tensor.is_floating_point(), tensor.is_complex()) != (own.is_floating_point(), own.is_complex()):
            raise DataError(f"{path} does not fit this network: {name} is {_kind(tensor)}, not {_kind(own)}")
        fits = tensor.shape == own.shape  # others may claim any size
        if fits and tensor.is_floating_point() and not tensor.float().isfinite().all():
            raise DataError(f"{path} is of no use: {name} has numbers that are not finite (NaN or infinite)")
    kinds = {_kind(tensor) for name, tensor in common.items() if wanted[name].dtype != tensor.dtype}
    if kinds:
        log.warning("%s has numbers of type %s; the network computes in its own type", path, ", ".join(sorted(kinds)))


def digest_tensor(tensor: Tensor) -> str:
    """BLAKE2b of type, shape and values, hex: on processors without SHA instructions twice as fast as SHA-256."""
    import torch

    digest = hashlib.blake2b(f"{tensor.dtype}{tuple(tensor.shape)}".encode(), digest_size=32)
    flat = tensor.detach().cpu().contiguous().flatten()
    flat = flat.as_strided(flat.shape, (1,))  # one number counts as contiguous whatever its stride is, but for `view`
    digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """BLAKE2b of the names and the tensors, hex."""
    return _digest({name: digest_tensor(tensors[name]) for name in sorted(tensors)})


def sealed(name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> dict[str, str]:
    """The facts for a file's header by which `read_sealed` knows the file again, and every bit of it.

    Args:
        name: what the file is, such as the place it has in a folder.
    """
    told = {**facts, "file": name, "tensors": digest_tensors(tensors)}
    # As one: the library writes several facts in any order, and the same run is to give the same bytes.
    return {_SEALED: json.dumps({**told, "seal": _digest(told)}, sort_keys=True)}


def read_sealed(path: Path, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and facts as they were written under that name.

    Raises:
        DataError: there is no such file, it is damaged, or it is another one.
    """
    tensors, header = read_tensors(path)
    facts = _parsed(header.pop(_SEALED, ""))
    seal = facts.pop("seal", None)
    if header or seal != _digest(facts) or facts.pop("tensors", None) != digest_tensors(tensors):
        raise DataError(f"{path} is damaged (wrong checksum)")  # safetensors itself checks its header only
    written_as = facts.pop("file", None)
    if written_as != name:
        raise DataError(f"{path} is damaged: it is another file, {written_as}")
    return tensors, facts


def _parsed(text: str) -> dict[str, str]:
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _digest(facts: Mapping[str, str]) -> str:
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=32).hexdigest()


def _check_header(path: Path) -> None:
    """Before the library reads it: it allows 100 MB, and of two tensors of one name it takes the second."""
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _LARGEST_HEADER:
            raise ValueError(f"its header claims to have {length:,} bytes")
        header = json.loads(file.read(length), object_pairs_hook=_unique)
    if len(header) > _MOST_TENSORS:
        raise ValueError(f"it claims to have {len(header):,} tensors")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("its header has a name twice")
    return found


def _hint(path: Path) -> str:
    try:
        with open_regular(path) as file:
            begins = file.read(4)
    except OSError:
        return ""
    if not begins.startswith(_PICKLES):
        return ""
    other = path.with_suffix(".pt").name
    return (
        "; it begins as a pickle or a zip file does, and pickles can run code. If it is a state dict by torch.save, "
        f"name it {other}: kd reads tensors of such a file and nothing else"
    )


def network_digest(network: nn.Module) -> str:
    """BLAKE2b of a network's structure, parameters, buffers and how it is shown its images, hex."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    views = (f" {each.seen_as}" for each in network.modules() if hasattr(each, "seen_as"))
    said = "".join([f"{network} {digest_tensors(tensors)}", *views])
    return hashlib.blake2b(said.encode(), digest_size=16).hexdigest()
