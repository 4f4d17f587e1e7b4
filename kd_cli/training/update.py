"""One update of the weights: all of a step that happens on the device, and nothing that happens anywhere else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from kd_cli.config.recipe import Recipe
from kd_cli.data.base import Data, Part
from kd_cli.errors import ConfigError
from kd_cli.machine import ranks
from kd_cli.metrics.evaluate import predict
from kd_cli.runs.checkpoint import load_state
from kd_cli.training.guard import LossGuard, can_wait
from kd_cli.training.optim import MovingAverage, make_optimizer
from kd_cli.training.state import TrainState, parameters_of, put_slots, split_slots
from kd_cli.training.task import Task
from kd_cli.training.totals import Record, Totals
from kd_cli.types import Batch, Step

_UNFUSED = ("lamb", "muon")


def _freeze(task: Task, recipe: Recipe) -> list[nn.Module]:
    """The normalisations that stay in eval mode, once the recipe's parts are frozen."""
    if not recipe.freeze:
        return []
    from kd_cli.training.groups import freeze, frozen_norms

    freeze(task.network, recipe.freeze)
    return frozen_norms(task)


def _groups(task: Task, parameters: list[nn.Parameter], recipe: Recipe) -> list[dict[str, Any]]:
    """Of parameters with the same rate and weight decay."""
    if recipe.backbone_lr_factor == 1 and recipe.layer_decay is None and recipe.decay_norm_and_bias:
        return [{"params": parameters}]
    from kd_cli.training.groups import parameter_groups

    return parameter_groups(task, task.network, parameters, recipe)


def _make_optimizers(
    groups: list[dict[str, Any]], recipe: Recipe, device: torch.device, task: Task, rate: Tensor | None
) -> list[torch.optim.Optimizer]:
    if recipe.optimizer not in _UNFUSED:
        return [make_optimizer(groups, recipe, device, rate)]
    from kd_cli.training.unfused import make_unfused

    return make_unfused(groups, recipe, device, task.network)


def _buffers(task: Task) -> list[Tensor]:
    return [buffer for buffer in task.buffers() if buffer.is_floating_point()]


