"""Logit standardization around any loss of logits: Sun et al. 2024, arXiv:2403.01427."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from kd_cli.losses.base import LOSSES, Distiller, Mix
from kd_cli.losses.common import standardized
from kd_cli.types import Batch, DataSpec, Outputs

# Of the paper's main results.
PLAIN_KD = {"name": "kd", "temperature": 2.0, "kl_weight": 9.0}


@LOSSES.register("logit_standardization")
class LogitStandardization(Distiller):
    """Sun et al. 2024, arXiv:2403.01427: z-scores of the logits, image by image, in place of the logits.

    The student then has to match the order and the relative distances of its teacher's logits, and not their size. The
    standard deviation divides by K, and a row of equal logits becomes 0; the authors' code divides by K − 1 and adds
    1e-7. The two differ by a factor √(K/(K − 1)) of the temperature.

    Args:
        around: the method that sees z-scores: its `name` and its options; None: kd at T = 2 with weight 9. It must
            compare the student's logits with those of a frozen teacher and read nothing else.

    Raises:
        ValueError: a method that reads features or asks no frozen teacher, or an option of the whole loss in `around`.
    """

    whole_logits = True

    def __init__(self, around: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        around = PLAIN_KD if around is None else around
        shared = [field.name for field in fields(Mix) if field.name in around]
        if shared:
            raise ValueError(f"around: {shared[0]} belongs to the whole; type loss.{shared[0]}=…")
        self.method = LOSSES.build(around, where="loss.around")
        self.fades, self.views = self.method.fades, self.method.views
        if self.method.teacher != "frozen" or self.method.taps or self.method.teacher_taps:
            does = "reads features" if self.method.taps or self.method.teacher_taps else "asks no frozen teacher"
            raise ValueError(f"around: {around['name']} {does}; it must be one of {', '.join(_losses_of_logits())}")

    def bind(self, student: Outputs, teacher: Outputs, data: DataSpec) -> None:
        if data.num_classes < 3:
            raise ValueError(
                "logit_standardization: z-scores of two logits are 1 and −1 whatever the logits are, so the student "
                "would get no gradient; take the loss inside of it as it is"
            )
        self.method.bind(student, teacher, data)

    def deploy(self, student: nn.Module, teacher: nn.Module | None) -> nn.Module:
        return self.method.deploy(student, teacher)

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        return self.method.optimizers()

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return self.method(Outputs(standardized(student.logits)), Outputs(standardized(teacher.logits)), batch)


def _losses_of_logits() -> list[str]:
    """Names of the losses that ask a frozen teacher, and no features unless they are told to."""
    return [name for name in LOSSES.names() if _reads_logits(LOSSES.component(name))]


def _reads_logits(component: Callable[..., Distiller]) -> bool:
    option = inspect.signature(component).parameters.get("taps")
    taps = (option.default if option else None) or getattr(component, "taps", ())
    return component is not LogitStandardization and getattr(component, "teacher", None) == "frozen" and not taps
