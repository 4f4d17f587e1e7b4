"""What every registered loss must do, whichever it is. A later loss joins by being registered."""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd_cli.config.recipe import Recipe
from kd_cli.losses.base import LOSSES, Mix, build_loss
from kd_cli.training.state import TrainState
from kd_cli.training.task import Distillation, Supervised, Task
from kd_cli.training.trainer import Trainer
from tests.support.small import (
    CPU,
    SPEC,
    loss_options,
    make_batch,
    make_data,
    make_student,
    make_teacher,
    same_tensors,
    yaml_names,
)

NAMES = LOSSES.names()
# loss → options with which a teacher that was never trained has something to say.
TAUGHT = {"crld": {"weak_threshold": 0.0, "strong_threshold": 0.0}}
every_loss = pytest.mark.parametrize("name", NAMES)


def distillation(name: str, *, seed: int = 0, mix: Mix | None = None, teacher: nn.Module | None = None) -> Distillation:
    """A student and a teacher of different channel counts and map sizes under the loss of conf/loss/<name>.yaml."""
    method, usual = build_loss({**loss_options(name), **TAUGHT.get(name, {})})
    student = make_student(seed)
    teacher = teacher or make_teacher()
    torch.manual_seed(seed)  # of the layers that the method makes
    return Distillation(student, teacher, method, mix or usual, SPEC, name=name)


def learn(task: Task, size: int = 8) -> Tensor:
    """Forward and backward pass of a batch in train mode; the loss."""
    torch.manual_seed(3)  # of dropout
    step = task.train()(make_batch(size))
    step.loss.backward()
    return step.loss.detach()


def gradients(module: nn.Module) -> list[Tensor | None]:
    return [parameter.grad for parameter in module.parameters()]


@every_loss
def test_the_loss_is_finite_and_reaches_the_student_and_every_layer_of_the_method(name: str) -> None:
    task = distillation(name, mix=Mix(ce_weight=0.0, weight=1.0))
    assert math.isfinite(learn(task))
    assert any(grad is not None and grad.any() for grad in gradients(task.network))
    assert all(grad is not None for grad in gradients(task.method))
    assert all(grad is None or grad.isfinite().all() for grad in gradients(task))


@every_loss
def test_the_frozen_teacher_is_never_touched_and_a_trained_one_learns(name: str) -> None:
    teacher = make_teacher()
    before = copy.deepcopy(teacher)
    task = distillation(name, teacher=teacher)
    learn(task)
    if task.method.teacher == "trained":
        assert any(grad is not None and grad.any() for grad in gradients(teacher))
        return
    assert same_tensors(teacher, before)
    assert not any(module.training for module in teacher.modules())
    assert all(grad is None for grad in gradients(teacher))


@every_loss
def test_the_state_of_the_task_is_all_that_its_loss_depends_on(name: str) -> None:
    one, other = distillation(name, seed=0), distillation(name, seed=4)
    other.load_state_dict(one.state_dict())
    assert torch.equal(learn(one), learn(other))
    assert same_tensors(one, other)


@every_loss
def test_a_batch_of_one_image_is_possible(name: str) -> None:
    task = distillation(name)
    assert math.isfinite(learn(task, size=1))
    assert all(grad is None or grad.isfinite().all() for grad in gradients(task))


@every_loss
def test_bfloat16_autocast_gives_a_finite_float32_loss(name: str) -> None:
    task = distillation(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step = task.train()(make_batch())
    step.loss.backward()
    assert step.logits.dtype is torch.bfloat16
    assert step.loss.dtype is torch.float32
    assert step.loss.isfinite()
    assert all(grad is None or grad.isfinite().all() for grad in gradients(task))


def train_ten_steps(task: Task, **options: Any) -> nn.Module:
    recipe = Recipe(epochs=1, batch_size=16, limit_train_batches=10, clip_grad_norm=1.0, weight_decay=0.01, **options)
    trainer = Trainer(recipe, seed=0, device=CPU)
    list(trainer.epochs(task, make_data()))
    return trainer.deployed


@pytest.mark.parametrize("asked", [True, False], ids=["with a teacher", "without one"])
@every_loss
def test_with_weight_zero_ten_steps_are_those_of_the_baseline_bit_for_bit(name: str, asked: bool) -> None:
    baseline = train_ten_steps(Supervised(make_student(), label_smoothing=0.1))
    method, _ = build_loss(loss_options(name))
    teacher = make_teacher() if asked else None  # the program loads none if its word has no weight
    task = Distillation(make_student(), teacher, method, Mix(1.0, 0.0), SPEC, name=name, label_smoothing=0.1)
    assert same_tensors(train_ten_steps(task), baseline)


@every_loss
def test_every_learned_tensor_has_an_optimizer_and_is_in_the_checkpoint(name: str) -> None:
    task = distillation(name)
    trainer = Trainer(Recipe(epochs=1, batch_size=16, limit_train_batches=2), seed=0, device=CPU)
    list(trainer.epochs(task, make_data()))
    groups = [group for optimizer in trainer.updater.optimizers for group in optimizer.param_groups]
    optimized = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(set(optimized)) == len(optimized)
    assert set(optimized) == {id(parameter) for parameter in task.parameters() if parameter.requires_grad}
    saved = trainer.state().tensors
    assert {f"task.{key}" for key in task.state_dict()} <= set(saved)


@every_loss
def test_a_resumed_training_ends_with_the_same_bits(name: str) -> None:
    """From the middle of its second epoch."""
    recipe = Recipe(epochs=2, batch_size=16, limit_train_batches=3, weight_decay=0.01, checkpoint_minutes=0.0)
    whole, resumed = (distillation(name, seed=seed, mix=Mix(1.0, 1.0, 2.0)) for seed in (0, 5))
    states: dict[tuple[int, int], TrainState] = {}

    def save(trainer: Trainer) -> None:
        states[trainer.epoch, trainer.step] = copy.deepcopy(trainer.state())

    list(Trainer(recipe, seed=0, device=CPU, save=save).epochs(whole, make_data()))
    list(Trainer(recipe, seed=0, device=CPU).epochs(resumed, make_data(), states[1, 2]))
    assert same_tensors(whole, resumed)


def test_with_any_other_weight_they_are_not() -> None:
    method, mix = build_loss({"name": "kd", "ce_weight": 1.0, "weight": 0.01})
    distilled = train_ten_steps(Distillation(make_student(), make_teacher(), method, mix, SPEC))
    assert not same_tensors(distilled, train_ten_steps(Supervised(make_student())))


@every_loss
def test_the_yaml_lists_every_option_and_the_two_weights(name: str) -> None:
    options = loss_options(name)
    assert options["name"] == name
    assert set(options) == {
        "name",
        *inspect.signature(Mix).parameters,
        *inspect.signature(LOSSES.component(name)).parameters,
    }


@pytest.mark.parametrize("choice", yaml_names("loss"))
def test_every_yaml_builds_a_registered_loss(choice: str) -> None:
    options = loss_options(choice)
    assert options["name"] in NAMES
    assert set(options) == set(loss_options(options["name"]))
    build_loss(options)
