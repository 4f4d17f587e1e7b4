"""Every loss of conf/loss trains a small residual student on real digits."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import nn

from kd_cli.config.recipe import Recipe
from kd_cli.data.base import Data, load_dataset
from kd_cli.losses.base import build_loss
from kd_cli.models.base import MODELS
from kd_cli.training.task import Distillation
from kd_cli.training.trainer import Trainer
from tests.support.small import CPU, loss_options, read_yaml, yaml_names


@cache
def digits() -> Data:
    return load_dataset(read_yaml("dataset", "mnist_mini") | {"val_fraction": 0.02})


def network(name: str) -> nn.Module:
    return MODELS.build({"name": name}, num_classes=10, in_channels=1, image_size=28)


@pytest.mark.slow
@pytest.mark.parametrize("choice", yaml_names("loss"))
def test_every_loss_moves_a_residual_student_on_real_digits(choice: str) -> None:
    torch.manual_seed(0)
    student, teacher = network("resnet8"), network("resnet14")
    student.taps = {**student.taps, "distill_logits": "fc"}  # for the method that needs a second head
    before = student.conv1.weight.detach().clone()
    method, mix = build_loss(loss_options(choice))
    task = Distillation(student, teacher, method, mix, digits().spec, name=choice)
    trainer = Trainer(Recipe(epochs=1, batch_size=32, limit_train_batches=2), seed=0, device=CPU)
    (record,) = trainer.epochs(task, digits())
    assert all(math.isfinite(value) for value in record.values())
    assert record["val_top1"] >= 0
    assert not torch.equal(student.conv1.weight, before)
