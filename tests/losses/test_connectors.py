"""Layers that a loss owns learn with the student, and count where the gradient is clipped."""

from __future__ import annotations

import pytest
import torch

from kd_cli.config.recipe import Recipe
from kd_cli.losses.base import build_loss
from kd_cli.training.task import Distillation
from kd_cli.training.update import Updater
from kd_cli.types import Batch, DataSpec
from tests.support.networks import CIFAR, build, images
from tests.support.small import CPU, loss_options

LIMIT = 0.01
BATCH = Batch(images(4), torch.tensor([0, 1, 2, 3]), torch.arange(4))


def moved(**options: float) -> dict[str, torch.Tensor]:
    """By how much one plain update with rate 1 moves each parameter of a student and its connectors."""
    teacher, student = build({"name": "resnet8x4"}).eval(), build({"name": "resnet8"})
    method, mix = build_loss({**loss_options("fitnet"), "fitnet_weight": 100.0})
    task = Distillation(student, teacher, method, mix, DataSpec(10, 4, CIFAR, tuple("abcdefghij")), name="fitnet")
    before = {name: parameter.detach().clone() for name, parameter in task.named_parameters()}
    recipe = Recipe(optimizer="sgd", lr=1.0, momentum=0.0, weight_decay=0.0, schedule="constant", **options)
    update = Updater(task, recipe, CPU, updates=1, behind=False, where="trainer")
    update.go_to(0, [1.0])
    update.begin(0, 1.0)
    update.train()
    update.learn_from([BATCH])
    return {name: parameter.detach() - before[name] for name, parameter in task.named_parameters()}


def test_connectors_count_in_the_norm_that_is_clipped() -> None:
    free, clipped = moved(), moved(clip_grad_norm=LIMIT)
    connectors = [name for name in free if name.startswith("method.")]
    assert connectors
    theirs = torch.cat([free[name].flatten() for name in connectors]).norm()
    whole = torch.cat([each.flatten() for each in free.values()]).norm()
    assert theirs > 0.1 * whole > 10 * LIMIT  # without them the norm would be another one
    assert torch.cat([each.flatten() for each in clipped.values()]).norm().item() == pytest.approx(LIMIT, rel=1e-3)
    for name, each in clipped.items():
        torch.testing.assert_close(each, free[name] * (LIMIT / whole), rtol=1e-2, atol=1e-7)
