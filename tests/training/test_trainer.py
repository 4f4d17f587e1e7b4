"""The training loop: what it computes, what it depends on, and that nothing is lost when it is resumed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_cli.config.recipe import Recipe
from kd_cli.data.base import Data
from kd_cli.errors import ConfigError, DivergedError
from kd_cli.losses.base import Mix
from kd_cli.losses.kd import KD
from kd_cli.metrics.evaluate import evaluate, predict
from kd_cli.training.guard import LossGuard
from kd_cli.training.optim import learning_rate, make_optimizer
from kd_cli.training.state import TrainState
from kd_cli.training.task import Distillation, Supervised, Task
from kd_cli.training.trainer import Progress, Trainer
from kd_cli.types import Batch, Step
from tests.support.small import CPU, SPEC, make_batch, make_data, make_student, make_teacher, same_tensors

TIMES = ("seconds", "images_per_second")
Records = list[dict[str, float]]


class Plain(nn.Module):
    """No batch normalisation, no dropout, float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(768, 12), nn.Tanh(), nn.Linear(12, 10)).double()

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images.double())


def train(
    task: Task, *, data: Data | None = None, seed: int = 0, watch: Any = None, **options: Any
) -> tuple[Trainer, Records]:
    """Trains to the end; the records without what the clock says."""
    trainer = Trainer(Recipe(**{"epochs": 2, "batch_size": 32, **options}), seed=seed, device=CPU, watch=watch)
    records = list(trainer.epochs(task, data or make_data(augment="crop_flip")))
    return trainer, [without_times(record) for record in records]


def without_times(record: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in record.items() if name not in TIMES}


def supervised(seed: int = 0) -> Task:
    return Supervised(make_student(seed))


def distilled(seed: int = 0) -> Task:
    return Distillation(make_student(seed), make_teacher(), KD(), Mix(), SPEC, name="kd")


@pytest.mark.slow
@pytest.mark.parametrize("make", [supervised, distilled])
@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd", "lr": 0.05, "schedule": "cosine", "weight_decay": 0.01, "nesterov": True},
        {"optimizer": "sgd", "momentum": 0.0, "lr": 0.05, "accumulate": 2},
        {"optimizer": "adam", "lr": 0.01, "schedule": "step", "step_size": 1, "clip_grad_norm": 0.5},
        {"optimizer": "adamw", "lr": 0.01, "ema_decay": 0.8, "warmup_epochs": 1.5},
        {"optimizer": "adam", "precision": "bf16"},
        {"optimizer": "lamb", "lr": 0.01, "weight_decay": 0.1, "decay_norm_and_bias": False, "layer_decay": 0.6},
        {"lr": 0.01, "backbone_lr_factor": 0.1, "freeze": ("stage1",), "clip_grad_norm": 0.5, "swa_epochs": 2},
    ],
    ids=["sgd", "sgd without momentum", "adam", "adamw with ema", "bf16", "lamb by layers", "frozen with swa"],
)
def test_resuming_from_every_step_ends_with_the_same_bits(make: Callable[[int], Task], options: dict[str, Any]) -> None:
    recipe = Recipe(epochs=3, batch_size=32, checkpoint_minutes=0.0, **options)
    data, task, states = make_data(augment="crop_flip"), make(0), []
    whole = Trainer(recipe, seed=5, device=CPU, save=lambda trainer: states.append(stored(trainer.state())))
    for _ in whole.epochs(task, data):
        states.append(stored(whole.state()))
    assert len({(state.epoch, state.step) for state in states}) == 3 * whole.updates
    for number, state in enumerate(states):
        torch.manual_seed(number)  # whatever was drawn in between
        resumed, other = Trainer(recipe, seed=5, device=CPU), make(1)
        list(resumed.epochs(other, data, state))
        assert [without_times(record) for record in resumed.records] == [without_times(each) for each in whole.records]
        assert same_tensors(other, task)
        assert same_tensors(resumed.deployed, whole.deployed)


def stored(state: TrainState) -> TrainState:
    """As it comes back from the disk: other tensors, plain values through JSON."""
    return TrainState(state.epoch, state.step, copy.deepcopy(state.tensors), json.loads(json.dumps(state.plain)))


def test_the_same_seed_twice_gives_the_same_bits_whatever_else_drew_random_numbers() -> None:
    one, first = train(supervised(), lr=0.01)
    torch.rand(7)
    other, second = train(supervised(), lr=0.01)
    assert same_tensors(one.deployed, other.deployed)
    assert first == second


def test_another_seed_gives_other_batches_and_so_other_weights() -> None:
    one, other = (train(Supervised(Plain()), seed=seed)[0] for seed in (0, 1))
    assert not same_tensors(one.deployed, other.deployed)


