"""A loss that is not finite stops the run before an optimizer moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kd_cli.errors import DivergedError
from kd_cli.types import Batch, Step

_ROUTINE = 50  # steps between two looks where looking makes the program wait for the device


@dataclass(frozen=True)
class _Seen:
    loss: Tensor
    terms: Mapping[str, Tensor]
    ids: Tensor
    epoch: int
    lr: float


class LossGuard:
    """Looks at every loss; on a device that works behind the program's back at many of them together.

    There the fused optimizers are told, on the device, to stand still from the first bad loss on, so that the weights
    are those before it whenever it is found.

    Args:
        optimizers: all that move on these losses.
        device: where the losses are.
        peak_lr: the recipe's, for advice.
        every: steps between two looks; None: 1 on the CPU, many elsewhere.
    """

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        device: torch.device,
        peak_lr: float,
        every: int | None = None,
    ) -> None:
        self.optimizers = optimizers
        self.peak_lr = peak_lr
        self.every = every or (1 if device.type == "cpu" else _ROUTINE)
        self._seen: list[_Seen] = []
        self._bad = torch.zeros((), device=device)

    def watch(self, step: Step, batch: Batch, lr: float) -> None:
        """Called with the loss of every batch, before its backward pass.

        Raises:
            DivergedError: as `check`.
        """
        loss = step.loss.detach()
        self._seen.append(_Seen(loss, step.terms, batch.ids, batch.epoch, lr))
        if self.every > 1:
            self._bad = (self._bad + ~loss.isfinite()).clamp(max=1)
            for optimizer in self.optimizers:
                optimizer.found_inf = self._bad  # type: ignore[attr-defined]  # read by fused steps, as from GradScaler
        if len(self._seen) >= self.every:
            self.check()

    def check(self) -> None:
        """Looks at what was not looked at yet.

        Raises:
            DivergedError: a loss was not finite; it names the first one.
        """
        seen, self._seen = self._seen, []
        if not seen or torch.stack([each.loss for each in seen]).isfinite().all():
            return
        first = next(each for each in seen if not each.loss.isfinite())
        terms = ", ".join(f"{name} = {float(value):g}" for name, value in first.terms.items())
        ids = ", ".join(map(str, first.ids[:4].tolist()))
        raise DivergedError(
            f"the loss is not finite in epoch {first.epoch + 1} ({terms}; rate {first.lr:g}; images {ids}, …); "
            "the weights were not changed by this batch. "
            f"Try a smaller rate (trainer.lr={self.peak_lr / 10:g}) or trainer.clip_grad_norm=1."
        )
