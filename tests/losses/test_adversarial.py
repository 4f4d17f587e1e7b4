"""Adversarial distillation: the two sides of the game, and who moves by whose gradient."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd_cli.config.recipe import Recipe
from kd_cli.losses.adversarial import Adversarial, discriminator_loss, fooling_loss
from kd_cli.losses.base import Mix, build_loss
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
    make_data,
    make_student,
    make_teacher,
    same_tensors,
    spec,
)

LABELS = torch.tensor([1, 0, 3, 3, 2])


def arrays(*tensors: Tensor) -> list[Any]:
    return [tensor.detach().numpy() for tensor in tensors]


@pytest.mark.parametrize("size", [1, 4, 9])
def test_the_two_sides_of_the_game_equal_their_references(size: int) -> None:
    student, teacher = draw(size, scale=4.0), draw(size, seed=1)
    expected = references.discriminator(*arrays(student, teacher)), references.fooling(*arrays(student))
    assert discriminator_loss(student, teacher).item() == pytest.approx(expected[0], rel=1e-6)
    assert fooling_loss(student).item() == pytest.approx(expected[1], rel=1e-6)
    assert torch.autograd.gradcheck(discriminator_loss, (student, teacher))
    assert torch.autograd.gradcheck(fooling_loss, (student,))


def test_a_student_that_is_found_out_still_has_a_gradient() -> None:
    scores = torch.full((3,), -50.0, requires_grad=True)  # log(1 − D) would have none
    assert torch.autograd.grad(fooling_loss(scores), scores)[0].tolist() == pytest.approx([-1 / 3] * 3)


def bound_adversarial(classes: int = 4, **options: Any) -> Adversarial:
    torch.manual_seed(0)
    method = Adversarial(hidden=6, **options)
    outputs = [Outputs(draw(2, classes), {"embedding": draw(2, width)}) for width in (7, 5)]
    method.bind(*outputs, spec(classes))
    return method.double()


@pytest.mark.parametrize("classes", [2, 4])
def test_the_loss_is_the_sum_of_its_weighed_terms(classes: int) -> None:
    method = bound_adversarial(classes, adversarial_weight=0.5, label_weight=0.25, l1_weight=3.0)
    student, teacher, labels = draw(5, classes), draw(5, classes, seed=1), LABELS % classes
    (our_scores, our_names), (their_scores, their_names) = method.discriminator(student), method.discriminator(teacher)
    naming = [references.cross_entropy(*arrays(names), labels.numpy()) for names in (our_names, their_names)]
    expected = (
        0.5 * references.fooling(*arrays(our_scores))
        + 0.25 * naming[0]
        + 3.0 * abs(arrays(student)[0] - arrays(teacher)[0]).mean()
        + references.discriminator(*arrays(our_scores, their_scores))
        + 0.25 * (naming[0] + naming[1]) / 2
    )
    loss = method(Outputs(student), Outputs(teacher), batch_of(labels))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("taps", [(), ("embedding",)])
def test_one_backward_pass_serves_both_sides_and_mixes_no_gradients(taps: tuple[str, ...]) -> None:
    method = bound_adversarial(taps=taps)
    ours, theirs = (draw(5, 7), draw(5, 5, seed=1)) if taps else (draw(5, 4), draw(5, 4, seed=1))
    pair = [Outputs(draw(5, 4), {"embedding": ours}), Outputs(draw(5, 4), {"embedding": theirs})]
    student, teacher = pair if taps else (Outputs(ours), Outputs(theirs))
    method(student, teacher, batch_of(LABELS)).backward()
    projected = method.projection(ours)
    scores, names = method.discriminator(projected)
    cross_entropy = nn.functional.cross_entropy
    of_student = fooling_loss(scores) + cross_entropy(names, LABELS) + nn.functional.l1_loss(projected, theirs.detach())
    learned = [ours, *method.projection.parameters()]
    for got, expected in zip(learned, torch.autograd.grad(of_student, learned), strict=True):
        torch.testing.assert_close(got.grad, expected)  # nothing of the discriminator's loss
    scores, names = method.discriminator(torch.cat([method.projection(ours), theirs]).detach())
    of_discriminator = discriminator_loss(scores[:5], scores[5:]) + cross_entropy(names, LABELS.repeat(2))
    owned = list(method.discriminator.parameters())
    for got, expected in zip(owned, torch.autograd.grad(of_discriminator, owned), strict=True):
        torch.testing.assert_close(got.grad, expected)  # nothing of the student's terms
    assert theirs.grad is None


@pytest.mark.parametrize("taps", [[], ["embedding"]])
def test_the_discriminator_moves_by_its_own_optimizer_only(taps: list[str]) -> None:
    method, mix = build_loss({**loss_options("adversarial"), "discriminator_lr": 0.01, "taps": taps})
    task = Distillation(make_student(), make_teacher(), method, mix, SPEC)
    recipe = Recipe(epochs=1, batch_size=32, limit_train_batches=1, optimizer="sgd", momentum=0.0, lr=1e-30)
    before = copy.deepcopy(task.method)
    trainer = Trainer(recipe, seed=0, device=CPU)
    list(trainer.epochs(task, make_data()))
    moved = task.method.discriminator.parameters()
    for now, then in zip(moved, before.discriminator.parameters(), strict=True):
        assert 0.009 < (now - then).abs().max() < 0.011  # Adam's first step is its rate
    assert same_tensors(task.method.projection, before.projection)
    _, own = trainer.updater.optimizers
    assert {id(p) for p in own.state} == {id(p) for p in task.method.discriminator.parameters()}
    assert not {id(p) for p in own.state} & {id(p) for p in trainer.updater.parameters}


def test_the_discriminator_learns_to_tell_two_networks_apart_that_do_not_move() -> None:
    method = bound_adversarial(discriminator_lr=0.01)
    student, teacher = draw(64, 4), draw(64, 4, seed=1, scale=3.0)
    (optimizer,) = method.optimizers()
    for _ in range(100):
        method(Outputs(student), Outputs(teacher), batch_of(torch.arange(64) % 4)).backward()
        optimizer.step()
        optimizer.zero_grad()
    scores = [method.discriminator(logits)[0] for logits in (student, teacher)]
    assert discriminator_loss(*scores) < 0.7 * 2 * math.log(2)


def test_adversarial_refuses_several_features_and_other_classes() -> None:
    method = Adversarial(taps=["stages"])
    with pytest.raises(ValueError, match=r"^taps: \['stages'\] are 3 features; one can be told apart"):
        Distillation(make_student(), make_teacher(), method, Mix(), SPEC)
    with pytest.raises(ValueError, match=r"must both be \[B, K\], not \[2, 4\] and \[2, 5\]"):
        Adversarial().bind(Outputs(torch.zeros(2, 4)), Outputs(torch.zeros(2, 5)), spec(4))
