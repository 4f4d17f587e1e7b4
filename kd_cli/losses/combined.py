"""A weighted sum of methods, itself a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kd_cli.losses.base import LOSSES, Distiller, build_loss
from kd_cli.types import Batch, DataSpec, Outputs


@LOSSES.register("combined")
class Combined(Distiller):
    """kd: the weighted sum of any registered methods.

    Args:
        terms: one mapping per method: its `name`, its options, and `weight` (1 unless given). The labels' `ce_weight`
            belongs to the whole and not to a term.

    Raises:
        ValueError: no term, no weight above 0, or a term with `ce_weight`.
    """

    def __init__(self, terms: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__()
        if not terms:
            raise ValueError("terms: needs one at least: loss.terms='[{name: kd, temperature: 4}, {name: mse_logits}]'")
        if any("ce_weight" in term for term in terms):
            raise ValueError("terms: ce_weight belongs to the sum; type loss.ce_weight=…")
        built = [build_loss(term, where=f"loss.terms[{i}]") for i, term in enumerate(terms)]
        if not any(mix.weight for _, mix in built):
            raise ValueError("terms: every weight is 0; to switch the whole loss off type loss.weight=0")
        self.methods = [method for method, _ in built]
        self.terms = nn.ModuleList(self.methods)  # so that their layers are trained and saved
        self.weights = [mix.weight for _, mix in built]
        self.taps = tuple(dict.fromkeys(tap for method, _ in built for tap in method.taps))
        self.teacher = "frozen" if any(method.teacher == "frozen" for method, _ in built) else "none"

    def bind(self, student: Outputs, teacher: Outputs, data: DataSpec) -> None:
        for method in self.methods:
            method.bind(student, teacher, data)

    def deploy(self, student: nn.Module, teacher: nn.Module | None) -> nn.Module:
        for method in self.methods:
            student = method.deploy(student, teacher)
        return student

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        weighed = [(weight, method) for weight, method in zip(self.weights, self.methods, strict=True) if weight]
        return torch.stack([weight * method(student, teacher, batch) for weight, method in weighed]).sum()
