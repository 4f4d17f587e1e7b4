"""One training inside its run's folder: resumed where it was left, saved, stopped in time, judged once at the end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kd_cli import console
from kd_cli.arithmetic import arithmetic, refusing
from kd_cli.config.overrides import recipe_key
from kd_cli.config.recipe import Recipe, Score, check_possible, chosen_by, score_of
from kd_cli.console import Watcher
from kd_cli.data.base import Data
from kd_cli.errors import DataError, Terminated
from kd_cli.machine import own_stream, ranks
from kd_cli.runs.checkpoint import damage_by_averaging
from kd_cli.runs.folder import RunDir
from kd_cli.runs.records import STATE, check_kinds
from kd_cli.signals import patiently
from kd_cli.training.callbacks import Callback, watched_by
from kd_cli.training.guard import training_memory
from kd_cli.training.state import TrainState
from kd_cli.training.task import Task
from kd_cli.training.totals import Record
from kd_cli.training.trainer import Trainer

Result = dict[str, Any]


@contextmanager
def _among_others() -> Iterator[None]:
    """Raises Terminated where another process of the training has ended."""
    try:
        yield
    except RuntimeError as error:
        if (others := ranks()) is not None and others.lost(error):
            raise Terminated("another process of this training has ended") from error
        raise


@_among_others()
def fit(
    task: Task,
    data: Data,
    run: RunDir,
    recipe: Recipe,
    facts: Result,
    *,
    device: torch.device,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Trains a task to its end, whatever an earlier process has done of it, and returns the run's result.

    Args:
        facts: of the result; `stage` is how the training is called on the screen, `seed` is its seed.
        callbacks: they see every epoch and the result.

    Raises:
        ConfigError: as `check_possible`, or an operation that has no deterministic kernel and shall have one.
        DataError: the images have changed since the training was begun.
        DivergedError: a loss is not finite.
        OutOfMemory: a batch does not fit.
        KDError: the run's folder cannot be written.
    """
    stage, seed = facts["stage"], facts["seed"]
    check_possible(recipe, validation=bool(data.size("val")), on_cuda=device.type == "cuda")
    check_same_images(run.path, run.record, data)
    run.note(data=data_facts(data), seed=seed, precision=recipe.precision, deterministic=recipe.deterministic)
    if recipe.compile:
        task.deployed.compile()
    where = recipe_key(run.record.get("stage"), run.record.get("arguments", ()))
    state = _agreed(run, stage, recipe)
    records = state.plain["records"] if state else []
    run.log(records)
    computed = arithmetic(recipe.precision, recipe.deterministic, device)
    with computed, refusing(f"the {stage}'s training", where), watched_by(callbacks, records):
        if not _ended(records, recipe):
            shown = partial(chosen_by, select_by=recipe.select_by)
            with console.watching(stage, recipe.epochs, state.epoch if state else 0, shown) as watcher:
                watch, save = watcher.batch, partial(save_checkpoint, run)
                trainer = Trainer(recipe, seed=seed, device=device, watch=watch, save=save, where=where)
                with training_memory(recipe, where), own_stream(device):
                    _train(trainer, task, data, state, run, [watcher, *callbacks])
                records = trainer.records
                if device.type == "cuda":
                    run.note(cuda_graphs=trainer.not_recorded or recipe.cuda_graphs is not False)
        from kd_cli.training.judge import end

        return end(task, data, run, recipe, facts, records, where, device, callbacks)


def finished(run: RunDir, data: Data) -> Result | None:
    """The result of a complete training; None while it is not.

    Raises:
        DataError: the images have changed since.
    """
    if run.result is not None and not run.record.get("specialist"):  # whose data are a part of these
        check_same_images(run.path, run.record, data)
    if run.result is not None and (damage := damage_by_averaging(run.path)):
        console.notice(damage)
    return run.result


def check_same_images(path: Path, record: Mapping[str, Any], data: Data) -> None:
    """What was begun on other images can neither go on nor be compared with what learns from these.

    Args:
        path: the run's folder.
        record: its run.json.

    Raises:
        DataError: the images have changed since.
    """
    known = record.get("data", {}).get("fingerprint")
    if known not in (None, data.fingerprint):
        raise DataError(
            f"the images of {data.name} have changed since {path} was begun; choose another folder: "
            "hydra.run.dir=DIR, of a sweep hydra.sweep.dir=DIR"
        )


