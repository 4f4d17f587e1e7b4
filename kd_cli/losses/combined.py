"""A weighted sum of methods, itself a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kd_cli.losses.base import LOSSES, Distiller, build_loss
from kd_cli.types import Batch, DataSpec, Outputs


@LOSSES.register("combined")
class Combined(Distiller):
    """kd: the weighted sum of any registered methods.

    Args:
        terms: one mapping per method: its `name`, its options, `weight` (1 unless given), and `warmup_epochs` and
            `decay_epochs` of that weight. A term of weight 0 is left out. The labels' `ce_weight` belongs to the whole
            and not to a term.

    Raises:
        ValueError: no term, no weight above 0, a term with `ce_weight`, or two kinds of teacher.
    """

    def __init__(self, terms: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__()
        if not terms:
            raise ValueError("terms: needs one at least: loss.terms='[{name: kd, temperature: 4}, {name: mse_logits}]'")
        if any("ce_weight" in term for term in terms):
            raise ValueError("terms: ce_weight belongs to the sum; type loss.ce_weight=…")
        built = [build_loss(term, where=f"loss.terms[{i}]") for i, term in enumerate(terms)]
        self.names = _numbered([str(term["name"]) for term, (_, mix) in zip(terms, built, strict=True) if mix.weight])
        built = [(method, mix) for method, mix in built if mix.weight]
        if not built:
            raise ValueError("terms: every weight is 0; to switch the whole loss off type loss.weight=0")
        self.methods = [method for method, _ in built]
        self.terms = nn.ModuleList(self.methods)  # so that their layers are trained and saved
        self.mixes = [mix for _, mix in built]
        self.taps = tuple(dict.fromkeys(tap for method, _ in built for tap in method.taps))
        self.teacher_taps = tuple(dict.fromkeys(tap for method, _ in built for tap in method.teacher_taps))
        self.views = max(method.views for method, _ in built)
        self.whole_logits = any(method.whole_logits for method, _ in built)
        self.fades = all(method.fades or mix.decay_epochs is not None for method, mix in built)
        self.teacher = _one_teacher({method.teacher for method, _ in built} - {"none"})

    def bind(self, student: Outputs, teacher: Outputs, data: DataSpec) -> None:
        for method in self.methods:
            method.bind(student, teacher, data)

    def deploy(self, student: nn.Module, teacher: nn.Module | None) -> nn.Module:
        for method in self.methods:
            student = method.deploy(student, teacher)
        return student

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        return [optimizer for method in self.methods for optimizer in method.optimizers()]

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        terms = list(self.named_terms(student, teacher, batch).values())
        return torch.stack(terms).sum() if terms else student.logits.new_zeros(())

    def named_terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> Mapping[str, Tensor]:
        weights = {name: batch.at(mix.weight_at) for name, mix in zip(self.names, self.mixes, strict=True)}
        methods = zip(self.names, self.methods, strict=True)
        return {name: weights[name] * method(student, teacher, batch) for name, method in methods if weights[name]}


def _numbered(names: Sequence[str]) -> list[str]:
    """`kd`, `at`, `kd2`: a name that comes again has a number."""
    return [name + (str(seen) if (seen := names[: i + 1].count(name)) > 1 else "") for i, name in enumerate(names)]


def _one_teacher(kinds: Set[str]) -> Literal["frozen", "trained", "none"]:
    if kinds == {"frozen", "trained"}:
        raise ValueError("terms: one asks a frozen teacher, another trains its own beside the student; take one kind")
    return "trained" if "trained" in kinds else "frozen" if "frozen" in kinds else "none"