def test_dropout_is_drawn_anew_in_every_update_and_from_the_seed() -> None:
    masks: dict[int, list[Tensor]] = {0: [], 1: []}
    for seed, seen in masks.items():
        network = nn.Sequential(nn.Flatten(), nn.Linear(768, 40), nn.Dropout(0.5), nn.Linear(40, 10))
        network[2].register_forward_hook(lambda _, __, output, seen=seen: seen.append(output == 0))
        train(Supervised(network), data=make_data(val_fraction=0.0), batch_size=100, seed=seed)  # two updates an epoch
    assert len(masks[0]) == 4
    assert len({tuple(mask.flatten().tolist()) for mask in masks[0] + masks[1]}) == 8


def test_a_watcher_changes_nothing_and_sees_every_batch() -> None:
    seen: list[Progress] = []
    means: list[float] = []
    watched, records = train(supervised(), watch=lambda p: (seen.append(p), means.append(p.glimpse()[0])))
    alone, others = train(supervised())
    assert same_tensors(watched.deployed, alone.deployed)
    assert records == others
    assert [(p.epoch, p.batch, p.batches) for p in seen] == [(e, b, 6) for e in (1, 2) for b in range(1, 7)]
    assert [p.images for p in seen[:6]] == [32, 64, 96, 128, 160, 180]
    assert seen[-1].images == 360
    assert means[-1] == records[-1]["train_loss"]


