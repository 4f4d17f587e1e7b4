"""What a distillation method is, and how its term is weighed against the labels.

One convention for every method: the loss of a step is

    ce_weight · CE(student, labels) + weight · method(student, teacher)

A method weighs its own terms by `<term>_weight` (`kl_weight`). `weight` scales the whole method and is 1 unless
somebody switches it off: with `weight=0` and `ce_weight=1` a distillation is the baseline, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from kd_cli.errors import ConfigError
from kd_cli.ranges import require
from kd_cli.registry import Registry, bind_options
from kd_cli.types import Batch, DataSpec, Outputs


class Distiller(nn.Module):
    """A distillation method: what it reads, the layers it owns, and its loss.

    Attributes:
        taps: names of the features it reads from both networks.
        teacher: whether it asks a frozen teacher or none at all.
    """

    taps: tuple[str, ...] = ()
    teacher: Literal["frozen", "none"] = "frozen"

    def bind(self, student: Outputs, teacher: Outputs, data: DataSpec) -> None:
        """Makes the layers that depend on shapes, from one example of each network's outputs.

        Raises:
            ValueError: if the method cannot work on this pair.
        """

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The method's loss, a scalar: mean over the batch."""
        raise NotImplementedError

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Module's call, with its types."""
        loss: Tensor = super().__call__(student, teacher, batch)
        return loss

    def deploy(self, student: nn.Module, teacher: nn.Module | None) -> nn.Module:  # noqa: ARG002 - SimKD needs it
        """The network that is evaluated and saved."""
        return student


LOSSES: Registry[Distiller] = Registry("loss", "kd_cli.losses")


@dataclass(frozen=True)
class Mix:
    """How labels and method are weighed.

    Args:
        ce_weight: of the cross-entropy with the labels, ≥ 0.
        weight: of the method, ≥ 0.

    Raises:
        ValueError: a negative or infinite weight, or two zeros.
    """

    ce_weight: float = 1.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        require("ce_weight", self.ce_weight, low=0.0)
        require("weight", self.weight, low=0.0)
        if self.ce_weight == self.weight == 0:
            raise ValueError("ce_weight: 0 is not possible while weight is 0 too; nothing would be learned")


def build_loss(options: Mapping[str, Any], where: str = "loss") -> tuple[Distiller, Mix]:
    """The method and its mix from the `loss` node of a configuration.

    Raises:
        ConfigError: unknown name or option, wrong type or range.
    """
    mix_options = {key: options[key] for key in ("ce_weight", "weight") if key in options}
    method_options = {key: value for key, value in options.items() if key not in mix_options}
    try:
        mix = Mix(**bind_options(Mix, mix_options, where=where, what="the loss"))
    except ValueError as error:
        raise ConfigError(f"{where}.{error}") from error
    return LOSSES.build(method_options, where=where), mix
