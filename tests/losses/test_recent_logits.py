"""What is particular to each loss of logits of 2024 and later."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kd_cli.losses.abkd import abkd_loss
from kd_cli.losses.base import build_loss
from kd_cli.losses.dkd import dkd_loss
from kd_cli.losses.kd import kd_loss
from kd_cli.losses.rld import rld_loss
from kd_cli.losses.tekap import TeKAP, tekap_loss
from kd_cli.losses.ttm import ttm_loss
from kd_cli.losses.wkd_l import WKDL, class_cost, transport_cost, wkd_l_loss
from kd_cli.losses.wttm import power_sums, wttm_loss
from kd_cli.types import Outputs
from tests.losses.references import basic as references
from tests.losses.references import recent_logits as recent
from tests.support.logits import arrays, draw, gradient
from tests.support.small import SPEC, logits_only, loss_options

both_temperatures = {"confidence_temperature": 3.0, "temperature": 3.0}


def test_rld_is_dkd_wherever_the_teacher_is_right() -> None:
    student, teacher, _ = draw((6, 10))
    labels = teacher.argmax(dim=1)
    refined = rld_loss(student, teacher, labels, 0.5, 2.0, **both_temperatures)
    torch.testing.assert_close(refined, dkd_loss(student, teacher, labels, 0.5, 2.0, temperature=3.0))
    same = teacher.clone().requires_grad_()
    assert rld_loss(same, teacher, labels).item() == pytest.approx(0, abs=1e-12)
    assert gradient(rld_loss, same, teacher, labels).abs().max() < 1e-12


def test_rld_teaches_a_wrong_teachers_confidence_and_not_its_mistake() -> None:
    teacher = torch.tensor([[4.0, 3.0, 1.0, 0.0]], dtype=torch.float64)
    labels = torch.tensor([1])  # the teacher prefers class 0
    student = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    whole = gradient(rld_loss, student, teacher, labels)[0]
    assert whole[1] < 0 < whole[0]  # descent raises the label and lowers the teacher's choice
    among = gradient(partial(rld_loss, confidence_weight=0.0), student, teacher, labels)[0]
    assert among[:2].tolist() == [0.0, 0.0]
    assert among[2] < 0 < among[3]
    assert gradient(kd_loss_of, student, teacher, labels)[0, 0] < 0  # as kd does not


def kd_loss_of(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return kd_loss(student, teacher)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_rld_of_a_label_that_the_teacher_puts_last_is_confidence_alone(dtype: torch.dtype) -> None:
    student = torch.tensor([[1.0, 2.0, 3.0]], dtype=dtype, requires_grad=True)
    teacher, labels = torch.tensor([[2.0, 1.0, 0.0]], dtype=dtype), torch.tensor([2])
    masked = rld_loss(student, teacher, labels, confidence_weight=0.0)
    masked.backward()
    assert masked == 0
    assert student.grad is not None
    assert not student.grad.any()


def test_rld_leaves_out_classes_that_the_teacher_likes_as_much_as_the_label() -> None:
    teacher = torch.tensor([[1.0, 1.0, 0.0, -1.0]])
    student, labels = torch.randn(1, 4, requires_grad=True), torch.tensor([0])
    among = gradient(partial(rld_loss, confidence_weight=0.0), student, teacher, labels)
    assert not among[0, :2].any()
    assert among[0, 2:].all()


def test_at_temperature_1_ttm_and_wttm_are_kd() -> None:
    student, teacher, _ = draw((6, 10))
    expected = kd_loss(student, teacher, temperature=1.0)
    torch.testing.assert_close(ttm_loss(student, teacher, 1.0), expected)
    torch.testing.assert_close(wttm_loss(student, teacher, 1.0), expected)


def test_the_gradient_of_ttm_is_the_difference_of_probabilities_at_any_temperature() -> None:
    student, teacher, _ = draw((6, 10))
    for temperature in (0.5, 10.0, 100.0):
        expected = (student.softmax(dim=1) - (teacher / temperature).softmax(dim=1)) / 6
        found = torch.autograd.grad(ttm_loss(student, teacher, temperature), student)[0]
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("temperature", [2.0, 10.0])
def test_ttm_is_kd_less_the_students_renyi_entropy(temperature: float) -> None:
    student, teacher, _ = draw((6, 10))  # but for what does not depend on the student
    power = (student.log_softmax(dim=1) / temperature).exp().sum(dim=1)
    renyi = power.log().mean() / (1 - 1 / temperature)
    kd = kd_loss(student, teacher, temperature, scale_by_t2=False)
    other = temperature * kd - (temperature - 1) * renyi
    slopes = [torch.autograd.grad(loss, student)[0] for loss in (ttm_loss(student, teacher, temperature), other)]
    torch.testing.assert_close(*slopes)


def test_wttm_is_ttm_of_each_image_times_how_smooth_its_teacher_is() -> None:
    student, teacher, _ = draw((6, 10))
    weights = power_sums(teacher, 5.0)
    slopes = [torch.autograd.grad(loss(student, teacher, 5.0), student)[0] for loss in (ttm_loss, wttm_loss)]
    torch.testing.assert_close(weights[:, None] * slopes[0], slopes[1])
    sure, unsure = torch.tensor([[500.0, 0.0, 0.0, 0.0]]), torch.zeros(1, 4)
    assert power_sums(sure, 2.0).item() == pytest.approx(1.0)
    assert power_sums(unsure, 2.0).item() == pytest.approx(4**0.5)


def kl(p: Tensor, q: Tensor) -> float:
    return (p * (p / q).log()).sum(dim=1).mean().item()


def test_abkd_is_both_divergences_and_hellingers_distance() -> None:
    student, teacher, _ = draw((6, 10), scale=1.0)
    q, p = (student.detach() / 2).softmax(dim=1), (teacher / 2).softmax(dim=1)
    ab = partial(abkd_loss, student, teacher, temperature=2.0)
    assert ab(1.0, 0.0).item() == pytest.approx(kl(p, q))
    assert ab(1.0, 0.0).item() == pytest.approx(references.kd(*arrays(student, teacher), 2.0) / 4)  # no T²
    assert ab(0.0, 1.0).item() == pytest.approx(kl(q, p))
    hellinger = (p.sqrt() - q.sqrt()).square().sum(dim=1).mean() / 2
    assert ab(0.5, 0.5).item() == pytest.approx(4 * hellinger.item())
    assert ab(1.0, 1.0).item() == pytest.approx(((p - q).square().sum(dim=1) / 2).mean().item())


@pytest.mark.parametrize(("alpha", "beta"), [(0.6, 0.0), (0.0, 0.6), (1.7, 0.0), (0.0, 1.7), (0.0, 0.0)])
def test_abkd_does_not_jump_where_an_exponent_is_0(alpha: float, beta: float) -> None:
    student, teacher, labels = draw((6, 10), scale=1.0)
    at, near = (
        lambda s, t, _, a=a, b=b: abkd_loss(s, t, a, b) for a, b in ((alpha, beta), (alpha + 1e-5, beta + 1e-5))
    )
    assert near(student, teacher, labels).item() == pytest.approx(at(student, teacher, labels).item(), rel=1e-3)
    slopes = [gradient(loss, student, teacher, labels) for loss in (at, near)]
    torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-5)
    small = student.detach()[:, :5].requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: at(logits, teacher[:, :5], labels), (small,))


def test_abkd_with_its_exponents_exchanged_is_that_of_the_networks_exchanged() -> None:
    student, teacher, _ = draw((6, 10))
    for alpha, beta in ((0.8, 0.3), (0.7, 0.0), (0.0, 0.0)):
        torch.testing.assert_close(
            abkd_loss(student, teacher, alpha, beta), abkd_loss(teacher, student.detach(), beta, alpha)
        )


def a_cost(classes: int) -> Tensor:
    torch.manual_seed(4)
    return class_cost(torch.randn(classes, 4, dtype=torch.float64), 1.0)


@pytest.mark.parametrize("shape", [(1, 3), (5, 10), (16, 40)])
def test_wkd_l_of_shared_classes_is_the_transport_of_each_image_without_its_label(shape: tuple[int, int]) -> None:
    student, teacher, labels = draw(shape)
    cost = a_cost(shape[1])
    expected = recent.wkd_l(*arrays(student, teacher, labels, cost), (0.5, 30.0), 2.0, 0.1, 4)
    found = wkd_l_loss(student, teacher, labels, cost, 0.5, 30.0, 2.0, 0.1, 4)
    assert found.item() == pytest.approx(expected, rel=1e-9)
    assert torch.autograd.gradcheck(
        lambda logits: wkd_l_loss(logits, teacher[:2], labels[:2], cost), (student.detach()[:2].requires_grad_(),)
    )


def test_wkd_l_with_the_options_of_its_yaml_is_its_reference() -> None:
    method, _ = build_loss(loss_options("wkd_l"))
    classifier = nn.Linear(7, 5).double()
    student, teacher, batch = logits_only(*draw((6, 5))[:2])
    method.bind(student, Outputs(teacher.logits, classifier=classifier), SPEC)
    rows = classifier.weight.detach().numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cost = 1 - np.exp(-(1 - rows @ rows.T))
    given = arrays(student.logits, teacher.logits, batch.labels)
    expected = recent.wkd_l(*given, cost, (1.0, 800.0), 8.0, 0.05, 10)
    assert method(student, teacher, batch).item() == pytest.approx(expected, rel=1e-6)
    assert not method.state_dict()  # it is made of the teacher again


def test_wkd_l_prefers_a_near_class_to_a_far_one() -> None:
    cost = class_cost(torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [0.0, 1.0]]), 1.0)
    teacher, labels = torch.tensor([[9.0, 0.0, 0.0, 5.0]]), torch.tensor([3])
    near, far = torch.tensor([[0.0, 9.0, 0.0, 5.0]]), torch.tensor([[0.0, 0.0, 9.0, 5.0]])
    losses = [wkd_l_loss(student, teacher, labels, cost, temperature=1.0).item() for student in (near, far)]
    assert losses[0] < losses[1] / 10
    assert kd_loss(near, teacher).item() == pytest.approx(kd_loss(far, teacher).item())  # which kd cannot tell apart


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_transport_between_classes_that_are_equally_far_is_half_the_difference(dtype: torch.dtype) -> None:
    student, teacher = (logits.detach().softmax(dim=1).to(dtype) for logits in draw((6, 10))[:2])
    everyone, cost = torch.ones(6, 10, dtype=torch.bool), 1 - torch.eye(10)
    found = transport_cost(student, teacher, everyone, cost, 0.02, 300)
    torch.testing.assert_close(found, (student - teacher).abs().sum(dim=1) / 2, rtol=1e-3, atol=1e-4)


def test_wkd_l_loses_nothing_of_what_moves_between_the_farthest_classes() -> None:
    cost = class_cost(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]), 1.0)  # 1e-8 beside the kernel would be a lot
    sure = torch.tensor([[100.0, 0.0, 0.0]]), torch.tensor([[0.0, 100.0, 0.0]])
    moved = wkd_l_loss(*sure, torch.tensor([2]), cost, 0.0, 1.0, temperature=1.0)
    assert moved.item() == pytest.approx(1 - math.exp(-2), rel=1e-5)


def test_a_class_costs_nothing_to_itself_and_more_the_farther_it_is() -> None:
    cost = class_cost(10 * torch.tensor([[1.0, 0.0], [1.0, 1.0], [-1.0, 0.0]]), 2.0)
    assert torch.equal(cost, cost.T)
    assert cost.diagonal().tolist() == [0.0, 0.0, 0.0]
    assert cost[0, 1].item() == pytest.approx(1 - math.exp(-2 * (1 - 0.5**0.5)))
    assert cost[0, 2].item() == pytest.approx(1 - math.exp(-4))


def test_wkd_l_refuses_a_teacher_that_says_nothing_of_its_classes() -> None:
    outputs = Outputs(torch.zeros(2, 10))
    with pytest.raises(ValueError, match=r"this teacher publishes none; an ensemble has none. Take loss=nkd$"):
        WKDL().bind(outputs, outputs, SPEC)


def test_wkd_l_makes_no_plan_of_each_image() -> None:
    """[B, K, K] would be 4 GB for 1000 images of 1000 classes."""
    student, teacher, labels = draw((6, 50))
    sizes: set[int] = set()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.add(t.numel()) or t, lambda t: t):
        wkd_l_loss(student, teacher, labels, a_cost(50))
    assert max(sizes) == 50 * 50


@pytest.mark.parametrize("shape", [(1, 3), (5, 10)])
def test_tekap_equals_its_reference(shape: tuple[int, int]) -> None:
    student, teacher, _ = draw(shape)
    noise = torch.randn(4, *shape, dtype=torch.float64)
    found = tekap_loss(student, teacher, noise, 0.3, 0.7, 2.0)
    assert found.item() == pytest.approx(recent.tekap(*arrays(student, teacher, noise), 0.3, 0.7, 2.0), rel=1e-9)


def test_tekap_with_the_options_of_its_yaml_is_its_reference() -> None:
    method, mix = build_loss(loss_options("tekap"))
    outputs = logits_only(*draw((6, 5))[:2])
    torch.manual_seed(0)
    noise = torch.randn(3, 6, 5, dtype=torch.float64)
    torch.manual_seed(0)
    expected = 0.9 * recent.tekap(*arrays(outputs[0].logits, outputs[1].logits, noise), 0.1, 0.8, 4.0)
    assert method(*outputs).item() == pytest.approx(expected, rel=1e-9)
    assert mix.ce_weight == 0.1


def test_tekap_without_noise_is_so_many_times_kd() -> None:
    student, teacher, batch = logits_only(*draw((6, 10))[:2])
    method = TeKAP(teachers=2, noise_share=0.0, augmented_weight=0.5, kl_weight=1.0)
    torch.testing.assert_close(method(student, teacher, batch), 2 * kd_loss(student.logits, teacher.logits))


def test_tekap_teaches_the_weighted_mean_of_what_its_teachers_say() -> None:
    student, teacher, _ = draw((6, 10))
    noise = torch.randn(2, 6, 10, dtype=torch.float64)
    said = [(logits / 4).softmax(dim=1) for logits in (teacher, *(0.9 * teacher + 0.1 * noise))]
    mean = (said[0] + 0.8 * said[1] + 0.8 * said[2]) / 2.6
    found = torch.autograd.grad(tekap_loss(student, teacher, noise), student)[0]
    expected = 2.6 * 16 * ((student / 4).softmax(dim=1) - mean) / 4 / 6
    torch.testing.assert_close(found, expected)
    assert torch.autograd.gradcheck(lambda logits: tekap_loss(logits, teacher, noise), (student,))


def test_tekaps_teachers_say_something_else_in_every_step_and_none_takes_a_gradient() -> None:
    student, teacher, batch = logits_only(*draw((6, 10))[:2])
    teacher.logits.requires_grad_()
    method = TeKAP()
    one, other = method(student, teacher, batch), method(student, teacher, batch)
    assert one != other
    one.backward()
    assert teacher.logits.grad is None


def test_half_precision_logits_are_perturbed_in_float32() -> None:
    student, teacher, _ = draw((6, 10))
    noise = torch.randn(2, 6, 10)
    small = [logits.detach().bfloat16() for logits in (student, teacher)]
    found = tekap_loss(*small, noise)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, tekap_loss(*(logits.float() for logits in small), noise))