def test_the_record_is_the_mean_over_all_images_of_the_epoch() -> None:
    network, data = Plain(), make_data()  # 180 images: the last batch is smaller
    _, (record,) = train(Supervised(network), data=data, epochs=1, lr=1e-30)
    batches = list(data.train_batches(seed=0, epoch=0, batch_size=180, device=CPU))
    logits, labels = network(batches[0].images), batches[0].labels
    assert record["train_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-9)
    assert record["train_weighted_ce"] == record["train_loss"]
    assert record["train_top1"] == round(100 * float((logits.argmax(1) == labels).double().mean()), 2)


def test_the_terms_of_the_record_sum_to_the_loss() -> None:
    _, records = train(distilled())
    for record in records:
        assert record["train_weighted_ce"] + record["train_weighted_kd"] == pytest.approx(
            record["train_loss"], rel=1e-5
        )


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_validation_is_of_the_network_that_is_deployed(ema_decay: float | None) -> None:
    data = make_data()
    trainer, records = train(supervised(), data=data, ema_decay=ema_decay)
    scores = evaluate(trainer.deployed, data, "val", batch_size=7, device=CPU)
    assert records[-1]["val_top1"] == scores["top1"]
    logits, labels = predict(trainer.deployed, data, "val", batch_size=20, device=CPU)
    assert records[-1]["val_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), abs=1e-5)


def test_without_a_validation_part_there_is_nothing_to_validate() -> None:
    _, (record, _) = train(supervised(), data=make_data(val_fraction=0.0))
    assert set(record) == {"epoch", "lr", "train_top1", "train_loss", "train_weighted_ce"}


def test_the_recorded_rate_is_that_of_the_epochs_last_update() -> None:
    recipe = Recipe(epochs=3, batch_size=32, accumulate=4, schedule="cosine")  # six batches make two updates
    _, records = train(supervised(), epochs=3, accumulate=4, schedule="cosine")
    assert [record["lr"] for record in records] == [learning_rate(recipe, step, 2) for step in (1, 3, 5)]


@pytest.mark.parametrize("half", [8, 16])  # the last update of 180 images: one batch of 4; one of 16 and one of 4
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_two_accumulated_batches_are_one_of_twice_the_size(optimizer: str, half: int) -> None:
    options = {"optimizer": optimizer, "lr": 0.01, "weight_decay": 0.01}
    one, first = train(Supervised(Plain()), batch_size=half, accumulate=2, **options)
    other, second = train(Supervised(Plain()), batch_size=2 * half, **options)
    for name, weights in other.deployed.state_dict().items():
        torch.testing.assert_close(one.deployed.state_dict()[name], weights, rtol=0, atol=1e-6)
    assert first[-1]["train_loss"] == pytest.approx(second[-1]["train_loss"], rel=1e-6)


def movement(**options: Any) -> Tensor:
    """By how much one update of plain gradient descent with rate 1 moves the weights: the gradient it used."""
    network = Plain()
    before = nn.utils.parameters_to_vector(network.parameters()).detach().clone()
    train(Supervised(network), epochs=1, limit_train_batches=1, optimizer="sgd", momentum=0.0, lr=1.0, **options)
    return before - nn.utils.parameters_to_vector(network.parameters()).detach()


def test_clipping_shortens_the_gradient_to_its_limit_and_keeps_its_direction() -> None:
    free, clipped = movement(), movement(clip_grad_norm=0.01)
    assert free.norm() > 0.1
    assert clipped.norm().item() == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(clipped / clipped.norm(), free / free.norm(), rtol=0, atol=1e-6)
    assert torch.equal(movement(clip_grad_norm=1e6), free)


def test_limit_train_batches_ends_an_epoch_early() -> None:
    trainer, _ = train(supervised(), epochs=3, limit_train_batches=2)
    assert trainer.images == 3 * 2 * 32


def test_the_deployed_network_is_the_moving_average_of_weights_and_statistics() -> None:
    task = supervised()
    trainer = Trainer(
        Recipe(epochs=4, batch_size=32, limit_train_batches=1, lr=0.05, ema_decay=0.7), seed=0, device=CPU
    )
    average: dict[str, Tensor] = {}
    for _ in trainer.epochs(task, make_data()):  # one update in each epoch
        now = {name: value.double() for name, value in task.network.state_dict().items() if value.is_floating_point()}
        average = {name: 0.7 * average.get(name, value) + 0.3 * value for name, value in now.items()}
    deployed = trainer.deployed.state_dict()
    for name, value in average.items():
        torch.testing.assert_close(deployed[name].double(), value, rtol=1e-5, atol=1e-6)
    assert not same_tensors(trainer.deployed, task.network)
    assert train(task)[0].deployed is task.network


class Remembering(Supervised):
    """Keeps the weights that each batch found; the loss of batch `broken_at` is not finite."""

    def __init__(self, network: nn.Module, broken_at: int | None = None) -> None:
        super().__init__(network)
        self.broken_at = broken_at
        self.batches = 0

    def forward(self, batch: Batch) -> Step:
        self.found = copy.deepcopy(self.network.state_dict())
        self.batches += 1
        step = super().forward(batch)
        return Step(step.loss * float("nan"), step.logits, step.terms) if self.batches == self.broken_at else step


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_is_not_finite_stops_before_the_weights_move(accumulate: int) -> None:
    task = Remembering(Plain(), broken_at=4)  # with accumulate=2 the second of a pair
    with pytest.raises(DivergedError, match=r"not finite in epoch 1, step .*: loss = nan; ce = "):
        train(task, accumulate=accumulate)
    assert task.batches == 4
    assert all(torch.equal(task.found[name], value) for name, value in task.network.state_dict().items())


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_where_the_look_is_put_off_the_weights_still_stop_before_the_bad_one(optimizer: str) -> None:
    network, images, labels = make_student(), *(getattr(make_batch(), name) for name in ("images", "labels"))
    rule = make_optimizer(network.parameters(), Recipe(optimizer=optimizer, lr=0.01), CPU)
    parameters = dict(network.named_parameters())
    guard, weights = LossGuard([rule], Recipe(lr=0.01), CPU, parameters=parameters, steps=4, deferred=True), []
    for number in range(4):
        weights.append(copy.deepcopy(dict(network.named_parameters())))
        logits = network(images)
        loss = F.cross_entropy(logits, labels) * (float("nan") if number == 2 else 1.0)
        guard.begin(number + 1, lr=0.5)
        guard.watch(Step(loss, logits, {"ce": loss.detach()}), Batch(images, labels, labels))
        loss.backward()
        guard.watch_gradients()
        rule.step()
        rule.zero_grad()
    assert guard.first_bad() == 3
    assert guard.first_bad() is None  # it is looked at once now
    now = dict(network.named_parameters())
    assert all(torch.equal(weights[2][name], value) for name, value in now.items())
    assert not all(torch.equal(weights[1][name], value) for name, value in now.items())


def test_a_rate_that_is_far_too_large_ends_in_advice() -> None:
    task = Remembering(make_student())
    with pytest.raises(DivergedError, match=r"trainer\.lr=1e\+29"):
        train(task, optimizer="sgd", lr=1e30)
    learned = dict(task.network.named_parameters())
    assert all(torch.equal(task.found[name], value) for name, value in learned.items())


def test_graphs_without_cuda_are_refused_where_they_are_demanded() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.cuda_graphs: true needs a CUDA device; type .*=auto"):
        Trainer(Recipe(cuda_graphs=True), seed=0, device=CPU)
    Trainer(Recipe(cuda_graphs="auto"), seed=0, device=CPU)


def test_fp16_without_cuda_is_refused_by_its_key() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.precision: fp16 needs a CUDA device"):
        Trainer(Recipe(precision="fp16"), seed=0, device=CPU)


def test_bf16_trains_float32_weights_and_is_not_float32() -> None:
    mixed, records = train(supervised(), precision="bf16", lr=0.01)
    single, others = train(supervised(), lr=0.01)
    assert all(parameter.dtype is torch.float32 for parameter in mixed.deployed.parameters())
    assert not same_tensors(mixed.deployed, single.deployed)
    assert records[-1]["train_loss"] == pytest.approx(others[-1]["train_loss"], rel=0.05)


def test_training_learns() -> None:
    _, records = train(Supervised(make_student()), data=make_data(noise=0.3), epochs=6, lr=0.02)
    assert records[-1]["train_loss"] < records[0]["train_loss"] / 1.5
    assert records[-1]["val_top1"] > 50
