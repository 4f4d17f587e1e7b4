"""The learning rate against torch's own schedulers, driven step by step; the optimizers."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)

from kd_cli.config.recipe import Recipe, Score
from kd_cli.errors import ConfigError
from kd_cli.training.optim import learning_rate, make_optimizer, plateau_drops, without_compiler
from kd_cli.training.unfused import make_unfused
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


@pytest.mark.parametrize("patience", [1, 2, 3])
@pytest.mark.parametrize(("select_by", "name", "mode"), [("top1", "val_top1", "max"), ("nll", "val_loss", "min")])
def test_plateau_is_torchs_reduce_on_plateau_of_the_score_that_chooses(
    patience: int, select_by: Score, name: str, mode: Any
) -> None:
    chance = random.Random(patience)
    values = [round(chance.random() + 0.02 * epoch * (1 if mode == "max" else -1), 2) for epoch in range(60)]
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    theirs = ReduceLROnPlateau(optimizer, mode, factor=0.5, patience=patience, threshold=0.0, min_lr=0.01, eps=0.0)
    recipe = Recipe(
        epochs=60, lr=0.4, schedule="plateau", gamma=0.5, patience=patience, min_lr=0.01, select_by=select_by
    )
    seen = set()
    for epoch in range(60):
        drops = plateau_drops([{name: value} for value in values[:epoch]], recipe)
        ours = {learning_rate(recipe, STEPS * epoch + step, STEPS, drops) for step in range(STEPS)}
        assert list(ours) == pytest.approx([optimizer.param_groups[0]["lr"]], rel=1e-12)
        seen |= ours
        theirs.step(values[epoch])
    assert len(seen) > 3
    assert min(seen) == pytest.approx(0.01)


def test_plateau_waits_for_the_end_of_the_warm_up() -> None:
    recipe = Recipe(epochs=4, lr=1.0, schedule="plateau", warmup_epochs=1.0)
    assert [learning_rate(recipe, step, STEPS, drops=1) for step in (0, 6, 7)] == pytest.approx([0.125, 0.875, 0.1])


def moved(make: Callable[[nn.Module], list[Optimizer]], steps: int = 4) -> dict[str, torch.Tensor]:
    """A network that the optimizers have moved."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    optimizers, images = make(network), torch.randn(8, 6)
    for _ in range(steps):
        network(images).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def ours(recipe: Recipe) -> Callable[[nn.Module], list[Optimizer]]:
    return lambda network: make_unfused([{"params": list(network.parameters())}], recipe, CPU, network)


def test_lamb_is_timms_without_its_clipping() -> None:
    lamb = pytest.importorskip("timm.optim").Lamb
    recipe = Recipe(optimizer="lamb", lr=0.1, weight_decay=0.02, betas=(0.8, 0.9))
    options = {"lr": 0.1, "weight_decay": 0.02, "betas": (0.8, 0.9)}
    found, plain, clipped = (
        moved(make)
        for make in (
            ours(recipe),
            lambda network: [lamb(network.parameters(), **options, max_grad_norm=None)],
            lambda network: [lamb(network.parameters(), **options)],
        )
    )
    assert all(torch.equal(found[name], plain[name]) for name in found)
    assert not all(torch.equal(found[name], clipped[name]) for name in found)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
def test_muon_moves_the_matrices_before_the_classifier_and_adamw_all_else() -> None:
    recipe = Recipe(optimizer="muon", lr=0.1, weight_decay=0.02, momentum=0.7, betas=(0.8, 0.9))

    def plain(network: nn.Module) -> list[Optimizer]:
        matrices = [network[0].weight, network[2].weight]
        others = [network[0].bias, network[2].bias, *network[4].parameters()]
        options = {"lr": 0.1, "weight_decay": 0.02}
        muon = torch.optim.Muon(matrices, momentum=0.7, nesterov=True, adjust_lr_fn="match_rms_adamw", **options)
        return [muon, AdamW(others, betas=(0.8, 0.9), **options)]

    found, expected = moved(ours(recipe)), moved(plain)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-7)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
def test_muon_is_refused_where_it_would_move_nothing() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(ConfigError, match=r"trainer\.optimizer: muon moves .*; type trainer\.optimizer=adamw"):
        ours(Recipe(optimizer="muon"))(network)


def test_a_pytorch_without_muon_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(ConfigError, match=r"muon needs PyTorch 2\.9"):
        ours(Recipe(optimizer="muon"))(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)))


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
