"""How an accelerator computes: whether sums have one order, and how many digits a product keeps.

On the CPU nothing of this is changed: sums have one order for a number of threads, and float32 is float32.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kd_cli import console
from kd_cli.errors import ConfigError

if TYPE_CHECKING:
    import torch

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_WORKSPACES = (":4096:8", ":16:8")  # with these cuBLAS has one order of sums (its manual, on reproducibility)
_TF32_FROM = (8, 0)  # compute capability: Ampere


@dataclass(frozen=True)
class Switches:
    """Those of PyTorch, of the whole process.

    Args:
        tf32: convolutions and products of float32 matrices keep 10 bits of the factors' fraction, not 23.
        refuses: an operation without a deterministic kernel raises; those that have one take it.
        one_order: cuDNN takes deterministic convolutions only.
    """

    tf32: bool = False
    refuses: bool = False
    one_order: bool = True


EXACT = Switches()  # of everything that is no training
_current: Switches | None = None  # None: as PyTorch has them; it cannot be asked where both of its ways were used


@contextmanager
def arithmetic(precision: str, deterministic: bool, device: torch.device) -> Iterator[None]:
    """What is computed inside has this precision and, if it shall, the same bits every time, on a CUDA device.

    Args:
        precision: as in `Recipe`; what stays float32 under bf16 and fp16 is float32.
        deterministic: an operation that has no deterministic kernel raises a RuntimeError of PyTorch.
    """
    with _set(Switches(precision == "tf32", deterministic, deterministic), device):
        yield


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """What is evaluated, inside of a training or not, is computed in float32."""
    with _set(replace(current() or EXACT, tf32=False, one_order=True), device):
        yield


@contextmanager
def _set(switches: Switches, device: torch.device) -> Iterator[None]:
    if device.type != "cuda":
        yield
        return
    before = current() or EXACT
    switch(switches)
    try:
        yield
    finally:
        switch(before)


def current() -> Switches | None:
    """The switches as they are, for who lets another training of this process have its turn and sets them again.

    None: nobody has touched them.
    """
    return _current


def start_cuda() -> None:
    """Called before anything runs on a CUDA device: exact arithmetic, until a training asks for another.

    Once: a training may be on its way in this process when it is called again.
    """
    if _current is not None:
        return
    given = os.environ.get(_WORKSPACE)
    if given not in _WORKSPACES:
        os.environ[_WORKSPACE] = _WORKSPACES[0]
        if given is not None:
            console.notice(
                f"{_WORKSPACE}={given} lets cuBLAS add in any order; {_WORKSPACES[0]} is used ({_WORKSPACES[1]} can be)"
            )
    switch(EXACT)


def switch(switches: Switches | None) -> None:
    """Sets them all; none where `current` gave none.

    cuDNN never measures which kernel is the fastest: that would be another one every time.
    """
    global _current
    if switches is None or switches == _current:
        return
    import torch

    _current = switches
    with warnings.catch_warnings():  # the older of PyTorch's two ways: all versions have it, and can read it again
        warnings.simplefilter("ignore")
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = switches.tf32
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = switches.one_order, False
    if "torch._inductor" in sys.modules:
        torch.use_deterministic_algorithms(switches.refuses)
    else:  # the same without the compiler, which that one imports: two seconds
        torch.set_deterministic_debug_mode(2 if switches.refuses else 0)
    # kd reads no memory that it has not written, and filling that takes time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # a property of the module


@contextmanager
def handed_back() -> Iterator[None]:
    """PyTorch's switches are at the end as the program has them that kd works for; it may set them in between."""
    import torch

    global _current
    cudnn, matmul, _current = torch.backends.cudnn, torch.backends.cuda.matmul, None
    places = [(cudnn, "allow_tf32"), (matmul, "allow_tf32"), (cudnn, "deterministic"), (cudnn, "benchmark")]
    places += [(torch.utils.deterministic, "fill_uninitialized_memory")]
    before, mode = [_read(*place) for place in places], torch.get_deterministic_debug_mode()
    try:
        yield
    finally:
        if current() is not None:
            for place in before:
                setattr(*place)
            torch.set_deterministic_debug_mode(mode)
        _current = None


def _read(place: Any, name: str) -> tuple[Any, str, Any]:
    try:
        return place, name, getattr(place, name)
    except RuntimeError:  # the program uses the newer of PyTorch's two ways
        return place, "fp32_precision", place.fp32_precision


def check_card(precision: str, device: torch.device) -> None:
    """Refuses TF32 where the device has none; where it has and is not asked for it, that is told, once.

    Raises:
        ConfigError: `tf32` on a device without it.
    """
    if device.type != "cuda":
        return
    import torch

    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    has = capability >= _TF32_FROM
    if precision == "tf32" and not has:
        raise ConfigError(
            f"trainer.precision: tf32 needs a card of compute capability 8.0, and {name} has "
            f"{capability[0]}.{capability[1]}; type trainer.precision=fp32"
        )
    if precision == "fp32" and has:
        console.notice(
            f"trainer.precision=fp32 is exact; {name} is faster with trainer.precision=tf32 (factors are rounded to "
            "10 bits, sums are float32) or bf16"
        )


@contextmanager
def refusing(what: str, where: str) -> Iterator[None]:
    """Says of an operation without a deterministic kernel what to type.

    Args:
        what: computes it: `the training of the teacher`.
        where: the recipe's configuration key.

    Raises:
        ConfigError: in the place of PyTorch's RuntimeError.
    """
    try:
        yield
    except RuntimeError as error:
        operation, refused, _ = str(error).partition(" does not have a deterministic implementation")
        if not refused:
            raise
        raise ConfigError(
            f"{where}.deterministic: {what} needs {operation.splitlines()[-1]}, which has no kernel on this device "
            f"that gives the same bits every time; take another network or loss, or type {where}.deterministic=false: "
            "the same command then need not give the same bits"
        ) from error
