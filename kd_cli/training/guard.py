"""A loss or a gradient that is not finite stops the run before an optimizer moves; such weights are never saved."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor, nn

from kd_cli.config.recipe import Recipe
from kd_cli.errors import DivergedError
from kd_cli.out_of_memory import needing_memory
from kd_cli.types import Batch, Step

_SHOWN = 4  # ids or names in a message


@dataclass(frozen=True)
class _Seen:
    """One batch: what it gave, and the step of which epoch it belongs to."""

    step: Step
    ids: Tensor
    epoch: int
    number: int
    lr: float


class LossGuard:
    """Looks at every loss before its backward pass, and at all gradients before an optimizer moves.

    On a device that works behind the program's back the look is put off: there the fused optimizers are told, on the
    device, to stand still from the first bad one on, so that the weights are those before it whenever it is found. The
    step that `first_bad` names can then be repeated, looked at at once.

    Args:
        optimizers: all that move on these losses.
        recipe: of the training.
        device: where the losses are.
        parameters: all that learns, by name.
        steps: of an epoch.
        where: the recipe's configuration key, for advice.
        deferred: the look is put off; see `can_wait`.
    """

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        recipe: Recipe,
        device: torch.device,
        *,
        parameters: Mapping[str, nn.Parameter],
        steps: int,
        where: str = "trainer",
        deferred: bool = False,
    ) -> None:
        self._scaled = recipe.precision == "fp16"
        self.deferred = deferred
        self.steps, self.advice = steps, advice(recipe, where)
        self._names = parameters
        self._moving = [value for rule in optimizers for group in rule.param_groups for value in group["params"]]
        self._bad, self._one = torch.zeros((), device=device), torch.ones((), device=device)
        self._count, self._first = (torch.zeros((), device=device, dtype=torch.int64) for _ in range(2))
        self._seen: list[_Seen] = []  # of the step that is under way
        self._number, self._lr = 1, 0.0
        if self.deferred:
            for rule in optimizers:
                rule.found_inf = self._bad  # type: ignore[attr-defined]  # read by fused steps, as from GradScaler

    @property
    def bad(self) -> Tensor:
        """Scalar, on the device: above 0 once anything was not finite, where the look is put off."""
        return self._bad

    def begin_epoch(self, done: int) -> None:
        """So many steps of an epoch are done."""
        self._count.fill_(done)

    def begin(self, number: int, lr: float) -> None:
        """A step (1, 2, … of its epoch) begins, with this learning rate."""
        self._number, self._lr, self._seen = number, lr, []

    def watch(self, step: Step, batch: Batch) -> None:
        """Called with the loss of every batch, before its backward pass.

        Raises:
            DivergedError: it is not finite, and the look is not put off.
        """
        if self.deferred:
            self._bad.logical_or_(~step.loss.detach().isfinite())
            return
        self._seen.append(
            _Seen(
                Step(step.loss.detach(), step.logits.detach(), step.terms),
                batch.ids,
                batch.epoch,
                self._number,
                self._lr,
            )
        )
        if not math.isfinite(step.loss.item()):
            self._stop()

    def watch_gradients(self) -> None:
        """Called when the gradients of a step are complete, before an optimizer moves.

        Raises:
            DivergedError: one is not finite, and the look is not put off.
        """
        if not self._scaled:  # a scaler leaves such steps out
            self._mark_gradients()
        if self.deferred:
            self._count += 1
            self._first.copy_(torch.where((self._first == 0) & (self._bad > 0), self._count, self._first))
        elif self._bad.item():
            self._stop()

    def _mark_gradients(self) -> None:
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for parameter in self._moving:
            if parameter.grad is not None:
                by_type.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for gradients in by_type.values():  # the one pass of GradScaler, times 1; whatever else is public costs more
            torch._amp_foreach_non_finite_check_and_unscale_(gradients, self._bad, self._one)

    def first_bad(self) -> int | None:
        """The first step (1, 2, … of its epoch) that gave something that is not finite, where the look was put off.

        From now on it is not put off any more, if there was one: that step can be repeated.
        """
        if not self.deferred or not self._bad.item():
            return None
        self.deferred = False
        self._bad.zero_()
        return int(self._first)

    def unexplained(self, number: int, epoch: int) -> DivergedError:
        """A step that was not finite, and was when it was repeated."""
        return DivergedError(
            f"a loss or a gradient was not finite in epoch {epoch + 1}, step {number} of {self.steps}, though it was "
            f"when that step was repeated. No weight was moved by it or after it. {self.advice}"
        )

    def check_weights(self, network: nn.Module) -> None:
        """Refuses weights that are not finite, which must not be saved.

        Args:
            network: the one to be saved.

        Raises:
            DivergedError: of `network` or of what learns not all are finite; it names the first ones.
        """
        tensors = {**self._names, **network.state_dict()}
        floating = {name: tensor.detach() for name, tensor in tensors.items() if tensor.is_floating_point()}
        if torch.stack([tensor.sum(dtype=torch.float32) for tensor in floating.values()]).isfinite().all():
            return  # a sum costs less than a look at each number, and misses none
        bad = [name for name, tensor in floating.items() if not tensor.isfinite().all()]
        if bad:
            raise DivergedError(
                f"the weights are not finite ({_listed(bad)}), though losses and gradients were; they were not saved. "
                f"{self.advice}"
            )

    def _stop(self) -> NoReturn:
        last = self._seen[-1]
        place = f"in epoch {last.epoch + 1}, step {last.number} of {self.steps}"
        text = self._gradient_text(last, place) if last.step.loss.isfinite() else _loss_text(last, place)
        raise DivergedError(
            f"{text}; learning rate {last.lr:g}; {_images_text(last)}. No weight was moved by this step. {self.advice}"
        )

    def _gradient_text(self, seen: _Seen, place: str) -> str:
        gradients = {name: parameter.grad for name, parameter in self._names.items() if parameter.grad is not None}
        bad = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
        of = f" of {_listed(bad)}" if bad else ""  # a parameter without a name of its own
        return f"the gradient{of} is not finite {place}, though the loss is ({_terms_text(seen.step.terms)})"


def _loss_text(seen: _Seen, place: str) -> str:
    bad = {name: term for name, term in seen.step.terms.items() if not term.isfinite()}
    others = {name: term for name, term in seen.step.terms.items() if name not in bad}
    rest = f"; {_terms_text(others)}" if others else ""
    return f"the loss is not finite {place}: {_terms_text(bad or {'loss': seen.step.loss})}{rest}"


def _terms_text(terms: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} = {float(value):g}" for name, value in terms.items())


def _images_text(seen: _Seen) -> str:
    """The images whose own logits are not finite, where that sets some apart; otherwise those of the batch."""
    rows = ~seen.step.logits.isfinite().flatten(1).all(dim=1)
    if 0 < int(rows.sum()) < len(rows):
        return f"training images {_listed(seen.ids[rows].tolist())} (their logits are not finite)"
    return f"training images {_listed(seen.ids.tolist())} (the batch of {len(seen.ids)})"


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values[:_SHOWN])) + (", …" if len(values) > _SHOWN else "")


def can_wait(optimizers: Sequence[torch.optim.Optimizer], recipe: Recipe) -> bool:
    """Whether all that moves can be told on the device to stand still from the first bad loss on.

    Neither does an optimizer without a fused kernel, nor one behind a gradient scaler.
    """
    return recipe.precision != "fp16" and all(rule.defaults.get("fused") for rule in optimizers)


def advice(recipe: Recipe, where: str) -> str:
    """What may help against a loss that is not finite.

    Args:
        where: the configuration key of the recipe.
    """
    ways = [f"a smaller rate ({where}.lr={recipe.lr / 10:g})"]
    if recipe.clip_grad_norm is None:
        ways.append(f"{where}.clip_grad_norm=1")
    if recipe.precision != "fp32":
        ways.append(f"{where}.precision=fp32")
    return f"Try {' or '.join(ways)}."


def check_score(scores: Mapping[str, float], part: str, advice: str) -> None:
    """Refuses a network whose loss on a part of the data is not finite: it can be neither best nor a result.

    Args:
        scores: as `scores.accuracy` gives them.

    Raises:
        DivergedError: it is not.
    """
    if not math.isfinite(scores["nll"]):
        raise DivergedError(
            f"the loss on the {part} images is not finite ({scores['nll']:g}), though that of training was; "
            f"an epoch without one is never chosen. {advice}"
        )


_ANOTHER = "kd changes neither by itself: that is another configuration, so a folder that you name must be a new one."


@contextmanager
def training_memory(recipe: Recipe, where: str) -> Iterator[None]:
    """`needing_memory` for the steps of a training.

    Args:
        where: the configuration key of the recipe.
    """
    size, updates = recipe.batch_size, recipe.accumulate
    if size == 1:
        remedy = "One image is the least there is: take a smaller network or smaller images, or another device=…"
    else:
        half, more = size // 2, -(-size * updates // (size // 2))
        remedy = (
            f"Type {where}.batch_size={half} {where}.accumulate={more}: an update has as many images, and half of them "
            f"are in memory at a time (batch normalisation, and losses that compare images, see {half}). {_ANOTHER}"
        )
    with needing_memory(f"a training step with {where}.batch_size={size}", remedy):
        yield


@contextmanager
def evaluation_memory(recipe: Recipe, where: str) -> Iterator[None]:
    """`needing_memory` for the evaluations of a training.

    Args:
        where: the configuration key of the recipe.
    """
    size = recipe.eval_batch_size
    smaller = f"{where}.eval_batch_size={max(1, size // 4)}"
    remedy = f"Type {smaller}: the accuracy does not depend on it. {_ANOTHER}"
    with needing_memory(f"an evaluation with {where}.eval_batch_size={size}", remedy):
        yield
