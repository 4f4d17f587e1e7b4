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

_ROUTINE = 50  # steps between two looks where looking makes the program wait for the device
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

    On a device that works behind the program's back it looks at many of them together: there the fused optimizers are
    told, on the device, to stand still from the first bad one on, so that the weights are those before it whenever it
    is found.

    Args:
        optimizers: all that move on these losses.
        recipe: of the training.
        device: where the losses are.
        parameters: all that learns, by name.
        steps: of an epoch.
        where: the recipe's configuration key, for advice.
        every: steps between two looks; None: as `look_every`.
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
        every: int | None = None,
    ) -> None:
        self._scaled = recipe.precision == "fp16"
        self.every = every or look_every(optimizers, recipe, device)
        self.steps, self.advice = steps, advice(recipe, where)
        self._names = parameters
        self._moving = [value for rule in optimizers for group in rule.param_groups for value in group["params"]]
        self._bad, self._one = torch.zeros((), device=device), torch.ones((), device=device)
        self._seen: list[_Seen] = []
        self._flags: list[tuple[_Seen, Tensor]] = []  # whether anything was bad when its gradients were complete
        self._number, self._lr = 1, 0.0
        if self.every > 1:
            for rule in optimizers:
                rule.found_inf = self._bad  # type: ignore[attr-defined]  # read by fused steps, as from GradScaler

    def begin(self, number: int, lr: float) -> None:
        """A step (1, 2, … of its epoch) begins, with this learning rate."""
        self._number, self._lr = number, lr

    def watch(self, step: Step, batch: Batch) -> None:
        """Called with the loss of every batch, before its backward pass.

        Raises:
            DivergedError: as `check`.
        """
        detached = Step(step.loss.detach(), step.logits.detach(), step.terms)
        self._seen.append(_Seen(detached, batch.ids, batch.epoch, self._number, self._lr))
        if self.every > 1:
            self._bad.logical_or_(~detached.loss.isfinite())
        elif not math.isfinite(detached.loss.item()):
            self._stop()

    def watch_gradients(self) -> None:
        """Called when the gradients of a step are complete, before an optimizer moves.

        Raises:
            DivergedError: as `check`.
        """
        if not self._scaled:  # a scaler leaves such steps out
            self._mark_gradients()
        if self.every > 1:
            self._flags.append((self._seen[-1], self._bad.clone()))
        if len(self._seen) >= self.every:
            self.check()

    def _mark_gradients(self) -> None:
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for parameter in self._moving:
            if parameter.grad is not None:
                by_type.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for gradients in by_type.values():  # the one pass of GradScaler, times 1; whatever else is public costs more
            torch._amp_foreach_non_finite_check_and_unscale_(gradients, self._bad, self._one)

    def check(self) -> None:
        """Looks at what was not looked at yet.

        Raises:
            DivergedError: a loss or a gradient was not finite; it names the first one.
        """
        if self._bad.item():
            self._stop()
        self._seen, self._flags = [], []

    def check_weights(self, network: nn.Module) -> None:
        """Refuses weights that are not finite, which must not be saved.

        Args:
            network: the one to be saved.

        Raises:
            DivergedError: of `network` or of what learns not all are finite; it names the first ones.
        """
        self.check()
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
        loss = next((each for each in self._seen if not each.step.loss.isfinite()), None)
        gradient = next((each for each, bad in self._flags if bad), self._seen[-1])
        first = gradient if loss is None or gradient.number < loss.number else loss
        place = f"in epoch {first.epoch + 1}, step {first.number} of {self.steps}"
        raise DivergedError(
            f"{_loss_text(first, place) if first is loss else self._gradient_text(first, place)}; "
            f"learning rate {first.lr:g}; {_images_text(first)}. No weight was moved by this step. {self.advice}"
        )

    def _gradient_text(self, seen: _Seen, place: str) -> str:
        gradients = {name: parameter.grad for name, parameter in self._names.items() if parameter.grad is not None}
        bad = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
        of = f" of {_listed(bad)}" if bad else ""  # nothing is known of a step that is past
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


def look_every(optimizers: Sequence[torch.optim.Optimizer], recipe: Recipe, device: torch.device) -> int:
    """Steps between two looks: many only where all that moves stands still from the first bad loss on.

    Neither a moving average does, nor an optimizer without a fused kernel, nor one behind a gradient scaler.
    """
    fused = all(rule.defaults.get("fused") for rule in optimizers)
    heeding = fused and recipe.precision != "fp16" and recipe.ema_decay is None
    return _ROUTINE if heeding and device.type == "cuda" else 1


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
