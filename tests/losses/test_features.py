"""The mathematics of the losses of features: against independent references, and by what holds for any input."""

from __future__ import annotations

import math

import pytest
import torch

from kd_cli.losses.at import at_loss
from kd_cli.losses.fitnet import fitnet_loss
from kd_cli.losses.fsp import fsp_loss
from kd_cli.losses.kdsvd import kdsvd_loss
from kd_cli.losses.nst import nst_loss
from kd_cli.losses.pkt import pkt_loss
from kd_cli.losses.sp import sp_loss
from kd_cli.losses.vid import vid_loss
from tests.support.features import CASES, Case, Shapes, draw, gradients


def cases(*without: str) -> pytest.MarkDecorator:
    """Every method but those, with all of its options."""
    kept = {name: case for name, case in CASES.items() if name.split(",")[0] not in without}
    return pytest.mark.parametrize("case", kept.values(), ids=kept)


@pytest.mark.parametrize(
    ("case", "ours", "theirs"),
    [pytest.param(case, *shapes, id=f"{name}: {shapes}") for name, case in CASES.items() for shapes in case.shapes],
)
@pytest.mark.parametrize("images", [1, 2, 5])
def test_a_loss_equals_its_reference(case: Case, ours: Shapes, theirs: Shapes, images: int) -> None:
    student = [feature[:images] if feature.ndim > 1 else feature for feature in draw(ours, scale=2.0)]
    teacher = [feature[:images] for feature in draw(theirs, seed=1)]
    arrays = ([feature.detach().numpy() for feature in features] for features in (student, teacher))
    assert case.loss(student, teacher).item() == pytest.approx(case.reference(*arrays), rel=1e-6, abs=1e-14)


def test_cases_worked_by_hand() -> None:
    one, other = torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
    # attention (9, 16) / √337 against (1, 1) / √2
    squares = (9 / 337**0.5 - 0.5**0.5) ** 2 + (16 / 337**0.5 - 0.5**0.5) ** 2
    assert at_loss(one, other).item() == pytest.approx(squares / 2, rel=1e-5)
    # channels (0.6, 0.8) against (1, 0) and (0, 1): 2/4 + 1 − 2 · (0.36 + 0.64)/2
    assert nst_loss(one, other).item() == pytest.approx(0.5, rel=1e-5)
    # flows (9 + 16)/2 against (1 + 0)/2
    assert fsp_loss([one, one], [other[:, :1]] * 2).item() == pytest.approx(144, rel=1e-5)
    # similarities: rows (1, 0) of the student, (1, 1)/√2 of the teacher
    vectors = torch.eye(2), torch.ones(2, 3)
    assert sp_loss(*vectors).item() == pytest.approx(((1 - 0.5**0.5) ** 2 + 0.5) / 2, rel=1e-5)
    # probabilities: rows (2/3, 1/3) of the student, (1/2, 1/2) of the teacher
    assert pkt_loss(*vectors).item() == pytest.approx((math.log(0.75) + math.log(1.5)) / 4, rel=1e-5)
    # ½ log 4 + (1 − 3)² / 8
    variance = torch.tensor([4.0])
    assert vid_loss(torch.ones(1, 1), variance, 3 * torch.ones(1, 1)).item() == pytest.approx(math.log(2) + 0.5)


@cases("vid", "vkd")
def test_a_student_that_equals_its_teacher_has_nothing_to_learn_and_any_other_has(case: Case) -> None:
    ours, theirs = case.shapes[0]
    student = draw(ours)
    same = [feature.detach() for feature in student]
    assert case.loss(student, same).item() == pytest.approx(0, abs=1e-14)
    assert all(gradient.abs().max() < 1e-12 for gradient in gradients(case, student, same))
    assert case.loss(student, draw(theirs, seed=1)) > 1e-4


