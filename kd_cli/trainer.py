"""The only training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kd_cli.checkpoint import load_state
from kd_cli.data.base import Data
from kd_cli.divergence import LossGuard
from kd_cli.errors import ConfigError
from kd_cli.evaluate import evaluate
from kd_cli.optim import learning_rate, make_optimizer
from kd_cli.recipe import Recipe
from kd_cli.seeds import derive_seed
from kd_cli.task import Task
from kd_cli.types import Batch, Step

Record = dict[str, float]


@dataclass(frozen=True)
class Progress:
    """Where an epoch stands, for whoever watches.

    Args:
        epoch: 1 … epochs.
        batch: batches done in this epoch.
        batches: batches of an epoch.
        images: images seen since the trainer started.
        sums: term name, `loss` or `correct` → sum over the `seen` images of this epoch; on the device.
        seen: images of this epoch.
    """

    epoch: int
    batch: int
    batches: int
    images: int
    sums: dict[str, Tensor]
    seen: int


@dataclass(frozen=True)
class TrainState:
    """All that training needs to go on with the same bits.

    Args:
        epoch: epochs done.
        tensors: name → tensor of the task, the optimizer, the moving average and the gradient scaler.
        plain: everything else, as plain JSON values.
    """

    epoch: int
    tensors: dict[str, Tensor]
    plain: dict[str, Any]


class Trainer:
    """Trains a task, epoch by epoch.

    Every random number of a step is a pure function of (seed, epoch, step): nothing has to be replayed on resuming.

    Args:
        recipe: the numbers.
        seed: of batches, augmentation and dropout.
        device: where the task and the batches are.
        watch: called after every batch; what it costs is part of the epoch's time.

    Raises:
        ConfigError: a precision that the device does not have.
    """

    def __init__(
        self, recipe: Recipe, *, seed: int, device: torch.device, watch: Callable[[Progress], None] | None = None
    ) -> None:
        check_precision(recipe, device)
        self.recipe = recipe
        self.seed = seed
        self.device = device
        self.watch = watch
        self.images = 0

    def epochs(self, task: Task, data: Data, state: TrainState | None = None) -> Iterator[Record]:
        """Yields one record per epoch; starts after the epochs of `state` if one is given.

        Raises:
            DivergedError: the loss is not finite; the weights are those before that step.
        """
        self._prepare(task, data)
        if state is not None:
            self._restore(state)
        for epoch in range(0 if state is None else state.epoch, self.recipe.epochs):
            start = time.perf_counter()
            record: Record = {"epoch": epoch + 1, **self._train(epoch)}
            train_seconds = time.perf_counter() - start
            record |= self._validate()
            record["seconds"] = round(time.perf_counter() - start, 3)
            record["images_per_second"] = round(self.seen / train_seconds, 1)
            yield record

    @property
    def deployed(self) -> nn.Module:
        """The network to evaluate and save: the moving average where there is one."""
        network: nn.Module = self.task.deployed if self.average is None else self.average.module
        return network

    def state(self, epoch: int) -> TrainState:
        """The state after `epoch` epochs; its tensors are the live ones, so save it before the next step."""
        tensors = {f"task.{name}": tensor for name, tensor in self.task.state_dict().items()}
        plain: dict[str, Any] = {"optimizer": {}, "scaler": self.scaler.state_dict()}
        for name, value in self._slots():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{name}"] = value
            else:
                plain["optimizer"][name] = value
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        return TrainState(epoch, tensors, plain)

    def _prepare(self, task: Task, data: Data) -> None:
        self.task, self.data = task, data
        others = task.optimizers()
        elsewhere = {id(parameter) for optimizer in others for parameter in _parameters_of(optimizer)}
        learned = (parameter for parameter in task.parameters() if parameter.requires_grad)
        self.parameters = [parameter for parameter in learned if id(parameter) not in elsewhere]
        self.optimizers = [make_optimizer(self.parameters, self.recipe, self.device), *others]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.recipe.precision == "fp16")
        self.guard = LossGuard(self.optimizers, self.device, self.recipe.lr)
        self.average: AveragedModel | None = None
        if self.recipe.ema_decay is not None:
            average = get_ema_multi_avg_fn(self.recipe.ema_decay)
            self.average = AveragedModel(task.deployed, multi_avg_fn=average, use_buffers=True)
        self.batches = data.steps(self.recipe.batch_size, self.recipe.limit_train_batches)
        self.updates = -(-self.batches // self.recipe.accumulate)

    def _slots(self) -> Iterator[tuple[str, Any]]:
        """`optimizer.parameter.slot` by number → the value."""
        for number, optimizer in enumerate(self.optimizers):
            for index, values in optimizer.state_dict()["state"].items():
                yield from ((f"{number}.{index}.{slot}", value) for slot, value in values.items())

    def _restore(self, state: TrainState) -> None:
        parts: dict[str, dict[str, Tensor]] = {"task": {}, "optimizer": {}, "average": {}}
        for key, tensor in state.tensors.items():
            part, _, name = key.partition(".")
            parts[part][name] = tensor
        load_state(self.task, parts["task"])
        if self.average is not None:
            load_state(self.average, parts["average"])
        slots: list[dict[int, dict[str, Any]]] = [{} for _ in self.optimizers]
        for name, value in {**parts["optimizer"], **state.plain["optimizer"]}.items():
            number, index, slot = name.split(".", 2)
            parameter = _parameters_of(self.optimizers[int(number)])[int(index)]
            slots[int(number)].setdefault(int(index), {})[slot] = _laid_out_like(parameter, value)
        for optimizer, values in zip(self.optimizers, slots, strict=True):
            optimizer.load_state_dict({"state": values, "param_groups": optimizer.state_dict()["param_groups"]})
        self.scaler.load_state_dict(state.plain["scaler"])

    def _train(self, epoch: int) -> Record:
        """One pass over the training images: means of the losses (weighted by images) and accuracy in percent."""
        self.task.train()
        self.seen = 0
        sums: dict[str, Tensor] = {}
        batches = self.data.train_batches(
            seed=self.seed,
            epoch=epoch,
            batch_size=self.recipe.batch_size,
            device=self.device,
            limit=self.recipe.limit_train_batches,
        )
        for update in range(self.updates):
            self._set_step(epoch, update)
            group = list(islice(batches, self.recipe.accumulate))
            for position, batch in enumerate(group):
                share = len(batch.labels) / sum(len(other.labels) for other in group)
                step = self._backward(batch, share)
                self._count(sums, step, batch)
                self._report(epoch, update * self.recipe.accumulate + position + 1, sums)
            self._update()
        self.guard.check()
        means = {name: float(total) / self.seen for name, total in sums.items()}
        top1 = round(100 * means.pop("correct"), 2)
        return {"lr": self.lr, "train_top1": top1, **{f"train_{name}": mean for name, mean in means.items()}}

    def _set_step(self, epoch: int, update: int) -> None:
        self.lr = learning_rate(self.recipe, epoch * self.updates + update, self.updates)
        for group in self.optimizers[0].param_groups:
            group["lr"] = self.lr
        seed_dropout(derive_seed(self.seed, "dropout", epoch, update), self.device)

    def _backward(self, batch: Batch, share: float) -> Step:
        with self._autocast():
            step: Step = self.task(batch)
        self.guard.watch(step, batch, self.lr)
        loss = step.loss if share == 1 else step.loss * share
        self.scaler.scale(loss).backward()
        return step

    def _update(self) -> None:
        if self.recipe.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizers[0])
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip_grad_norm)
        for optimizer in self.optimizers:
            if any(parameter.grad is not None for parameter in _parameters_of(optimizer)):  # its loss had a weight
                self.scaler.step(optimizer)
        self.scaler.update()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.task.deployed)

    def _count(self, sums: dict[str, Tensor], step: Step, batch: Batch) -> None:
        """Adds this batch to the epoch's sums, on the device: nothing waits for it."""
        size = len(batch.labels)
        correct = (step.logits.detach().argmax(dim=1) == batch.labels).sum()
        values = {"loss": step.loss.detach() * size, **{name: term * size for name, term in step.terms.items()}}
        for name, value in {**values, "correct": correct}.items():
            sums[name] = sums[name] + value if name in sums else value
        self.seen += size
        self.images += size

    def _report(self, epoch: int, batch: int, sums: dict[str, Tensor]) -> None:
        if self.watch is not None:
            self.watch(Progress(epoch + 1, batch, self.batches, self.images, sums, self.seen))

    def _validate(self) -> Record:
        if not self.data.size("val"):
            return {}
        scores = evaluate(self.deployed, self.data, "val", batch_size=self.recipe.eval_batch_size, device=self.device)
        return {"val_top1": scores["top1"], "val_loss": scores["nll"]}

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.recipe.precision]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)


def check_precision(recipe: Recipe, device: torch.device) -> None:
    """Refuses a precision that the device does not have.

    Raises:
        ConfigError: fp16 without CUDA.
    """
    if recipe.precision == "fp16" and device.type != "cuda":
        raise ConfigError(
            f"trainer.precision: fp16 needs a CUDA device, not {device.type}; type trainer.precision=bf16"
        )


def _parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """In the order in which the optimizer's state numbers them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _laid_out_like(parameter: nn.Parameter, value: Any) -> Any:
    """A fused optimizer walks parameter and state side by side: both need the same strides (channels_last)."""
    if isinstance(value, Tensor) and value.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    return value


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seeds the generators that dropout draws from.

    (torch.manual_seed would also queue a call, with a stack trace, for every device that is not there.)
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
