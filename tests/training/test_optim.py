"""The learning rate against torch's own schedulers, driven step by step; the optimizers."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR, OneCycleLR, StepLR

from kd_cli.config.recipe import Recipe
from kd_cli.training.optim import learning_rate, make_optimizer, without_compiler
from tests.support.small import CPU

STEPS = 7  # updates per epoch


def rates(recipe: Recipe) -> list[float]:
    """The learning rate of every update."""
    return [learning_rate(recipe, step, STEPS) for step in range(recipe.epochs * STEPS)]


def rates_of_torch(lr: float, make: Callable[[Optimizer], LRScheduler], steps: int) -> list[float]:
    """What torch's scheduler sets for each of `steps` updates if it is stepped after each."""
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = make(optimizer)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(seen) < steps:
            scheduler.step()
    return seen


def each_for_an_epoch(values: list[float]) -> list[float]:
    return [value for value in values for _ in range(STEPS)]


def test_a_constant_rate_stays() -> None:
    assert rates(Recipe(epochs=3, lr=0.2)) == [0.2] * 21


def test_step_is_torchs_step_lr_by_epoch() -> None:
    recipe = Recipe(epochs=10, lr=0.5, schedule="step", step_size=3, gamma=0.3)
    expected = rates_of_torch(0.5, lambda optimizer: StepLR(optimizer, step_size=3, gamma=0.3), 10)
    assert rates(recipe) == pytest.approx(each_for_an_epoch(expected), rel=1e-12)


def test_multistep_is_torchs_multistep_lr_by_epoch() -> None:
    recipe = Recipe(epochs=10, lr=0.05, schedule="multistep", milestones=(2, 5, 9), gamma=0.1)
    expected = rates_of_torch(0.05, lambda optimizer: MultiStepLR(optimizer, [2, 5, 9], gamma=0.1), 10)
    assert rates(recipe) == pytest.approx(each_for_an_epoch(expected), rel=1e-12)


@pytest.mark.parametrize("min_lr", [0.0, 0.01])
def test_cosine_is_torchs_cosine_annealing_by_update(min_lr: float) -> None:
    recipe = Recipe(epochs=5, lr=0.1, schedule="cosine", min_lr=min_lr)
    expected = rates_of_torch(0.1, lambda optimizer: CosineAnnealingLR(optimizer, 35, eta_min=min_lr), 35)
    assert rates(recipe) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("epochs", [1, 4, 10])
def test_onecycle_is_torchs_one_cycle_lr_by_update(epochs: int) -> None:
    total = epochs * STEPS
    recipe = Recipe(epochs=epochs, lr=0.3, schedule="onecycle", warmup_epochs=2.0)  # it brings its own warm-up
    expected = rates_of_torch(
        0.3, lambda optimizer: OneCycleLR(optimizer, 0.3, total_steps=total, cycle_momentum=False), total
    )
    assert rates(recipe) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("total", [1, 2, 3])
def test_onecycle_of_very_few_updates_stays_in_its_range(total: int) -> None:
    recipe = Recipe(epochs=1, lr=0.3, schedule="onecycle")
    assert all(0 < learning_rate(recipe, step, total) <= 0.3 for step in range(total))


def test_warmup_rises_like_torchs_linear_lr_and_hands_over_to_a_shorter_cosine() -> None:
    recipe = Recipe(epochs=5, lr=0.1, schedule="cosine", warmup_epochs=2.0)
    rise = rates_of_torch(0.1, lambda optimizer: LinearLR(optimizer, start_factor=1 / 15, total_iters=14), 14)
    fall = rates_of_torch(0.1, lambda optimizer: CosineAnnealingLR(optimizer, 21), 21)
    assert rates(recipe) == pytest.approx(rise + fall, rel=1e-9)


def test_a_warmup_of_part_of_an_epoch_leaves_the_drops_where_they_were() -> None:
    warm = rates(Recipe(epochs=4, lr=1.0, schedule="step", step_size=2, warmup_epochs=3 / 7))
    assert warm[:3] == pytest.approx([0.25, 0.5, 0.75])
    assert warm[3:] == rates(Recipe(epochs=4, lr=1.0, schedule="step", step_size=2))[3:]


@pytest.mark.parametrize("schedule", ["constant", "step", "multistep", "cosine", "onecycle"])
def test_the_rate_of_an_update_does_not_depend_on_which_were_asked_before(schedule: Any) -> None:
    recipe = Recipe(epochs=6, schedule=schedule, step_size=2, milestones=(3,), warmup_epochs=1.0)
    order = list(range(6 * STEPS))
    random.Random(0).shuffle(order)
    shuffled = {step: learning_rate(recipe, step, STEPS) for step in order}
    assert [shuffled[step] for step in sorted(order)] == rates(recipe)
    assert all(rate > 0 for rate in shuffled.values())


@pytest.mark.parametrize(
    ("recipe", "plain"),
    [
        (Recipe(optimizer="sgd", lr=0.1, momentum=0.0), lambda p: SGD(p, lr=0.1)),
        (
            Recipe(optimizer="sgd", lr=0.1, momentum=0.8, weight_decay=0.3),
            lambda p: SGD(p, lr=0.1, momentum=0.8, weight_decay=0.3),
        ),
        (
            Recipe(optimizer="sgd", lr=0.1, momentum=0.8, nesterov=True),
            lambda p: SGD(p, lr=0.1, momentum=0.8, nesterov=True),
        ),
        (
            Recipe(optimizer="adam", lr=0.1, betas=(0.5, 0.7), weight_decay=0.3),
            lambda p: Adam(p, lr=0.1, betas=(0.5, 0.7), weight_decay=0.3),
        ),
        (
            Recipe(optimizer="adamw", lr=0.1, betas=(0.5, 0.7), weight_decay=0.3),
            lambda p: AdamW(p, lr=0.1, betas=(0.5, 0.7), weight_decay=0.3),
        ),
    ],
    ids=["sgd", "sgd_momentum", "sgd_nesterov", "adam", "adamw"],
)
def test_each_optimizer_moves_as_torchs_own_does(recipe: Recipe, plain: Callable[[list[Any]], Optimizer]) -> None:
    ours, theirs = (nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)) for _ in range(2))
    optimizers = make_optimizer([ours], recipe, CPU), plain([theirs])
    for _ in range(4):
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            (parameter**3).sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", [SGD, Adam, AdamW])
def test_an_optimizer_without_the_compilers_wrappers_calculates_the_same(rule: type[Optimizer]) -> None:
    ours, theirs = (nn.Linear(5, 3) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.01} | ({"momentum": 0.9} if rule is SGD else {})
    pairs = (
        (ours, without_compiler(rule)(ours.parameters(), **options)),
        (theirs, rule(theirs.parameters(), **options)),
    )
    for step in range(5):
        for network, optimizer in pairs:
            network(torch.full((2, 5), float(step))).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    for key, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[key])
    (_, mine), (_, original) = pairs
    assert isinstance(mine, rule)
    original.load_state_dict(mine.state_dict())  # and the other way round: a state is exchanged freely
    mine.load_state_dict(original.state_dict())
