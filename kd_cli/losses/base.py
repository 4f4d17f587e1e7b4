"""What a distillation method is, and how its term is weighed against the labels.

One convention for every method: the loss of a step is

    ce_weight · CE(student, labels) + weight · method(student, teacher)

A method weighs its own terms by `<term>_weight` (`kl_weight`). `weight` scales the whole method and is 1 unless
somebody switches it off: with `weight=0` and `ce_weight=1` a distillation is the baseline, bit for bit. It can rise
and fall over the epochs (`warmup_epochs`, `decay_epochs`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from kd_cli.errors import ConfigError
from kd_cli.ranges import NonNegative, Positive, check_ranges
from kd_cli.registry import Registry, bind_options
from kd_cli.taps import GROUPS, select
from kd_cli.types import Batch, DataSpec, Outputs

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:  # Python has it from 3.11 on

    def dataclass_transform(**_: Any) -> Callable[[type], type]:
        return lambda cls: cls


class Distiller(nn.Module):
    """A distillation method: what it reads, the layers it owns, and its loss.

    Args:
        taps: features that it reads from the student, as `Tapped` names them; None: those of the class.
        teacher_taps: likewise from the teacher; None: the same names.

    Attributes:
        taps: what it reads from the student.
        teacher_taps: what it reads from the teacher.
        teacher: whether it asks a frozen teacher, a second network that learns beside the student, or none at all.
        fades: whether it is 0 from some epoch on by a schedule of its own.
        views: of each image that it needs in a batch, side by side.
        whole_logits: whether it reads the teacher's logits otherwise than as probabilities: each of them counts.

    Raises:
        ValueError: an empty list, or single features of the one network and not as many of the other.
    """

    taps: Sequence[str] = ()
    teacher_taps: Sequence[str]
    teacher: Literal["frozen", "trained", "none"] = "frozen"
    fades = False
    views = 1
    whole_logits = False

    def __init__(self, taps: Sequence[str] | None = None, teacher_taps: Sequence[str] | None = None) -> None:
        super().__init__()
        for option, names in (("taps", taps), ("teacher_taps", teacher_taps)):
            if names is not None and not names:
                raise ValueError(f"{option}: [] is not possible; the method reads one feature at least")
        self.taps = tuple(type(self).taps if taps is None else taps)
        self.teacher_taps = self.taps if teacher_taps is None else tuple(teacher_taps)
        named = not GROUPS.keys() & {*self.taps, *self.teacher_taps}
        if named and len(self.taps) != len(self.teacher_taps):
            raise ValueError(
                f"teacher_taps: {list(self.teacher_taps)} are not as many as the student's taps, {list(self.taps)}"
            )

    def pairs(self, student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
        """Its features, student's beside teacher's, from shallow to deep.

        Where one network has more stages than the other, the deepest ones are matched.
        """
        ours, theirs = select(student.features, self.taps), select(teacher.features, self.teacher_taps)
        count = min(len(ours), len(theirs))
        return list(zip(ours[len(ours) - count :], theirs[len(theirs) - count :], strict=True))

    def over_pairs(self, loss: Callable[..., Tensor], student: Outputs, teacher: Outputs, **options: float) -> Tensor:
        """A loss of two features, summed over its pairs."""
        return torch.stack([loss(*pair, **options) for pair in self.pairs(student, teacher)]).sum()

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

    def named_terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> Mapping[str, Tensor]:
        """What its loss is the sum of, by name; a method of one term has no name for it."""
        return {"": self(student, teacher, batch)}

    def deploy(self, student: nn.Module, teacher: nn.Module | None) -> nn.Module:  # noqa: ARG002 - SimKD needs it
        """The network that is evaluated and saved."""
        return student

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Optimizers of layers that it trains by itself; the trainer's own optimizer leaves those layers alone."""
        return ()


@dataclass_transform(field_specifiers=(field,))
class Method(Distiller):
    """A method whose options are the fields of its class, which is made a dataclass."""

    def __init_subclass__(cls) -> None:
        dataclass(eq=False, repr=False)(cls)

    def __post_init__(self) -> None:
        given = vars(self)
        Distiller.__init__(self, given.get("taps"), given.get("teacher_taps"))


class Features(Method):
    """A method that reads features; `taps` is among its fields.

    Args:
        teacher_taps: the teacher's features, as `taps` are the student's; null: the same names.
    """

    teacher_taps: Sequence[str] | None = field(default=None, kw_only=True)  # type: ignore[assignment] # None: not yet


LOSSES: Registry[Distiller] = Registry("loss", "kd_cli.losses")


@dataclass(frozen=True)
class Mix:
    """How labels and method are weighed, and how the method's weight moves.

    Args:
        ce_weight: of the cross-entropy with the labels, ≥ 0.
        weight: of the method, ≥ 0.
        warmup_epochs: the method's weight rises linearly and is whole in this epoch (1, 2, …), ≥ 0; 0: from the start.
        decay_epochs: after the warm-up the weight falls linearly to 0 in so many epochs, > 0; None: it stays.

    Raises:
        ValueError: a number outside its range, or nothing that could be learned.
    """

    ce_weight: NonNegative = 1.0
    weight: NonNegative = 1.0
    warmup_epochs: NonNegative = 0.0
    decay_epochs: Positive | None = None

    def __post_init__(self) -> None:
        check_ranges(Mix, vars(self))
        if self.ce_weight == 0 and (self.weight == 0 or self.decay_epochs is not None):
            reason = "weight is 0 too" if self.weight == 0 else "the method's weight falls to 0"
            raise ValueError(f"ce_weight: 0 is not possible while {reason}; nothing would be learned")

    def weight_at(self, epoch: int) -> float:
        """The method's weight in epoch 0, 1, …"""
        if epoch + 1 < self.warmup_epochs:
            return self.weight * (epoch + 1) / self.warmup_epochs
        if self.decay_epochs is None:
            return self.weight
        past = max(0.0, epoch + 1 - max(1.0, self.warmup_epochs))
        return self.weight * max(0.0, 1 - past / self.decay_epochs)


def build_loss(options: Mapping[str, Any], where: str = "loss") -> tuple[Distiller, Mix]:
    """The method and its mix from the `loss` node of a configuration.

    Raises:
        ConfigError: unknown name or option, wrong type or range.
    """
    mix_options = {field.name: options[field.name] for field in fields(Mix) if field.name in options}
    method_options = {key: value for key, value in options.items() if key not in mix_options}
    arguments = bind_options(Mix, mix_options, where=where, what="the loss")
    try:
        check_ranges(Mix, mix_options)  # as they were typed: -1 and not -1.0
        mix = Mix(**arguments)
    except ValueError as error:
        raise ConfigError(f"{where}.{error}") from error
    method = LOSSES.build(method_options, where=where)
    if mix.ce_weight == 0 and method.fades:
        raise ConfigError(f"{where}.ce_weight: 0 is not possible while all terms fall to 0; nothing would be learned")
    return method, mix