class Updater:
    """What learns, what moves it, and what is counted of it.

    Args:
        task: that is trained.
        recipe: the numbers.
        device: where the task is.
        updates: of an epoch.
        behind: the device works behind the program's back: nothing here may wait for it, and what changes from update
            to update is found there.
        where: the recipe's configuration key, for advice.
    """

    def __init__(
        self, task: Task, recipe: Recipe, device: torch.device, *, updates: int, behind: bool, where: str
    ) -> None:
        self.task, self.recipe, self.device, self.ranks = task, recipe, device, ranks()
        self._frozen = _freeze(task, recipe)
        others = task.optimizers()
        elsewhere = {id(parameter) for optimizer in others for parameter in parameters_of(optimizer)}
        learned = (parameter for parameter in task.parameters() if parameter.requires_grad)
        self.parameters = [parameter for parameter in learned if id(parameter) not in elsewhere]
        groups = _groups(task, self.parameters, recipe)
        # float32 is what CUDA's kernels read; float64 gives the CPU's the numbers that they have of a Python float.
        dtype = torch.float32 if device.type == "cuda" else torch.float64
        factors = dict.fromkeys(group.get("factor", 1.0) for group in groups)
        there = behind and recipe.optimizer not in _UNFUSED
        self._rate = {each: torch.zeros((), dtype=dtype, device=device) for each in factors} if there else {}
        self._rates = torch.zeros(len(factors), updates, dtype=dtype, device=device)
        self.done = torch.zeros(1, dtype=torch.int64, device=device)  # updates of the epoch
        self._own = _make_optimizers(groups, recipe, device, task, next(iter(self._rate.values()), None))
        self.optimizers = [*self._own, *others]
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        averaged = recipe.ema_decay is not None or recipe.swa_epochs is not None
        self.average = MovingAverage(task.deployed, recipe.ema_decay) if averaged else None
        self.totals = Totals(device)
        self.guard = LossGuard(
            self.optimizers,
            recipe,
            device,
            parameters=dict(task.named_parameters()),
            steps=updates,
            where=where,
            deferred=behind and can_wait(self.optimizers, recipe),
        )

    def go_to(self, step: int, rates: Sequence[float]) -> None:
        """The next update is number `step` (0, 1, …) of an epoch with these learning rates."""
        self.guard.begin_epoch(step)
        self.done.fill_(step)
        if self._rate:
            table = [[factor * rate for rate in rates] for factor in self._rate]
            self._rates.copy_(torch.tensor(table, dtype=self._rates.dtype))
            for group in self._moved:
                group["lr"] = self._rate[group.get("factor", 1.0)]  # a state that was loaded has brought a copy

    def begin(self, step: int, rate: float) -> None:
        """Update number `step` (0, 1, …) begins; this is the host's part of it."""
        self.guard.begin(step + 1, rate)
        if not self._rate:
            for group in self._moved:
                group["lr"] = rate * group.get("factor", 1.0)

    @property
    def _moved(self) -> list[dict[str, Any]]:
        return [group for optimizer in self._own for group in optimizer.param_groups]

    def train(self) -> None:
        """What learns is made to."""
        self.task.train()
        for norm in self._frozen:
            norm.eval()

    def learn_from(self, group: Sequence[Batch]) -> None:
        """One update from these batches.

        Raises:
            DivergedError: a loss or a gradient is not finite, where that is not put off.
        """
        for rate, rates in zip(self._rate.values(), self._rates, strict=False):
            rate.copy_(rates.index_select(0, self.done)[0])
        if self.ranks is not None:
            group = [self.ranks.whole(batch, sync=self.recipe.batch_norm == "sync") for batch in group]
        images = sum(len(batch.labels) for batch in group)
        for batch in group:
            step = self._backward(batch, len(batch.labels) / images)
            self.totals.add(step, batch.labels)
        if self.ranks is not None:
            self.ranks.average(self.task.parameters())
        self._move()
        if self.ranks is not None and self.recipe.batch_norm == "local":
            self.ranks.copy_first(_buffers(self.task))
        self.done += 1

    def _backward(self, batch: Batch, share: float) -> Step:
        with self.autocast():
            step: Step = self.task(batch)
        self.guard.watch(step, batch)
        loss = step.loss if share == 1 else step.loss * share
        self.scaler.scale(loss).backward()
        return step

    def _move(self) -> None:
        self.guard.watch_gradients()
        if self.recipe.clip_grad_norm is not None:
            for optimizer in self._own:
                self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip_grad_norm)
        for optimizer in self.optimizers:
            if any(parameter.grad is not None for parameter in parameters_of(optimizer)):  # its loss had a weight
                self.scaler.step(optimizer)
        self.scaler.update()
        self.forget_gradients()
        if self.average is not None and self.recipe.ema_decay is not None:
            self.average.update_parameters(self.task.deployed)

    def of_all(self, images: int) -> int:
        """Images of the global batches of which this process has so many."""
        return images if self.ranks is None else int(self.ranks.numbers([images]).sum())

    def predict(self, data: Data, part: Part) -> tuple[Tensor, Tensor]:
        """As `evaluate.predict`, of the deployed network, which all processes ask together."""
        size = self.recipe.eval_batch_size
        return predict(self.deployed, data, part, batch_size=size, device=self.device, ranks=self.ranks)

    def agreed(self, record: Record) -> Record:
        """An epoch's record, the same for all processes that train together.

        Raises:
            ConfigError: their networks are not the same.
        """
        if self.ranks is None:
            return record
        if not self.ranks.same([*self.task.parameters(), *_buffers(self.task)]):
            raise ConfigError(
                "devices: the network keeps numbers of the images that one process sees, otherwise than batch "
                "normalisation does, so that the processes no longer have the same network; type devices=1"
            )
        return self.ranks.agreed(record)

    def average_epoch(self, count: int) -> None:
        """The weights at the end of an epoch join the average, as number `count` (1, 2, …); once."""
        assert self.average is not None
        if int(self.average.n_averaged) < count:
            self.average.update_parameters(self.task.deployed)

    def measure_norms(self, batches: Iterable[Batch]) -> None:
        """As `swa.measure_norms`, of the average."""
        from kd_cli.training.swa import measure_norms

        assert self.average is not None
        if self.ranks is not None:
            batches = map(self.ranks.whole, batches)  # also with batch_norm=local: a last batch may be of few images
        measure_norms(self.average.module, batches)

    def forget_gradients(self) -> None:
        """Until the next backward pass there are none."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    @property
    def deployed(self) -> nn.Module:
        """The network to evaluate and save: the average where there is one by now."""
        return self.average.module if self.average is not None and self._averaging else self.task.deployed

    @property
    def _averaging(self) -> bool:
        """Whether there is an average: that of the last epochs begins with the first of them."""
        return self.average is not None and (self.recipe.swa_epochs is None or int(self.average.n_averaged) > 0)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that the next update depends on: tensors, which are the live ones, and plain JSON values."""
        tensors = {f"task.{name}": tensor for name, tensor in self.task.state_dict().items()}
        tensors |= {f"sums.{name}": total for name, total in self.totals.sums.items()}
        learned, plain_values = split_slots(self.optimizers)
        tensors |= {f"optimizer.{name}": value for name, value in learned.items()}
        if self.average is not None and self._averaging:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        plain = {"optimizer": plain_values, "scaler": self.scaler.state_dict(), "seen": self.totals.seen}
        return tensors, plain | {"sums": list(self.totals.sums)}  # that order is the order of columns

    def restore(self, state: TrainState) -> None:
        """Takes back what `state` gave."""
        parts: dict[str, dict[str, Tensor]] = {"task": {}, "optimizer": {}, "average": {}, "sums": {}}
        for key, tensor in state.tensors.items():
            part, _, name = key.partition(".")
            parts[part][name] = tensor
        load_state(self.task, parts["task"])
        if self.average is not None and (parts["average"] or self.recipe.swa_epochs is None):
            load_state(self.average, parts["average"])
        put_slots(self.optimizers, {**parts["optimizer"], **state.plain["optimizer"]})
        self.scaler.load_state_dict(state.plain["scaler"])
        self.totals.restore({name: parts["sums"][name] for name in state.plain["sums"]}, state.plain["seen"])

    def autocast(self) -> AbstractContextManager[Any]:
        """The recipe's precision, for forward passes."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.recipe.precision)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)
