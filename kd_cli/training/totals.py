"""What the batches of an epoch have come to: sums on the device, read when somebody wants to know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from kd_cli.types import Step

Record = dict[str, float]


class Totals:
    """Sums over the images of an epoch, in tensors that stay where they are.

    Args:
        device: of the losses.

    Attributes:
        sums: `loss`, the name of a term or `correct` → scalar on the device; their order is that of a record's columns.
        seen: images that they are of.
    """

    def __init__(self, device: torch.device) -> None:
        self.sums: dict[str, Tensor] = {}
        self.seen = 0
        self._device = device
        self._held: dict[str, Tensor] = {}
        self._copy: _Copy | None = None

    def begin(self) -> None:
        """A new epoch."""
        self.sums, self.seen = {}, 0
        for total in self._held.values():
            total.zero_()

    def restore(self, sums: Mapping[str, Tensor], seen: int) -> None:
        """An epoch that was begun earlier."""
        self._held |= {name: total.to(self._device, copy=True) for name, total in sums.items()}
        self.show(sums)
        self.seen = seen

    def add(self, step: Step, labels: Tensor) -> None:
        """Adds a batch, on the device: nothing waits for it. Its images are counted by `seen`."""
        size = len(labels)
        values = {"loss": step.loss.detach() * size, **{name: term * size for name, term in step.terms.items()}}
        values["correct"] = (step.logits.detach().argmax(dim=1) == labels).sum()
        for name, value in values.items():
            if name not in self._held:
                self._held[name] = torch.zeros_like(value)
            self._held[name] += value
        self.show(values)

    def show(self, names: Iterable[str]) -> None:
        """These are of the epoch: a recorded step adds to them without a word."""
        self.sums |= {name: self._held[name] for name in names if name not in self.sums}

    def means(self) -> Record:
        """Means of the losses, weighted by images, and accuracy in percent."""
        means = {name: float(total) / self.seen for name, total in self.sums.items()}
        top1 = round(100 * means.pop("correct"), 2)
        loss = means.pop("loss")  # the other terms are weighted: they sum to it
        return {
            "train_top1": top1,
            "train_loss": loss,
            **{f"train_weighted_{name}": each for name, each in means.items()},
        }

    def glimpse(self) -> tuple[float, float] | None:
        """Mean loss, and accuracy in percent, as they were a moment ago; None while nothing is known yet.

        A CUDA device is not waited for: what it had when somebody asked last has arrived by now.
        """
        wanted = [self.sums["loss"], self.sums["correct"]]
        if self._device.type != "cuda":
            loss, correct = map(float, wanted)
            return loss / self.seen, 100 * correct / self.seen
        if self._copy is None:
            self._copy = _Copy()
        return self._copy.of(wanted, self.seen)


class _Copy:
    """Numbers of a CUDA device, copied behind the program's back."""

    def __init__(self) -> None:
        self._host = torch.zeros(2, dtype=torch.float64, pin_memory=True)
        self._done: torch.cuda.Event | None = None
        self._seen = 1
        self._known: tuple[float, float] | None = None

    def of(self, sums: list[Tensor], seen: int) -> tuple[float, float] | None:
        if self._done is not None and not self._done.query():
            return self._known
        if self._done is not None:
            loss, correct = self._host.tolist()
            self._known = loss / self._seen, 100 * correct / self._seen
        self._host.copy_(torch.stack([each.double() for each in sums]), non_blocking=True)
        self._done, self._seen = torch.cuda.Event(), seen
        self._done.record()
        return self._known
