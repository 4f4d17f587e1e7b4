"""Losses that are more than a loss: dml trains a peer, byot its own exits; what adversarial shares with them."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd_cli.config.recipe import Recipe
from kd_cli.errors import ConfigError
from kd_cli.losses.base import Mix, build_loss
from kd_cli.losses.byot import BYOT, feature_loss
from kd_cli.losses.dml import DML, dml_loss
from kd_cli.training.state import TrainState
from kd_cli.training.task import Distillation
from kd_cli.training.trainer import Trainer
from kd_cli.types import Outputs
from tests.losses.references import relations as references
from tests.support.small import (
    CPU,
    SPEC,
    batch_of,
    draw,
    loss_options,
    make_batch,
    make_data,
    make_student,
    make_teacher,
    same_tensors,
    spec,
)

LABELS = torch.tensor([1, 0, 3, 3, 2])


def task_of(name: str, seed: int = 0, mix: Mix | None = None, **options: Any) -> Distillation:
    method, usual = build_loss({**loss_options(name), **options})
    torch.manual_seed(seed)
    return Distillation(make_student(seed), make_teacher(seed + 1), method, mix or usual, SPEC, name=name)


def arrays(*tensors: Tensor) -> list[Any]:
    return [tensor.detach().double().numpy() for tensor in tensors]


@pytest.mark.parametrize(("batch", "classes"), [(1, 2), (4, 2), (5, 10)])
def test_dml_with_the_options_of_its_yaml_equals_its_reference(batch: int, classes: int) -> None:
    method, mix = build_loss(loss_options("dml"))
    student, peer, labels = draw(batch, classes, scale=3.0), draw(batch, classes, seed=1), torch.arange(batch) % classes
    expected = references.dml(*arrays(student, peer), labels.numpy())
    assert method(Outputs(student), Outputs(peer), batch_of(labels)).item() == pytest.approx(expected, rel=1e-6)
    assert mix == Mix(1.0, 1.0)


def test_each_network_learns_from_the_other_and_neither_is_a_target_that_moves() -> None:
    student, peer = draw(5, 4), draw(5, 4, seed=1)
    loss = DML(kl_weight=2.0, peer_ce_weight=0.5)(Outputs(student), Outputs(peer), batch_of(LABELS))
    got = torch.autograd.grad(loss, (student, peer))
    p, q = student.softmax(dim=1), peer.softmax(dim=1)
    torch.testing.assert_close(
        got[0], 2.0 * (p - q) / 5
    )  # the gradient of KL(q ‖ p) by p's logits, and of nothing else
    torch.testing.assert_close(got[1], (2.0 * (q - p) + 0.5 * (q - nn.functional.one_hot(LABELS, 4))) / 5)


def test_equal_networks_teach_each_other_nothing_and_a_shift_of_logits_does_not_matter() -> None:
    student, peer = draw(5, 4), draw(5, 4, seed=1)
    equal = dml_loss(student, student.detach())
    assert equal.item() == pytest.approx(0, abs=1e-12)
    assert torch.autograd.grad(equal, student)[0].abs().max() < 1e-12
    shifts = torch.linspace(-50, 50, 5, dtype=torch.float64)[:, None]
    torch.testing.assert_close(dml_loss(student + shifts, peer - shifts), dml_loss(student, peer))
    torch.testing.assert_close(dml_loss(student.repeat(3, 1), peer.repeat(3, 1)), dml_loss(student, peer))
    assert torch.autograd.gradcheck(lambda logits: dml_loss(logits, peer, 2.0), (student,))


def test_the_peer_trains_beside_the_student_and_only_the_student_is_deployed() -> None:
    task = task_of("dml")
    assert task.deployed is task.network
    before = copy.deepcopy(task.peer)
    list(Trainer(Recipe(epochs=1, batch_size=32, lr=0.05), seed=0, device=CPU).epochs(task, make_data()))
    assert all(not torch.equal(*pair) for pair in zip(task.peer.parameters(), before.parameters(), strict=True))


def exit_maps(size: int = 5) -> dict[str, Tensor]:
    return {"stage1": draw(size, 3, 6, 6), "stage2": draw(size, 4, 3, 2, seed=1), "stage3": draw(size, 6, 2, 2, seed=2)}


def bound_byot(num_classes: int = 4, **options: float) -> BYOT:
    torch.manual_seed(0)
    method = BYOT(**options)
    method.bind(Outputs(draw(2, num_classes), exit_maps(2)), Outputs(torch.zeros(0, 0)), spec(num_classes))
    return method.double()


@pytest.mark.parametrize(("size", "num_classes"), [(1, 2), (5, 4)])
def test_byot_with_the_options_of_its_yaml_is_the_sum_of_its_exits(size: int, num_classes: int) -> None:
    options = {
        key: loss_options("byot")[key] for key in ("temperature", "exit_ce_weight", "kl_weight", "feature_weight")
    }
    method, maps, logits = bound_byot(num_classes, **options), exit_maps(size), draw(size, num_classes, seed=3)
    labels, expected = LABELS[:size] % num_classes, 0.0
    for leave, stage in zip(method.exits, ("stage1", "stage2"), strict=True):
        wanted = logits, maps["stage3"].mean(dim=(2, 3))
        expected += references.byot_exit(*arrays(*leave(maps[stage]), *wanted), labels.numpy())
    loss = method(Outputs(logits, maps), Outputs(torch.zeros(0, 0)), batch_of(labels))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_the_deepest_exit_is_a_target_and_the_stages_before_it_learn_with_every_exit() -> None:
    method, maps, logits = bound_byot(), exit_maps(), draw(5, 4, seed=3)
    method(Outputs(logits, maps), Outputs(torch.zeros(0, 0)), batch_of(LABELS)).backward()
    assert logits.grad is None
    assert maps["stage3"].grad is None
    assert maps["stage1"].grad.any()
    assert maps["stage2"].grad.any()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in method.parameters())


def test_an_exit_that_has_the_deepest_feature_has_no_hint_to_learn() -> None:
    feature = draw(5, 6)
    loss = feature_loss(feature, feature)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, feature)[0].any()
    other = draw(5, 6, seed=1)
    torch.testing.assert_close(feature_loss(feature.repeat(2, 1), other.repeat(2, 1)), feature_loss(feature, other))
    assert torch.autograd.gradcheck(lambda values: feature_loss(values, other.detach()), (feature,))


def test_exits_are_made_for_all_stages_but_the_last_and_not_deployed() -> None:
    task = task_of("byot")
    assert len(task.method.exits) == 2
    assert task.deployed is task.network
    assert any(name.startswith("method.exits.0") for name in task.state_dict())
    assert {id(parameter) for parameter in task.method.parameters()} <= {id(p) for p in task.parameters()}


def test_byot_needs_no_teacher_and_two_stages() -> None:
    method, mix = build_loss(loss_options("byot"))
    assert Distillation(make_student(), None, method, mix, SPEC)(make_batch()).loss.isfinite()
    with pytest.raises(ValueError, match=r"^taps: \['stage3'\] is one feature map; an exit needs a shallower one"):
        Distillation(make_student(), None, BYOT(taps=["stage3"]), Mix(), SPEC)
    with pytest.raises(ValueError, match=r"^taps: the method reads feature maps \[B, C, H, W\]"):
        Distillation(make_student(), None, BYOT(taps=["stage3", "embedding"]), Mix(), SPEC)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["dml", "byot", "adversarial"])
def test_logit_gaps_of_ten_thousand_give_a_finite_value_and_gradient(name: str, dtype: torch.dtype) -> None:
    student, teacher = (draw(5, 4, seed=seed).detach().sign().mul(1e4).to(dtype).requires_grad_() for seed in (0, 1))
    maps = {stage: (1e3 * value).detach().to(dtype).requires_grad_() for stage, value in exit_maps().items()}
    method, _ = build_loss(loss_options(name))
    outputs = Outputs(student, maps), Outputs(teacher)
    method.bind(*outputs, spec(4))
    loss = method(*outputs, batch_of(LABELS))
    assert loss.dtype is torch.float32
    assert loss.isfinite()
    loss.backward()
    learned = [student, *maps.values(), *method.parameters()]
    assert all(value.grad is None or value.grad.isfinite().all() for value in learned)


@pytest.mark.parametrize("name", ["dml", "byot", "adversarial"])
def test_resuming_after_an_epoch_ends_with_the_same_bits(name: str) -> None:
    recipe, data = Recipe(epochs=3, batch_size=32, lr=0.01), make_data(augment="crop_flip")
    whole, task = Trainer(recipe, seed=5, device=CPU), task_of(name)
    epochs = whole.epochs(task, data)
    next(epochs)
    live = whole.state()
    state = TrainState(live.epoch, live.step, copy.deepcopy(live.tensors), json.loads(json.dumps(live.plain)))
    list(epochs)
    torch.manual_seed(99)
    frozen = task.method.teacher == "frozen"  # it is not part of the state
    resumed = Distillation(
        make_student(7), make_teacher(1 if frozen else 8), build_loss(loss_options(name))[0], task.mix, SPEC, name=name
    )
    assert not same_tensors(resumed, task)
    list(Trainer(recipe, seed=5, device=CPU).epochs(resumed, data, state))
    assert same_tensors(resumed, task)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("dml", "temperature", 0.0),
        ("dml", "kl_weight", -1.0),
        ("dml", "peer_ce_weight", math.nan),
        ("byot", "temperature", -1.0),
        ("byot", "exit_ce_weight", -1.0),
        ("byot", "kl_weight", math.inf),
        ("byot", "feature_weight", -0.03),
        ("adversarial", "discriminator_lr", 0.0),
        ("adversarial", "hidden", 0),
        ("adversarial", "adversarial_weight", -1.0),
        ("adversarial", "label_weight", -1.0),
        ("adversarial", "l1_weight", -1.0),
    ],
)
def test_a_number_outside_its_range_is_refused_by_its_key(name: str, option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^loss\.{option}: {value} is not possible; it must be "):
        build_loss({**loss_options(name), option: value})