def best_epoch(records: Sequence[Record], select_by: Score = "top1") -> int:
    """The epoch with the best validation score (ties: the smaller validation loss, then the earlier epoch).

    Without validation images nothing is chosen: it is the last epoch. A loss that is not finite is never best.
    """
    if "val_loss" not in records[-1]:
        return int(records[-1]["epoch"])
    sound = [row for row in records if math.isfinite(row["val_loss"])] or records[:1]
    return int(max(sound, key=lambda row: (score_of(row, select_by), -row["val_loss"], -row["epoch"]))["epoch"])


def _agreed(run: RunDir, stage: str, recipe: Recipe) -> TrainState | None:
    """Where all processes that train together go on."""
    if (others := ranks()) is None:
        return _resume(run, stage, recipe)
    others.wait()
    state = _resume(run, stage, recipe)
    places = others.numbers([-1, -1] if state is None else [state.epoch, state.step])
    if (places != places[0]).any():
        raise DataError(f"the processes of this training see different checkpoints in {run.path}; it must be shared")
    return state


def _resume(run: RunDir, stage: str, recipe: Recipe) -> TrainState | None:
    checkpoint = run.checkpoints.latest()
    if checkpoint is not None:
        check_kinds(checkpoint.plain, STATE, checkpoint.path / "state.json", whole=True)
    if checkpoint is None or not _best_is_whole(run, checkpoint.plain["records"], recipe):
        return None
    plain = checkpoint.plain
    state = TrainState(plain["epoch"], plain["step"], checkpoint.tensors("training"), plain)
    step = f", step {state.step} of the next" if state.step else ""
    console.say(f"{stage:<10} goes on after epoch {state.epoch}{step} ({console.short_path(checkpoint.path)})")
    return state


def _best_is_whole(run: RunDir, records: list[Record], recipe: Recipe) -> bool:
    """Without the best epoch's checkpoint the run could go on but never be judged."""
    try:
        if records:
            run.checkpoints.after(best_epoch(records, recipe.select_by))
    except DataError as error:
        console.notice(f"{error}; it was the best epoch's, so training begins again")
        return False
    return True


def _train(
    trainer: Trainer,
    task: Task,
    data: Data,
    state: TrainState | None,
    run: RunDir,
    watchers: Sequence[Watcher | Callback],
) -> None:
    """All epochs that are left. A request to end finds a checkpoint of the step at which it came."""
    try:
        for record in trainer.epochs(task, data, state):
            run.log(trainer.records)
            over = _ended(trainer.records, trainer.recipe)
            due = trainer.epoch % trainer.recipe.checkpoint_every == 0
            if over or due or best_epoch(trainer.records, trainer.recipe.select_by) == trainer.epoch:
                save_checkpoint(run, trainer)
            for watcher in watchers:
                watcher.epoch(record)
            if over:
                return
    except (KeyboardInterrupt, Terminated):
        if trainer.between_steps and run.checkpoints.newest() != (trainer.epoch, trainer.step):
            with patiently():
                save_checkpoint(run, trainer)
        raise


def save_checkpoint(run: RunDir, trainer: Trainer) -> None:
    """Writes where a training stands into its run's folder."""
    if run.follows:
        return
    state = trainer.state()
    tensors = {"model": trainer.deployed.state_dict(), "training": state.tensors}
    records = state.plain["records"]
    best = best_epoch(records, trainer.recipe.select_by) if records else None
    place = (state.epoch, state.step)
    with run.there():
        run.checkpoints.save(place, tensors, state.plain)
    with run.there():  # writing takes a while; another run's folder may be in its place by now
        run.checkpoints.prune(place, best)


def _ended(records: Sequence[Record], recipe: Recipe) -> bool:
    if not records:
        return False
    epoch, best = records[-1]["epoch"], best_epoch(records, recipe.select_by)
    return bool(epoch >= recipe.epochs or (recipe.early_stopping is not None and epoch - best >= recipe.early_stopping))


def data_facts(data: Data) -> dict[str, Any]:
    """What is on a run's record of its images."""
    return {
        "name": data.name,
        "fingerprint": data.fingerprint,
        "preprocessing": data.preprocessing,
        "classes": list(data.spec.class_names),
        "image_shape": list(data.spec.image_shape),
        "num_train": data.spec.num_train,
    } | ({"unreadable": data.unreadable} if data.unreadable else {})