def test_vid_is_least_at_the_teachers_feature_and_its_variance_at_the_mean_squared_error() -> None:
    mean, teacher = draw([(5, 3, 4, 2)] * 2)
    variance = (mean - teacher).square().mean(dim=(0, 2, 3)).detach().requires_grad_()
    assert torch.autograd.grad(vid_loss(mean, variance, teacher), variance)[0].abs().max() < 1e-12
    assert torch.autograd.grad(vid_loss(mean, variance, mean.detach()), mean)[0].abs().max() < 1e-12


def test_vid_is_a_log_likelihood_and_may_be_negative() -> None:
    (feature,) = draw([(5, 3)])
    assert vid_loss(feature, torch.full((3,), 0.01), feature).item() == pytest.approx(math.log(0.1))


@cases()
def test_the_order_of_the_images_does_not_matter(case: Case) -> None:
    student, teacher = (draw(shapes, seed) for seed, shapes in enumerate(case.shapes[0]))
    order = torch.tensor([3, 0, 4, 1, 2])
    other = [feature[order] if feature.ndim > 1 else feature for feature in student]
    torch.testing.assert_close(case.loss(other, [feature[order] for feature in teacher]), case.loss(student, teacher))


@cases()
def test_repeating_a_batch_changes_nothing_but_halves_a_mean_over_pairs(case: Case) -> None:
    student, teacher = (draw(shapes, seed) for seed, shapes in enumerate(case.shapes[0]))
    twice = [[torch.cat([f, f]) if f.ndim > 1 else f for f in features] for features in (student, teacher)]
    share = 0.5 if case in (CASES["sp"], CASES["pkt"]) else 1.0
    torch.testing.assert_close(case.loss(*twice), share * case.loss(student, teacher))


@cases("encoder", "fitnet", "fsp", "vid", "vkd", "wkd_f")
def test_the_scale_of_the_features_does_not_matter(case: Case) -> None:
    student, teacher = (draw(shapes, seed) for seed, shapes in enumerate(case.shapes[0]))
    larger = case.loss([7 * feature for feature in student], [0.1 * feature for feature in teacher])
    torch.testing.assert_close(larger, case.loss(student, teacher))


@pytest.mark.parametrize(("name", "degree"), [("fitnet", 2), ("fsp", 4)])
def test_the_scale_of_both_networks_is_that_of_the_squared_difference(name: str, degree: int) -> None:
    case = CASES[name]
    student, teacher = (draw(shapes, seed) for seed, shapes in enumerate(case.shapes[0]))
    larger = case.loss([3 * feature for feature in student], [3 * feature for feature in teacher])
    torch.testing.assert_close(larger, 3**degree * case.loss(student, teacher))


@pytest.mark.parametrize("loss", [sp_loss, pkt_loss])
def test_relations_of_images_know_no_axes(loss: object) -> None:
    student, teacher, square = draw([(5, 6), (5, 4), (6, 6)])
    rotation = torch.linalg.qr(square.detach())[0]
    torch.testing.assert_close(loss(student @ rotation, teacher), loss(student, teacher))


@pytest.mark.parametrize("loss", [at_loss, nst_loss])
def test_attention_and_selectivity_know_no_order_and_no_sign_of_channels_but_positions(loss: object) -> None:
    student, teacher = draw([(5, 3, 4, 4), (5, 6, 4, 4)])
    expected = loss(student, teacher)
    signs = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(loss(signs * student.flip(1), teacher.roll(1, dims=1)), expected)
    torch.testing.assert_close(loss(student.flip(2), teacher.flip(2)), expected)
    assert not torch.isclose(loss(student.flip(2), teacher), expected)


def test_singular_vectors_know_no_sign_and_no_order_of_positions_but_channels() -> None:
    student, teacher = ([*draw([(5, 4, 3, 3), (5, 3, 2, 2)], seed)] for seed in (0, 1))
    expected = kdsvd_loss(student, teacher)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    moved = -student[0].flatten(2)[:, :, order].unflatten(2, (3, 3))  # changes what an NHWC reshape makes of it
    torch.testing.assert_close(kdsvd_loss([moved, -student[1]], teacher), expected)
    torch.testing.assert_close(kdsvd_loss(student, [teacher[0], -teacher[1]]), expected)
    assert not torch.isclose(kdsvd_loss([student[0].flip(1), student[1]], teacher), expected)


