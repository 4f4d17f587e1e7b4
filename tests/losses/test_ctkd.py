"""The temperature of ctkd is an adversary: it learns against the student, and by how much."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from kd_cli.losses.base import Mix
from kd_cli.losses.ctkd import CTKD, adversary_strength, ctkd_loss, reverse_gradient
from kd_cli.training.task import Distillation
from kd_cli.types import Batch, Outputs
from tests.losses.references import basic as references
from tests.support.logits import arrays, draw
from tests.support.small import SPEC, logits_only, make_batch, make_student, make_teacher


def arguments(epoch: int, size: int = 6) -> tuple[Outputs, Outputs, Batch]:
    student, teacher, batch = logits_only(*draw((size, 10))[:2])
    return student, teacher, dataclasses.replace(batch, epoch=epoch)


def loss_at(theta: float, student: Tensor, teacher: Tensor) -> float:
    """0.9 · T² · KL at T = 1 + 20 · sigmoid(θ), by the reference."""
    return 0.9 * references.kd(*arrays(student, teacher), temperature=1 + 20 / (1 + math.exp(-theta)))


def test_the_adversary_grows_from_none_to_whole_along_a_cosine() -> None:
    strengths = [adversary_strength(epoch, 10.0) for epoch in range(30)]
    assert strengths[0] == 0
    assert strengths[5] == pytest.approx(0.5)
    assert strengths[10:] == [1.0] * 20
    assert strengths[:11] == sorted(set(strengths[:11]))
    assert strengths[1] == pytest.approx((1 - math.cos(math.pi / 10)) / 2)


def test_gradient_reversal_keeps_the_value_and_turns_the_gradient() -> None:
    value = torch.tensor(0.1, requires_grad=True)
    for strength in (0.0, 0.3, 1.0):
        out = reverse_gradient(value, strength)
        assert torch.equal(out, value)
        assert torch.autograd.grad(3 * out, value)[0].item() == pytest.approx(-3 * strength)


@pytest.mark.parametrize("epoch", [0, 3, 10, 200])
def test_the_gradient_of_the_temperature_is_the_reversed_one_of_finite_differences(epoch: int) -> None:
    student, teacher, batch = arguments(epoch)
    method = CTKD().double()
    method(student, teacher, batch).backward()
    h = 1e-5
    slope = (loss_at(1 + h, student.logits, teacher.logits) - loss_at(1 - h, student.logits, teacher.logits)) / (2 * h)
    assert slope != pytest.approx(0, abs=1e-3)
    assert method.theta.grad is not None
    assert method.theta.grad.item() == pytest.approx(-adversary_strength(epoch, 10.0) * slope, rel=1e-5, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_a_step_of_the_temperature_makes_the_loss_larger_and_one_of_the_student_smaller(seed: int) -> None:
    student, teacher, labels = draw((6, 10), seed)
    arguments = Outputs(student), Outputs(teacher), Batch(torch.zeros(6, 3, 4, 4), labels, labels, epoch=10)
    method = CTKD().double()
    before = method(*arguments)
    before.backward()
    assert method.theta.grad is not None
    assert student.grad is not None
    with torch.no_grad():
        method.theta -= 1e-3 * method.theta.grad
        assert method(*arguments) > before
        method.theta += 1e-3 * method.theta.grad
        student -= 1e-3 * student.grad
        assert method(*arguments) < before


def test_training_against_a_student_that_stands_still_makes_its_task_harder() -> None:
    method = CTKD().double()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    losses = []
    for epoch in range(20):
        loss = method(*arguments(epoch))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] == losses[1]  # λ is 0 in the first epoch
    assert losses[1:] == sorted(losses[1:])
    assert losses[-1] > losses[0] + 1e-3


def test_the_student_learns_the_same_whatever_the_adversarys_strength() -> None:
    gradients = []
    for epoch in (0, 10):
        student, teacher, batch = arguments(epoch)
        CTKD()(student, teacher, batch).backward()
        gradients.append(student.logits.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("theta", [-1e3, -2.0, 0.0, 1.0, 1e3])
def test_the_temperature_stays_between_its_bounds(theta: float) -> None:
    method = CTKD(min_temperature=2.0, temperature_range=5.0)
    torch.nn.init.constant_(method.theta, theta)
    assert method.temperature(0.0).item() == pytest.approx(2 + 5 * torch.tensor(theta).sigmoid().item())
    assert 2 <= method.temperature(0.0) <= 7


def test_the_temperature_starts_where_the_authors_let_it_start() -> None:
    assert CTKD().temperature(0.0).item() == pytest.approx(1 + 20 / (1 + math.exp(-1)))


def test_the_temperature_is_trained_and_saved_with_the_student() -> None:
    method = CTKD()
    task = Distillation(make_student(), make_teacher(), method, Mix(), SPEC)
    assert any(parameter is method.theta for parameter in task.parameters())
    assert "method.theta" in task.state_dict()
    for epoch, moved in ((0, False), (1, True)):
        task.zero_grad()
        task(dataclasses.replace(make_batch(), epoch=epoch)).loss.backward()
        assert method.theta.grad is not None
        assert bool(method.theta.grad.abs() > 0) is moved


def test_both_the_logits_and_the_temperature_have_the_gradient_of_finite_differences() -> None:
    student, teacher, _ = draw((4, 5), scale=1.0)
    temperature = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda logits, t: ctkd_loss(logits, teacher, t), (student, temperature))
