"""The only training loop."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

from kd_cli.config.recipe import Recipe, check_possible
from kd_cli.data.base import Data
from kd_cli.errors import ConfigError
from kd_cli.machine import shard
from kd_cli.metrics.scores import accuracy, selection
from kd_cli.seeds import derive_seed, seed_dropout
from kd_cli.signals import patiently
from kd_cli.training.guard import check_score, evaluation_memory
from kd_cli.training.optim import learning_rate, plateau_drops
from kd_cli.training.state import Progress, TrainState, restoring
from kd_cli.training.task import Task
from kd_cli.training.totals import Record
from kd_cli.training.update import Updater
from kd_cli.turns import give_way, let_finish

if TYPE_CHECKING:
    from kd_cli.training.graphs import Graphs, Notes, Recorder

log = logging.getLogger("kd")


class Trainer:
    """Trains a task, epoch by epoch.

    Every random number of a step is a pure function of (seed, epoch, step): nothing has to be replayed on resuming.

    Args:
        recipe: the numbers.
        seed: of batches, augmentation and dropout.
        device: where the task and the batches are.
        watch: called after every update; what it costs is part of the epoch's time.
        save: called inside an epoch as often as the recipe wants a checkpoint there.
        where: the recipe's configuration key, for advice.
        recorder: records an update, to be replayed; None: CUDA's own on such a device, elsewhere nothing is recorded.

    Attributes:
        epoch: epochs done.
        step: updates done in the epoch after them.
        records: of the epochs done.
        between_steps: nothing is half done: what `state` gives is whole.
        not_recorded: why updates are not recorded on a device where they could be; None where they are.

    Raises:
        ConfigError: a precision that the device does not have, or a graph where none is possible.
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
        recorder: Recorder | None = None,
    ) -> None:
        check_possible(recipe, on_cuda=device.type == "cuda" or recorder is not None)
        self.recipe = recipe
        self.seed = seed
        self.device = device
        self.watch = watch
        self.save = save
        self.where = where
        self.images, self.between_steps = 0, False
        self.not_recorded: str | None = None
        self._recorder = recorder

    def epochs(self, task: Task, data: Data, state: TrainState | None = None) -> Iterator[Record]:
        """Yields one record per epoch; goes on from `state` if one is given.

        A request to end (see signals) is raised between two steps, so that `state` can be saved there.

        Raises:
            DivergedError: a loss or a gradient is not finite; the weights are those before that step.
        """
        self._prepare(task, data)
        if state is not None:
            with restoring(state):
                self.updater.restore(state)
                self.epoch, self.step = state.epoch, state.step
                self.records += state.plain["records"]
                self._spent = state.plain["seconds"]
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
        self._check()
        self.updater.guard.check_weights(self.deployed)
        tensors, plain = self.updater.state()
        seconds = time.perf_counter() - self._start if self.step else 0.0
        return TrainState(self.epoch, self.step, tensors, {**plain, "seconds": seconds, "records": list(self.records)})

    @property
    def deployed(self) -> nn.Module:
        """The network to evaluate and save: an average where there is one."""
        return self.updater.deployed

    def _prepare(self, task: Task, data: Data) -> None:
        recipe, self.task, self.data = self.recipe, task, data
        size, limit, place = recipe.batch_size, recipe.limit_train_batches, shard()
        behind = (self.device.type == "cuda" or self._recorder is not None) and place == (0, 1)
        self.batches = data.steps(size, limit)
        self.updates = -(-self.batches // recipe.accumulate)
        self.updater = Updater(task, recipe, self.device, updates=self.updates, behind=behind, where=self.where)
        self.feed = data.feed(seed=self.seed, batch_size=size, device=self.device, limit=limit, shard=place)
        self.records: list[Record] = []
        self._begin_epoch(0)
        self._update = _Update(self)
        self._graphs = self._make_graphs() if behind and recipe.cuda_graphs is not False else None

    def _make_graphs(self) -> Graphs:
        from kd_cli.training.graphs import CudaRecorder, Graphs, foreign_layer

        graphs = Graphs(self._recorder or CudaRecorder(self.device), self._update)
        layer = foreign_layer(self.task) if self.recipe.cuda_graphs == "auto" else None
        if not self.updater.guard.deferred:
            fp16 = self.recipe.precision == "fp16"
            graphs.reason = "fp16 scales its gradients" if fp16 else "an optimizer has no fused kernel"
        elif layer is not None:
            graphs.reason = (
                f"{layer} is not one of kd's layers and may decide something at each step; if it does not, "
                f"{self.where}.cuda_graphs=true records it"
            )
        return graphs

    def _begin_epoch(self, epoch: int) -> None:
        self.epoch, self.step = epoch, 0
        self.updater.totals.begin()
        self._spent = 0.0  # seconds that an earlier process was at work in this epoch

    def _run_epoch(self) -> Record:
        self._start = time.perf_counter() - self._spent
        self._train()
        means = self.updater.totals.means()  # it waits for the device
        train_seconds = time.perf_counter() - self._start
        self._average()
        record: Record = {"epoch": self.epoch + 1, "lr": self._rate(self.updates - 1), **means, **self._validate()}
        record["seconds"] = round(time.perf_counter() - self._start, 3)
        record["images_per_second"] = round(self.updater.totals.seen / train_seconds, 1)
        return self.updater.agreed(record)

    def _train(self) -> None:
        """What is left of one pass over the training images."""
        self.updater.train()
        with self.updater.autocast():
            self.task.begin(self.epoch)
        self._go_to(self.step)
        self._saved = time.monotonic()
        while self.step < self.updates:
            self.feed.fetch(len(self.numbers))
            with patiently():
                self.between_steps = False
                self._learn()
                self.step += 1
                self.between_steps = True
            self._save_if_due()
            give_way()
        let_finish(self.device)
        self._check()

    def _go_to(self, step: int) -> None:
        """Makes ready what the updates from this one on need."""
        self.step = step
        self._drops = plateau_drops(self.records, self.recipe)
        self.feed.begin(self.epoch, first=step * self.recipe.accumulate)
        self.updater.go_to(step, [self._rate(number) for number in range(self.updates)])

    def _learn(self) -> None:
        """One update."""
        numbers = self.numbers
        self.updater.begin(self.step, self._rate(self.step))
        if self._graphs is not None and len(numbers) == self.recipe.accumulate and self.feed.is_whole(numbers[-1]):
            self._graphs.do(self.epoch)
            if self._graphs.reason is not None:
                self._tell(self._graphs.reason)
        else:
            self._update.plainly()
        seen = self.updater.of_all(sum(map(self.feed.size, numbers)))
        self.updater.totals.seen += seen
        self.images += seen
        if self.watch is not None:
            place = (self.epoch + 1, numbers[-1] + 1, self.batches)
            self.watch(Progress(*place, self.images, self.updater.totals.glimpse))

    def _tell(self, reason: str) -> None:
        """Says why updates are not recorded."""
        self._graphs, self.not_recorded = None, reason
        if self.recipe.cuda_graphs is True:
            raise ConfigError(
                f"{self.where}.cuda_graphs: true is not possible: {reason}; type {self.where}.cuda_graphs=auto"
            )
        log.warning("no CUDA graph is made of the steps, which makes small networks slower: %s", reason)

    def _check(self) -> None:
        """Looks for what was not finite. Where that was put off, the first such step is repeated, to say what it was.

        Raises:
            DivergedError: a loss or a gradient was not.
        """
        if (first := self.updater.guard.first_bad()) is None:
            return
        self._go_to(first - 1)
        self.updater.begin(self.step, self._rate(self.step))
        self._update.plainly()
        raise self.updater.guard.unexplained(first, self.epoch)

    def _save_if_due(self) -> None:
        minutes = self.recipe.checkpoint_minutes
        if self.save is None or minutes is None or self.step == self.updates:  # after the last there is another one
            return
        if time.monotonic() - self._saved >= 60 * minutes:
            self.save(self)
            self._saved = time.monotonic()

    def _rate(self, step: int) -> float:
        return learning_rate(self.recipe, self.epoch * self.updates + step, self.updates, self._drops)

    @property
    def numbers(self) -> range:
        """Of the batches of the next update."""
        first = self.step * self.recipe.accumulate
        return range(first, min(first + self.recipe.accumulate, self.batches))

    def _validate(self) -> Record:
        if not self.data.size("val"):
            return {}
        with evaluation_memory(self.recipe, self.where):
            said = self.updater.predict(self.data, "val")
        scores = accuracy(*said)
        check_score(scores, "validation", self.updater.guard.advice)
        return {"val_top1": scores["top1"], "val_loss": scores["nll"], **selection(self.recipe.select_by, *said)}

    def _average(self) -> None:
        """In the last epochs of a recipe with `swa_epochs`: their weights so far, with statistics of their own."""
        count = self.epoch + 1 - max(0, self.recipe.epochs - (self.recipe.swa_epochs or 0))
        if count > 0:
            with patiently():
                self.between_steps = False
                self.updater.average_epoch(count)
                self.between_steps = True
            self.feed.begin(self.epoch)
            self.updater.measure_norms(self.feed.batch(number) for number in range(self.batches))


class _Update:
    """A trainer's next update, in the two ways of `graphs.Update`."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer: Trainer = weakref.proxy(trainer)  # a circle would keep a graph's memory until it is looked for
        self._columns: list[str] = []

    def plainly(self) -> None:
        trainer = self._trainer
        group = [trainer.feed.batch(number) for number in trainer.numbers]
        seed_dropout(self.seed(), trainer.device)
        trainer.updater.learn_from(group)

    def stage(self) -> None:
        self._trainer.feed.stage(self._trainer.recipe.accumulate)

    def count(self) -> None:
        self._trainer.updater.totals.show(self._columns)

    def recorded(self, notes: Notes) -> None:
        from kd_cli.training.graphs import NotedBatch

        trainer, updater, count = self._trainer, self._trainer.updater, self._trainer.recipe.accumulate
        made = [trainer.feed.at(updater.done * count + place, place) for place in range(count)]
        updater.learn_from([NotedBatch(**vars(each), notes=notes) for each in made])
        self._columns = list(updater.totals.sums)

    def seed(self) -> int:
        return derive_seed(self._trainer.seed, "dropout", self._trainer.epoch, self._trainer.step)

    def forget(self) -> None:
        self._trainer.updater.forget_gradients()
