"""A program's own modules, data and losses as components, which are there while a call works with them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from kd_cli.api.data import read_raw
from kd_cli.data.base import DATASETS, Raw
from kd_cli.data.common import Common, InMemory
from kd_cli.losses.base import LOSSES, Distiller, Mix
from kd_cli.models.base import MODELS
from kd_cli.models.external import ready
from kd_cli.registry import OWN
from kd_cli.types import Batch, DataSpec, Outputs

OfLogits = Callable[[Tensor, Tensor, Tensor], Tensor]  # student's and teacher's [B, K], labels [B] → scalar


@contextmanager
def own_networks(student: nn.Module | None, teacher: nn.Module | None) -> Iterator[None]:
    """Each is a model `own_student` or `own_teacher`: a copy of it, so that the program's stays as it is."""
    with ExitStack() as lent:
        for role, module in (("student", student), ("teacher", teacher)):
            lent.enter_context(MODELS.lent(f"{OWN}_{role}", _network(role, module)))
            _choice(role, f"{OWN}_{role}", {"network": None if module is None else qualified(module)})
        yield


def _network(role: str, module: nn.Module | None) -> Callable[..., nn.Module]:
    def own(num_classes: int, image_shape: tuple[int, int, int], *, network: str | None = None) -> nn.Module:
        if module is None:
            raise ValueError(f"the {role} was a program's own ({network}); give a module like it: {role}=module")
        try:
            copied = copy.deepcopy(module).cpu()
        except RuntimeError as error:
            raise ValueError(f"{network} cannot be copied ({error})") from error
        with torch.device("cpu"):  # images to try it with are there, too
            return ready(copied, qualified(module), num_classes, image_shape, None, None)

    return own


@contextmanager
def own_data(train: Any, val: Any, test: Any, classes: Sequence[str] | None) -> Iterator[None]:
    """They are the data set `own`, with the options that all data sets have."""

    def own(source: str, in_memory: InMemory, memory_limit_gb: float) -> Raw:  # noqa: ARG001 - for the record
        return read_raw(train, val, test, classes, in_memory, memory_limit_gb)

    with DATASETS.lent(OWN, own):
        _choice("dataset", OWN, {"source": qualified(train), **asdict(Common())})
        yield


@contextmanager
def own_loss(loss: OfLogits | Distiller | None) -> Iterator[None]:
    """It is the method `own`: copies of a Distiller, or what a function of logits says; None: there is none."""
    if loss is None:
        yield
        return

    def own(function: str) -> Distiller:
        return copy.deepcopy(loss) if isinstance(loss, Distiller) else _of_logits(loss, function)

    with LOSSES.lent(OWN, own):
        _choice("loss", OWN, {"function": qualified(loss), **asdict(Mix())})
        yield


class _OfLogits(Distiller):
    """A function of logits; one that is a module itself is trained with the student."""

    def __init__(self, function: OfLogits, name: str) -> None:
        super().__init__()
        self.function, self.title = function, name

    def bind(self, student: Outputs, teacher: Outputs, data: DataSpec) -> None:  # noqa: ARG002
        labels = torch.arange(len(student.logits), device=student.logits.device)
        try:
            loss = self.function(student.logits, teacher.logits, labels)
        except TypeError as error:
            raise ValueError(f"{self.title}(student_logits, teacher_logits, labels): {error}") from error
        if not isinstance(loss, Tensor) or loss.ndim:
            given = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"{self.title} returned {given}, not a scalar: the mean over the batch")

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return self.function(student.logits, teacher.logits, batch.labels)


def _of_logits(function: OfLogits, name: str) -> Distiller:
    """In a class of the function's module: kd records updates as CUDA graphs only where it knows all the code."""
    kind = type("OfLogits", (_OfLogits,), {"__module__": str(getattr(function, "__module__", None))})
    method: Distiller = kind(copy.deepcopy(function), name)
    return method


def _choice(group: str, name: str, options: Mapping[str, Any]) -> None:
    """What a yaml would be; kd's copy of Hydra's store is gone after the call."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(group=group, name=name, node={"name": name, **options})


def qualified(thing: Any) -> str:
    """Where the class or function of something is defined: `package.module.Name`."""
    kind = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{kind.__module__}.{kind.__qualname__}"
