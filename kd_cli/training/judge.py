"""The end of a training: the chosen epoch and the last one on the test images, each once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from kd_cli import console
from kd_cli.config.recipe import Recipe, Score, score_name
from kd_cli.data.base import Data, Part
from kd_cli.metrics.evaluate import predict
from kd_cli.metrics.scores import accuracy, hits, only_answer
from kd_cli.models.base import count_parameters
from kd_cli.runs.checkpoint import load_state
from kd_cli.runs.folder import RunDir
from kd_cli.runs.predictions import Predictions, write_predictions
from kd_cli.training.callbacks import Callback
from kd_cli.training.fit import Result, best_epoch
from kd_cli.training.guard import advice, check_score, evaluation_memory
from kd_cli.training.task import Task
from kd_cli.training.totals import Record


def end(
    task: Task,
    data: Data,
    run: RunDir,
    recipe: Recipe,
    facts: Result,
    records: Sequence[Record],
    where: str,
    device: torch.device,
    callbacks: Sequence[Callback],
) -> Result:
    """Judges a training that has come to its end, and says so. Args and errors: as `fit`."""
    if run.follows:
        run.finish({})
        return run.result or {}
    with evaluation_memory(recipe, where):
        result = _judge(task, data, run, recipe, device, records, where) | facts
    run.finish(result)
    for callback in callbacks:
        callback.finish(result)
    return result


def _judge(
    task: Task, data: Data, run: RunDir, recipe: Recipe, device: torch.device, records: Sequence[Record], where: str
) -> Result:
    """Evaluates the best and the last epoch on the test images, each once."""
    best, last = best_epoch(records, recipe.select_by), int(records[-1]["epoch"])
    digests, scores, correct = {}, {}, {}
    for epoch in {best, last}:
        with run.there():
            checkpoint = run.checkpoints.after(epoch)
            load_state(task.deployed, checkpoint.tensors("model"))
        digests[epoch] = checkpoint.model_digest
        said = predict(task.deployed, data, "test", batch_size=recipe.eval_batch_size, device=device)
        scores[epoch], correct[epoch] = accuracy(*said), int(hits(*said).sum())
        check_score(scores[epoch], "test", advice(recipe, where))
        if epoch == best:
            _say_only_answer(str(run.record.get("stage")), *said, data)
            with run.there():
                write_predictions(run.path, Predictions(*said), weights=digests[epoch])
    chosen = next(row for row in records if row["epoch"] == best)
    return {
        "run": str(run.path),
        "test_top1": scores[best]["top1"],
        "test_top1_last": scores[last]["top1"],
        "test_correct": correct[best],
        "test_correct_last": correct[last],
        "test_nll": scores[best]["nll"],
        "val_top1": chosen.get("val_top1"),
        **_chosen_by(recipe.select_by, chosen),
        "best_epoch": best,
        "epochs": last,
        "parameters": count_parameters(task.deployed),
        "train_seconds": round(sum(row["seconds"] for row in records), 1),
        "images": {part: data.size(part) for part in get_args(Part)},
        "weights_sha256": {"best": digests[best], "last": digests[last]},
    }


def _chosen_by(select_by: Score, chosen: Record) -> Result:
    """What chose the epoch, where that was not top-1."""
    name = score_name(select_by)
    return {} if select_by == "top1" else {"select_by": select_by, name: chosen[name]}


def _say_only_answer(stage: str, logits: Tensor, labels: Tensor, data: Data) -> None:
    name = only_answer(logits, labels, data.spec.class_names)
    if name is not None:
        console.notice(f"the {stage} network takes all {len(labels):,} test images for {name!r}: it learned nothing")
