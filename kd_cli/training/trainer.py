"""The only training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kd_cli.config.recipe import Recipe, check_possible
from kd_cli.data.base import Data
from kd_cli.metrics.evaluate import evaluate
from kd_cli.runs.checkpoint import load_state
from kd_cli.seeds import derive_seed, seed_dropout
from kd_cli.signals import patiently
from kd_cli.training.guard import LossGuard, check_score, evaluation_memory
from kd_cli.training.optim import learning_rate, make_optimizer
from kd_cli.training.state import Progress, TrainState, parameters_of, put_slots, restoring, split_slots
from kd_cli.training.task import Task
from kd_cli.turns import give_way, let_finish
from kd_cli.types import Batch, Step

Record = dict[str, float]
Tensors = tuple[Tensor, ...] | list[Tensor]


def moving_average(network: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of a network's fractional parameters and buffers; all others are copied.

    PyTorch's own averages whole numbers, too, and cuts the result: the index tables of Swin and its kin lose ones.
    """
    lerp = get_ema_multi_avg_fn(decay)

    def average(averaged: Tensors, current: Tensors, updates: Tensor | int) -> None:  # all of one type
        if averaged[0].is_floating_point() or averaged[0].is_complex():
            lerp(averaged, current, updates)
        else:
            torch._foreach_copy_(averaged, current)

    return AveragedModel(network, multi_avg_fn=average, use_buffers=True)


