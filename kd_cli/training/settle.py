"""The training of what learns all at once: a folder, a checkpoint and a result as of any other, without an update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from kd_cli import console
from kd_cli.arithmetic import arithmetic
from kd_cli.config.overrides import recipe_key
from kd_cli.config.recipe import Recipe, chosen_by
from kd_cli.data.base import Data
from kd_cli.runs.folder import RunDir
from kd_cli.training.callbacks import Callback, watched_by
from kd_cli.training.fit import Result, check_same_images, data_facts
from kd_cli.training.guard import evaluation_memory
from kd_cli.training.judge import end
from kd_cli.training.task import Task
from kd_cli.training.totals import Record


def settle(
    task: Task,
    data: Data,
    run: RunDir,
    recipe: Recipe,
    facts: Result,
    learn: Callable[[], Record],
    *,
    device: torch.device,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """As `fit`, of a network that learns without an update.

    Args:
        learn: does that, and says what is to be said of an epoch.
    """
    check_same_images(run.path, run.record, data)
    run.note(data=data_facts(data), seed=facts["seed"], precision=recipe.precision, deterministic=recipe.deterministic)
    where = recipe_key(run.record.get("stage"), run.record.get("arguments", ()))
    checkpoint = run.checkpoints.latest()
    records = checkpoint.plain["records"] if checkpoint else []
    shown = partial(chosen_by, select_by=recipe.select_by)
    with arithmetic(recipe.precision, recipe.deterministic, device), watched_by(callbacks, records):
        if checkpoint is None:
            with console.watching(facts["stage"], 1, 0, shown) as watcher, evaluation_memory(recipe, where):
                records = [learn()]
                _save(run, task, records)
                watcher.epoch(records[0])
                for callback in callbacks:
                    callback.epoch(records[0])
        run.log(records)
        return end(task, data, run, recipe, facts, records, where, device, callbacks)


def _save(run: RunDir, task: Task, records: list[Record]) -> None:
    plain = {"records": records, "optimizer": {}, "scaler": {}, "seen": 0, "seconds": 0.0}
    with run.there():
        run.checkpoints.save((1, 0), {"model": task.deployed.state_dict(), "training": {}}, plain)
