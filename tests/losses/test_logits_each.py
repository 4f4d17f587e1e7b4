"""What is particular to each loss of logits beyond kd."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from kd_cli.losses.base import Mix, build_loss
from kd_cli.losses.ctkd import ctkd_loss
from kd_cli.losses.dist import dist_loss, distance
from kd_cli.losses.dkd import DKD, dkd_loss
from kd_cli.losses.mlkd import gram_distance
from kd_cli.losses.nkd import nkd_loss
from kd_cli.losses.tfkd import TfKD, tfkd_loss, virtual_logits
from kd_cli.losses.wsld import soft_label_weights, wsld_loss
from kd_cli.training.task import Distillation
from kd_cli.types import DataSpec, Outputs
from tests.losses.references import basic as references
from tests.losses.references import logits as reference
from tests.support.logits import arrays, draw, gradient
from tests.support.small import SPEC, logits_only, make_student, make_teacher


def test_dkd_refuses_two_classes_because_the_only_other_one_has_nothing_to_compare() -> None:
    two = DataSpec(2, 200, SPEC.image_shape, ("a", "b"))
    for refuse in (
        lambda: dkd_loss(*draw((4, 2))),
        lambda: Distillation(make_student(), make_teacher(), DKD(), Mix(), two),
    ):
        with pytest.raises(ValueError, match=r"of 2 classes there are not two such. Take loss=kd$"):
            refuse()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_is_tckd_plus_the_teachers_doubt_times_nckd(temperature: float) -> None:
    student, teacher, labels = draw((1, 10))  # eq. 6 of the paper, of one image
    doubt = 1 - (teacher / temperature).softmax(dim=1)[0, labels[0]]
    together = dkd_loss(student, teacher, labels, 1.0, doubt.item(), temperature)
    expected = references.kd(*arrays(student, teacher), temperature)
    assert together.item() == pytest.approx(expected, rel=1e-9)


def test_the_weights_of_dkd_belong_to_the_label_and_to_the_others() -> None:
    student, _, labels = draw((6, 10))
    teacher = student.detach().scatter_add(1, labels[:, None], torch.ones(6, 1, dtype=torch.float64))
    assert dkd_loss(student, teacher, labels, 0.0, 1.0).abs() < 1e-12  # the others agree among themselves
    assert dkd_loss(student, teacher, labels, 1.0, 0.0) > 1e-3


def test_dist_sees_correlations_and_not_sizes() -> None:
    one, other, _ = draw((4, 6))
    assert distance(one, 3 * one + 7).item() == pytest.approx(0, abs=1e-12)
    assert distance(one, -one).item() == pytest.approx(2)
    torch.testing.assert_close(distance(2 * one + 1, 0.5 * other - 3), distance(one, other))


def test_dist_of_one_image_is_the_correlation_over_classes_alone() -> None:
    student, teacher, _ = draw((1, 6))
    torch.testing.assert_close(dist_loss(student, teacher), dist_loss(student, teacher, intra_weight=0.0))
    only_intra = dist_loss(student, teacher, inter_weight=0.0)
    only_intra.backward()
    assert only_intra == 0
    assert student.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("classes", [7, 10, 1000])
def test_dist_of_equal_logits_has_no_correlation_and_no_gradient(classes: int, dtype: torch.dtype) -> None:
    student = torch.full((3, classes), 0.1, dtype=dtype, requires_grad=True)  # as a classifier of zeros gives them
    teacher = torch.randn(3, classes).to(dtype)
    loss = dist_loss(student, teacher, scale_by_t2=False)
    loss.backward()
    assert loss == 4
    assert not student.grad.any()


def test_nkd_teaches_nothing_about_the_other_classes_where_they_agree() -> None:
    student, _, labels = draw((6, 10))
    teacher = student.detach().scatter_add(1, labels[:, None], torch.ones(6, 1, dtype=torch.float64))
    others = partial(nkd_loss, target_weight=0.0, temperature=2.0)
    assert gradient(others, student, teacher, labels).abs().max() < 1e-12
    assert others(student, teacher, labels) > 0  # the teacher's entropy
    assert gradient(nkd_loss, student, teacher, labels).abs().max() > 1e-3


def test_mlkd_weighs_images_and_relations_apart_and_sums_over_the_temperatures() -> None:
    tensors = draw((6, 5))[:2]
    parts = (references.kd, reference.mlkd_batch, reference.mlkd_class)
    for number, part in enumerate(parts):
        weights = [1.0 if n == number else 0.0 for n in range(3)]
        names = dict(zip(("instance_weight", "batch_weight", "class_weight"), weights, strict=True))
        method, _ = build_loss({"name": "mlkd", "temperatures": [1.5, 6.0], **names})
        expected = sum(part(*arrays(*tensors), t) for t in (1.5, 6.0))
        assert method(*logits_only(*tensors)).item() == pytest.approx(expected, rel=1e-9)


def test_mlkd_multiplies_in_full_precision_under_autocast() -> None:
    one, other = (torch.randn(6, 5) for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gram_distance(one, other)
    assert torch.equal(inside, gram_distance(one, other))


def test_the_weights_of_wsld_are_of_each_image_and_constants() -> None:
    student, teacher, labels = draw((6, 10))
    weights = soft_label_weights(student, teacher, labels)
    kd = partial(ctkd_loss, temperature=torch.tensor(2.0))
    expected = weights[:, None] * torch.autograd.grad(kd(student, teacher), student)[0]
    torch.testing.assert_close(gradient(wsld_loss, student, teacher, labels), expected)
    assert not weights.requires_grad
    assert weights.std() > 0.1


def test_wsld_weighs_an_image_less_the_better_the_student_knows_it() -> None:
    logits = torch.tensor([[9.0, 0.0], [2.0, 0.0], [1.0, 0.0], [0.0, 300.0]])
    teacher, labels = torch.tensor([[2.0, 0.0]]).expand(4, 2), torch.zeros(4, dtype=torch.int64)
    weights = soft_label_weights(logits, teacher, labels)
    assert weights[0] < 0.01
    assert weights[1] == pytest.approx(1 - math.exp(-1))
    assert weights.diff().min() > 0
    assert weights[3] == 1


def test_wsld_of_a_teacher_without_any_doubt_is_a_number() -> None:
    sure = torch.tensor([[500.0, 0.0], [500.0, 0.0]])  # its cross-entropy is exactly 0
    student, labels = torch.tensor([[500.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
    assert soft_label_weights(student, sure, labels).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("classes", [2, 10])
def test_tfkds_own_teacher_believes_in_the_label_and_in_all_others_alike(classes: int) -> None:
    student, _, labels = draw((6, classes))
    teacher = virtual_logits(student, labels, 0.9)
    probabilities = teacher.softmax(dim=1)
    assert probabilities.gather(1, labels[:, None]).flatten().tolist() == pytest.approx([0.9] * 6)
    assert probabilities.sum(dim=1).tolist() == pytest.approx([1.0] * 6)
    assert teacher.exp().min().item() == pytest.approx(0.1 / (classes - 1))
    same = (teacher + 3).requires_grad_()
    assert tfkd_loss(same, labels, 0.9).item() == pytest.approx(0, abs=1e-12)
    assert torch.autograd.grad(tfkd_loss(same, labels, 0.9), same)[0].abs().max() < 1e-12


def test_tfkd_asks_no_teacher_or_is_kd_from_a_frozen_one() -> None:
    student, teacher, batch = logits_only(*draw((6, 10))[:2])
    alone, with_itself = TfKD(), TfKD(form="self", temperature=6.0, kl_weight=0.95)
    assert (alone.teacher, with_itself.teacher) == ("none", "frozen")
    none = Outputs(torch.zeros(0, 0))
    assert torch.equal(alone(student, none, batch), alone(student, teacher, batch))
    expected = 0.95 * references.kd(*arrays(student.logits, teacher.logits), 6.0)
    assert with_itself(student, teacher, batch).item() == pytest.approx(expected, rel=1e-9)