@cases()
def test_the_gradient_is_that_of_finite_differences_and_none_is_the_teachers(case: Case) -> None:
    student, teacher = (
        draw([(2, *s[1:]) if len(s) > 1 else s for s in side], i) for i, side in enumerate(case.shapes[0])
    )
    fixed = [feature.detach() for feature in teacher]
    assert torch.autograd.gradcheck(lambda *features: case.loss(features, fixed), tuple(student))
    case.loss(student, teacher).backward()
    assert all(feature.grad is None for feature in teacher)


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@cases()
def test_half_precision_is_computed_in_float32(case: Case, dtype: torch.dtype, scale: float) -> None:
    student, teacher = (
        [feature.detach().to(dtype).requires_grad_() for feature in draw(shapes, seed, scale)]
        for seed, shapes in enumerate(case.shapes[0])
    )
    value = case.loss(student, teacher)
    assert value.dtype is torch.float32
    single = [[feature.float() for feature in features] for features in (student, teacher)]
    if case is not CASES["vid"]:  # whose variance was added up in the low precision, by the test
        torch.testing.assert_close(value, case.loss(*single))
    assert value.isfinite()
    leaves = single if case is CASES["fsp"] else (student, teacher)  # a gradient of 1e12 is none of float16
    assert all(gradient.isfinite().all() for gradient in gradients(case, *leaves))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@cases()
def test_a_feature_that_is_not_finite_gives_a_loss_that_is_not_finite_and_no_error(case: Case, value: float) -> None:
    student, teacher = ([*draw(shapes, seed)] for seed, shapes in enumerate(case.shapes[0]))
    broken = student[0].detach().clone()
    broken[1, 1] = value
    assert not case.loss([broken, *student[1:]], teacher).isfinite()


@cases()
def test_autocast_does_not_coarsen_the_products(case: Case) -> None:
    student, teacher = ([f.float() for f in draw(shapes, seed)] for seed, shapes in enumerate(case.shapes[0]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = case.loss(student, teacher)
    torch.testing.assert_close(inside, case.loss(student, teacher))


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@cases()
def test_dead_and_constant_features_give_no_wild_gradient(case: Case, dtype: torch.dtype, value: float) -> None:
    ours, theirs = case.shapes[0]
    student = [torch.full(shape, value, dtype=dtype, requires_grad=True) for shape in ours]
    teacher = [feature.detach().to(dtype) for feature in draw(theirs)]
    for target in (teacher, [torch.full_like(feature, value) for feature in teacher]):
        assert case.loss(student, target).isfinite()
        assert all(gradient.abs().max() < 100 for gradient in gradients(case, student, target))


def test_opposite_images_have_a_probability_of_zero_and_a_finite_divergence() -> None:
    student = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    for teacher in (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), student.detach()):
        loss = pkt_loss(student, teacher)
        assert loss.isfinite()
        assert torch.autograd.grad(loss, student)[0].isfinite().all()


def test_shapes_that_cannot_be_compared_are_refused() -> None:
    maps, vectors = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3)
    for loss in (at_loss, nst_loss):  # of vectors the first would be 0 whatever they are
        with pytest.raises(ValueError, match=r"^taps: the method reads feature maps \[B, C, H, W\], not \[2, 3\]"):
            loss(vectors, maps)
    for loss in (fsp_loss, kdsvd_loss):
        with pytest.raises(ValueError, match=r"entry by entry, and 3 channels are not 2"):
            loss([maps, maps], [maps, maps[:, :2]])
    with pytest.raises(ValueError, match=r"must have one shape, not \[2, 3, 4, 4\] and \[2, 3\]"):
        fitnet_loss(maps, vectors)
    with pytest.raises(ValueError, match=r"must have one shape, not \[2, 3\] and \[2, 3, 4, 4\]"):
        vid_loss(vectors, torch.ones(3), maps)
