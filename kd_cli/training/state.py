"""Where training stands: what it needs to go on with the same bits, an optimizer's part of it, and what is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from kd_cli.errors import DataError

_GROUP = "group"  # in a slot's name, in the place of a parameter's number


@dataclass(frozen=True)
class Progress:
    """Where an epoch stands, for whoever watches.

    Args:
        epoch: 1 … epochs.
        batch: batches done in this epoch.
        batches: batches of an epoch.
        images: images seen since the trainer started.
        glimpse: gives the epoch's mean loss and accuracy in percent, as `Totals.glimpse`.
    """

    epoch: int
    batch: int
    batches: int
    images: int
    glimpse: Callable[[], tuple[float, float] | None]


@dataclass(frozen=True)
class TrainState:
    """All that training needs to go on with the same bits.

    Args:
        epoch: epochs done.
        step: updates done in the epoch after them.
        tensors: name → tensor of the task, the optimizer, the moving average and the sums of an epoch under way.
        plain: everything else, as plain JSON values; `records` has the records of all epochs done.
    """

    epoch: int
    step: int
    tensors: dict[str, Tensor]
    plain: dict[str, Any]


@contextmanager
def restoring(state: TrainState) -> Iterator[None]:
    """What does not fit shows in many ways.

    Raises:
        DataError: instead of them.
    """
    try:
        yield
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"the checkpoint after epoch {state.epoch} was saved by another training than this ({reason}); "
            "choose another hydra.run.dir"
        ) from error


def split_slots(optimizers: Sequence[Optimizer]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What optimizers have kept, as `optimizer.parameter.slot` by number → value: the tensors, and all else.

    Of a group that counts its own updates there is `optimizer.group.number`.
    """
    slots = {
        f"{number}.{index}.{slot}": value
        for number, optimizer in enumerate(optimizers)
        for index, values in optimizer.state_dict()["state"].items()
        for slot, value in values.items()
    }
    slots |= {
        f"{number}.{_GROUP}.{index}": group["step"]
        for number, optimizer in enumerate(optimizers)
        for index, group in enumerate(optimizer.param_groups)
        if "step" in group
    }
    tensors = {name: value for name, value in slots.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in slots.items() if name not in tensors}


def put_slots(optimizers: Sequence[Optimizer], slots: Mapping[str, Any]) -> None:
    """Gives optimizers back what `split_slots` took, both parts together."""
    states: list[dict[int, dict[str, Any]]] = [{} for _ in optimizers]
    for name, value in slots.items():
        number, index, slot = name.split(".", 2)
        if index == _GROUP:
            optimizers[int(number)].param_groups[int(slot)]["step"] = value
            continue
        parameter = parameters_of(optimizers[int(number)])[int(index)]
        states[int(number)].setdefault(int(index), {})[slot] = _laid_out_like(parameter, value)
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """In the order in which the optimizer's state numbers them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _laid_out_like(parameter: nn.Parameter, value: Any) -> Any:
    """A fused optimizer walks parameter and state side by side: both need the same strides (channels_last)."""
    if isinstance(value, Tensor) and value.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"an optimizer kept {list(value.shape)} numbers of a parameter of {list(parameter.shape)}")
    return value