class Trainer:
    """Trains a task, epoch by epoch.

    Every random number of a step is a pure function of (seed, epoch, step): nothing has to be replayed on resuming.

    Args:
        recipe: the numbers.
        seed: of batches, augmentation and dropout.
        device: where the task and the batches are.
        watch: called after every batch; what it costs is part of the epoch's time.
        save: called inside an epoch as often as the recipe wants a checkpoint there.
        where: the recipe's configuration key, for advice.

    Attributes:
        epoch: epochs done.
        step: updates done in the epoch after them.
        records: of the epochs done.
        between_steps: nothing is half done: what `state` gives is whole.

    Raises:
        ConfigError: a precision that the device does not have.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        seed: int,
        device: torch.device,
        watch: Callable[[Progress], None] | None = None,
        save: Callable[[Trainer], None] | None = None,
        where: str = "trainer",
    ) -> None:
        check_possible(recipe, on_cuda=device.type == "cuda")
        self.recipe = recipe
        self.seed = seed
        self.device = device
        self.watch = watch
        self.save = save
        self.where = where
        self.images, self.between_steps = 0, False

    def epochs(self, task: Task, data: Data, state: TrainState | None = None) -> Iterator[Record]:
        """Yields one record per epoch; goes on from `state` if one is given.

        A request to end (see signals) is raised between two steps, so that `state` can be saved there.

        Raises:
            DivergedError: a loss or a gradient is not finite; the weights are those before that step.
        """
        self._prepare(task, data)
        if state is not None:
            with restoring(state):
                self._restore(state)
        self.between_steps = True
        while self.epoch < self.recipe.epochs:
            record = self._run_epoch()
            with patiently():
                self.records.append(record)
                self._begin_epoch(self.epoch + 1)
            yield record

    def state(self) -> TrainState:
        """The state as it is now; its tensors are the live ones, so save it before the next step.

        Raises:
            DivergedError: what was not looked at yet is not finite, or not all weights are.
        """
        self.guard.check_weights(self.deployed)
        tensors = {f"task.{name}": tensor for name, tensor in self.task.state_dict().items()}
        tensors |= {f"sums.{name}": total for name, total in self.sums.items()}
        learned, plain_values = split_slots(self.optimizers)
        tensors |= {f"optimizer.{name}": value for name, value in learned.items()}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        seconds = time.perf_counter() - self._start if self.step else 0.0
        plain = {"optimizer": plain_values, "scaler": self.scaler.state_dict(), "seen": self.seen, "seconds": seconds}
        plain |= {"sums": list(self.sums), "records": list(self.records)}  # that order is the order of columns
        return TrainState(self.epoch, self.step, tensors, plain)

    @property
    def deployed(self) -> nn.Module:
        """The network to evaluate and save: the moving average where there is one."""
        return self.task.deployed if self.average is None else self.average.module

    def _prepare(self, task: Task, data: Data) -> None:
        self.task, self.data = task, data
        others = task.optimizers()
        elsewhere = {id(parameter) for optimizer in others for parameter in parameters_of(optimizer)}
        learned = (parameter for parameter in task.parameters() if parameter.requires_grad)
        self.parameters = [parameter for parameter in learned if id(parameter) not in elsewhere]
        self.optimizers = [make_optimizer(self.parameters, self.recipe, self.device), *others]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.recipe.precision == "fp16")
        self.average: AveragedModel | None = None
        if self.recipe.ema_decay is not None:
            self.average = moving_average(task.deployed, self.recipe.ema_decay)
        self.batches = data.steps(self.recipe.batch_size, self.recipe.limit_train_batches)
        self.updates = -(-self.batches // self.recipe.accumulate)
        names = dict(task.named_parameters())
        self.guard = LossGuard(
            self.optimizers, self.recipe, self.device, parameters=names, steps=self.updates, where=self.where
        )
        self.records: list[Record] = []
        self._begin_epoch(0)

    def _begin_epoch(self, epoch: int) -> None:
        self.epoch, self.step, self.seen = epoch, 0, 0
        self.sums: dict[str, Tensor] = {}
        self._spent = 0.0  # seconds that an earlier process was at work in this epoch

    def _restore(self, state: TrainState) -> None:
        parts: dict[str, dict[str, Tensor]] = {"task": {}, "optimizer": {}, "average": {}, "sums": {}}
        for key, tensor in state.tensors.items():
            part, _, name = key.partition(".")
            parts[part][name] = tensor
        load_state(self.task, parts["task"])
        if self.average is not None:
            load_state(self.average, parts["average"])
        put_slots(self.optimizers, {**parts["optimizer"], **state.plain["optimizer"]})
        self.scaler.load_state_dict(state.plain["scaler"])
        self.epoch, self.step, self.records = state.epoch, state.step, list(state.plain["records"])
        self.sums = {name: parts["sums"][name].to(self.device) for name in state.plain["sums"]}
        self.seen, self._spent = state.plain["seen"], state.plain["seconds"]

    def _run_epoch(self) -> Record:
        self._start = time.perf_counter() - self._spent
        self._train()
        train_seconds = time.perf_counter() - self._start
        rate = self._rate(self.updates - 1)
        record: Record = {"epoch": self.epoch + 1, "lr": rate, **self._means(), **self._validate()}
        record["seconds"] = round(time.perf_counter() - self._start, 3)
        record["images_per_second"] = round(self.seen / train_seconds, 1)
        return record

    def _train(self) -> None:
        """What is left of one pass over the training images."""
        self.task.train()
        with self._autocast():
            self.task.begin(self.epoch)
        self._saved = time.monotonic()
        batches = self.data.train_batches(
            seed=self.seed,
            epoch=self.epoch,
            batch_size=self.recipe.batch_size,
            device=self.device,
            limit=self.recipe.limit_train_batches,
            first=self.step * self.recipe.accumulate,
        )
        while self.step < self.updates:
            group = list(islice(batches, self.recipe.accumulate))
            with patiently():
                self.between_steps = False
                self._learn(group)
                self.step += 1
                self.between_steps = True
            self._save_if_due()
            give_way()
        let_finish(self.device)
        self.guard.check()

    def _learn(self, group: Sequence[Batch]) -> None:
        """One update."""
        self._set_step()
        for position, batch in enumerate(group):
            share = len(batch.labels) / sum(len(other.labels) for other in group)
            step = self._backward(batch, share)
            self._count(step, batch)
            self._report(self.step * self.recipe.accumulate + position + 1)
        self._update()

    def _means(self) -> Record:
        """Means of the losses, weighted by images, and accuracy in percent."""
        means = {name: float(total) / self.seen for name, total in self.sums.items()}
        top1 = round(100 * means.pop("correct"), 2)
        loss = means.pop("loss")  # the other terms are weighted: they sum to it
        return {
            "train_top1": top1,
            "train_loss": loss,
            **{f"train_weighted_{name}": each for name, each in means.items()},
        }

    def _save_if_due(self) -> None:
        minutes = self.recipe.checkpoint_minutes
        if self.save is None or minutes is None or self.step == self.updates:  # after the last there is another one
            return
        if time.monotonic() - self._saved >= 60 * minutes:
            self.save(self)
            self._saved = time.monotonic()

    def _rate(self, step: int) -> float:
        return learning_rate(self.recipe, self.epoch * self.updates + step, self.updates)

    def _set_step(self) -> None:
        self.lr = self._rate(self.step)
        for group in self.optimizers[0].param_groups:
            group["lr"] = self.lr
        self.guard.begin(self.step + 1, self.lr)
        seed_dropout(derive_seed(self.seed, "dropout", self.epoch, self.step), self.device)

    def _backward(self, batch: Batch, share: float) -> Step:
        with self._autocast():
            step: Step = self.task(batch)
        self.guard.watch(step, batch)
        loss = step.loss if share == 1 else step.loss * share
        self.scaler.scale(loss).backward()
        return step

    def _update(self) -> None:
        self.guard.watch_gradients()
        if self.recipe.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizers[0])
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip_grad_norm)
        for optimizer in self.optimizers:
            if any(parameter.grad is not None for parameter in parameters_of(optimizer)):  # its loss had a weight
                self.scaler.step(optimizer)
        self.scaler.update()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.task.deployed)

    def _count(self, step: Step, batch: Batch) -> None:
        """Adds this batch to the epoch's sums, on the device: nothing waits for it."""
        size = len(batch.labels)
        correct = (step.logits.detach().argmax(dim=1) == batch.labels).sum()
        values = {"loss": step.loss.detach() * size, **{name: term * size for name, term in step.terms.items()}}
        for name, value in {**values, "correct": correct}.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.seen += size
        self.images += size

    def _report(self, batch: int) -> None:
        if self.watch is not None:
            self.watch(Progress(self.epoch + 1, batch, self.batches, self.images, self.sums, self.seen))

    def _validate(self) -> Record:
        if not self.data.size("val"):
            return {}
        size = self.recipe.eval_batch_size
        with evaluation_memory(self.recipe, self.where):
            scores = evaluate(self.deployed, self.data, "val", batch_size=size, device=self.device)
        check_score(scores, "validation", self.guard.advice)
        return {"val_top1": scores["top1"], "val_loss": scores["nll"]}

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.recipe.precision]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)
