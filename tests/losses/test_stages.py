"""The mathematics of ofd, ab, ft, reviewkd, simkd, srrl and catkd."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kd_cli.losses.ab import ab_loss
from kd_cli.losses.catkd import catkd_loss, class_activation_maps
from kd_cli.losses.ft import ft_loss, reconstruction_loss
from kd_cli.losses.ofd import NegativeMean, ofd_loss
from kd_cli.losses.reviewkd import Fusion, hcl_loss, resized
from kd_cli.losses.simkd import simkd_loss
from kd_cli.losses.srrl import feature_matching_loss, frozen_logits, srrl_loss
from tests.losses.references import stages as references

Loss = Callable[[Tensor, Tensor], Tensor]
Reference = Callable[[np.ndarray, np.ndarray], float]
MAPS = [(1, 1, 1, 1), (1, 3, 4, 4), (3, 2, 5, 3), (2, 4, 8, 7), (5, 3, 2, 2)]
UNEQUAL = [((2, 3, 2, 2), (2, 3, 4, 4)), ((1, 2, 3, 2), (1, 2, 7, 5)), ((3, 1, 1, 1), (3, 1, 3, 3))]


def own_margin(teacher: Tensor) -> Tensor:
    mean = NegativeMean(teacher.shape[1])
    return (mean.double() if teacher.dtype == torch.float64 else mean)(teacher)


def ofd_with_own_margin(student: Tensor, teacher: Tensor) -> Tensor:
    return ofd_loss(student, teacher, own_margin(teacher))


# name → our function of (student, teacher) and the reference of the same options
PAIRS: dict[str, tuple[Loss, Reference]] = {
    "ofd": (ofd_with_own_margin, lambda s, t: references.ofd(s, t, references.negative_mean(t))),
    **{
        f"ab, margin = {m}": (partial(ab_loss, margin=m), partial(references.ab, margin=m))
        for m in (0.3, 1.0)
    },
    **{f"ft, power = {p}": (partial(ft_loss, power=p), partial(references.ft, power=p)) for p in (1, 2)},
    "reconstruction": (reconstruction_loss, references.mse),
    "hcl": (hcl_loss, references.hcl),
    "simkd": (simkd_loss, references.simkd),
    **{
        f"catkd, resolution = {r}": (partial(catkd_loss, resolution=r), partial(references.catkd, resolution=r))
        for r in (2, 3)
    },
}  # fmt: skip
every_loss = pytest.mark.parametrize("loss", [ours for ours, _ in PAIRS.values()], ids=PAIRS)
DISTANCES = {name: ours for name, (ours, _) in PAIRS.items() if not name.startswith("ab")}
SMOOTH = {name: ours for name, ours in PAIRS.items() if name != "ft, power = 1"}


def draw(shape: tuple[int, ...], seed: int = 0, scale: float = 1.0) -> Tensor:
    """Float64 numbers that want a gradient."""
    random = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=random, dtype=torch.float64)).requires_grad_()


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def gradient(loss: Loss, student: Tensor, teacher: Tensor) -> Tensor:
    return torch.autograd.grad(loss(student, teacher), student)[0]


@pytest.mark.parametrize("shape", MAPS, ids=str)
@pytest.mark.parametrize(("loss", "reference"), PAIRS.values(), ids=PAIRS)
def test_every_loss_equals_its_reference(loss: Loss, reference: Reference, shape: tuple[int, ...]) -> None:
    student, teacher = draw(shape, scale=2.0), draw(shape, seed=1)
    assert loss(student, teacher).item() == pytest.approx(reference(array(student), array(teacher)), rel=1e-6)


@pytest.mark.parametrize(("ours", "theirs"), UNEQUAL, ids=str)
@pytest.mark.parametrize("name", ["simkd", "catkd, resolution = 2", "catkd, resolution = 3"])
def test_a_larger_map_of_the_teacher_is_averaged(name: str, ours: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    (loss, reference), student, teacher = PAIRS[name], draw(ours), draw(theirs, seed=1)
    assert loss(student, teacher).item() == pytest.approx(reference(array(student), array(teacher)), rel=1e-6)


@pytest.mark.parametrize(("batch", "width", "classes"), [(1, 1, 2), (4, 3, 2), (3, 7, 10)])
@pytest.mark.parametrize("bias", [True, False])
def test_srrl_equals_its_reference(batch: int, width: int, classes: int, bias: bool) -> None:
    torch.manual_seed(0)
    classifier = nn.Linear(width, classes, bias=bias).double()
    student, teacher = draw((batch, width)), draw((batch, width), seed=1)
    matching = feature_matching_loss(student, teacher)
    regression = srrl_loss(frozen_logits(student, classifier), classifier(teacher))
    weights = array(classifier.weight), array(classifier.bias) if bias else None
    expected = references.srrl(array(student), array(teacher), *weights, fm=0.5, sr=3.0)
    assert (0.5 * matching + 3 * regression).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("shape", "classes"), [((1, 1, 1, 1), 2), ((2, 3, 4, 5), 2), ((3, 5, 2, 2), 7)])
def test_class_activation_maps_equal_their_reference_and_average_to_the_logits(
    shape: tuple[int, ...], classes: int
) -> None:
    feature, weight = draw(shape), draw((classes, shape[1]), seed=1)
    maps = class_activation_maps(feature, weight)
    np.testing.assert_allclose(array(maps), references.class_maps(array(feature), array(weight)), rtol=1e-9)
    torch.testing.assert_close(maps.mean(dim=(2, 3)), feature.mean(dim=(2, 3)) @ weight.T)


@pytest.mark.parametrize("sizes", [((4, 4), (2, 2), (4, 4)), ((5, 3), (2, 2), (3, 3)), ((1, 1), (1, 1), (2, 2))])
def test_a_fusion_equals_its_reference(sizes: tuple[tuple[int, int], ...]) -> None:
    torch.manual_seed(0)
    fusion = Fusion(3, 4, 5, deepest=False).double().eval()
    fusion.enter[1] = fusion.leave[1] = nn.Identity()
    own, deeper = draw((2, 3, *sizes[0])), draw((2, 4, *sizes[1]), seed=1)
    fused, compared = fusion(own, deeper, torch.Size(sizes[2]))
    attention = array(fusion.attention.weight)[:, :, 0, 0], array(fusion.attention.bias)
    expected = references.fuse(
        references.convolve(array(own), array(fusion.enter[0].weight)), array(deeper), *attention
    )
    np.testing.assert_allclose(array(fused), expected, rtol=1e-9)
    expected = references.convolve(references.average(expected, *sizes[2]), array(fusion.leave[0].weight))
    np.testing.assert_allclose(array(compared), expected, rtol=1e-9, atol=1e-12)


def test_a_map_that_grows_by_a_whole_factor_is_repeated() -> None:
    maps = draw((1, 2, 3, 2))
    expected = maps.repeat_interleave(2, dim=2).repeat_interleave(3, dim=3)
    torch.testing.assert_close(resized(maps, torch.Size((6, 6))), expected)


@pytest.mark.parametrize("shape", MAPS, ids=str)
@pytest.mark.parametrize("loss", DISTANCES.values(), ids=DISTANCES)
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(loss: Loss, shape: tuple[int, ...]) -> None:
    student = draw(shape)
    assert loss(student, student.detach().clone()).item() == pytest.approx(0, abs=1e-12)
    assert gradient(loss, student, student.detach().clone()).abs().max() < 1e-12


def test_a_student_on_the_teachers_side_of_every_boundary_by_the_margin_has_nothing_to_learn() -> None:
    teacher = draw((2, 3, 4, 4)).detach()
    student = (teacher.sign() * 1.5 + teacher).requires_grad_()
    assert ab_loss(student, teacher, margin=1.5).item() == 0
    assert not gradient(partial(ab_loss, margin=1.5), student, teacher).any()
    assert ab_loss(student, teacher, margin=2.0) > 0
    assert ab_loss(teacher, teacher, margin=1.0) > 0  # the same side is not enough


@every_loss
def test_any_other_student_has(loss: Loss) -> None:
    assert loss(draw((2, 3, 4, 4)), draw((2, 3, 4, 4), seed=1)) > 1e-4


@every_loss
def test_repeating_or_permuting_a_batch_changes_nothing(loss: Loss) -> None:
    student, teacher = draw((3, 2, 4, 4)), draw((3, 2, 4, 4), seed=1)
    expected = loss(student, teacher)
    torch.testing.assert_close(loss(student.repeat(3, 1, 1, 1), teacher.repeat(3, 1, 1, 1)), expected)
    torch.testing.assert_close(loss(student[[2, 0, 1]], teacher[[2, 0, 1]]), expected)


@every_loss
def test_the_order_of_channels_or_classes_changes_nothing(loss: Loss) -> None:
    student, teacher = draw((2, 3, 4, 4)), draw((2, 3, 4, 4), seed=1)
    torch.testing.assert_close(loss(student[:, [2, 0, 1]], teacher[:, [2, 0, 1]]), loss(student, teacher))


@pytest.mark.parametrize("name", [name for name in PAIRS if name.startswith(("ft", "catkd"))])
def test_the_size_of_a_factor_or_of_a_class_activation_map_does_not_count(name: str) -> None:
    loss, student, teacher = PAIRS[name][0], draw((2, 3, 4, 4)), draw((2, 3, 4, 4), seed=1)
    torch.testing.assert_close(loss(7 * student, 0.01 * teacher), loss(student, teacher))


def test_ofd_ignores_how_far_below_zero_a_student_is_where_the_teacher_is_silent() -> None:
    teacher, margin = torch.tensor([[[[-3.0, -0.5, 2.0]]]]), torch.tensor([[[-1.0]]])
    loss = partial(ofd_loss, teacher_feature=teacher, margin=margin)
    assert loss(torch.tensor([[[[-9.0, -9.0, 2.0]]]])) == 0
    assert loss(torch.tensor([[[[-1.0, -0.5, 2.0]]]])) == 0  # the margin, and not the teacher's −3
    # above the margin, above a teacher above the margin, below a teacher that is active
    assert loss(torch.tensor([[[[1.0, 0.5, -1.0]]]])).item() == 2**2 + 1**2 + 3**2


def test_ab_counts_the_side_of_the_boundary_and_not_the_distance_from_it() -> None:
    student, teacher = draw((2, 3, 4, 4)), draw((2, 3, 4, 4), seed=1)
    torch.testing.assert_close(ab_loss(student, 100 * teacher), ab_loss(student, teacher))
    assert torch.equal(gradient(ab_loss, student, teacher) < 0, (teacher > 0) & (student < 1))


def test_a_neuron_at_zero_is_not_active() -> None:
    assert ab_loss(torch.full((1, 1, 1, 1), -1.0), torch.zeros(1, 1, 1, 1)) == 0


@pytest.mark.parametrize("loss", [ours for ours, _ in SMOOTH.values()], ids=SMOOTH)
def test_the_gradient_is_that_of_finite_differences(loss: Loss) -> None:
    assert torch.autograd.gradcheck(loss, (draw((2, 2, 3, 3)), draw((2, 2, 3, 3), seed=1).detach()))


def test_the_gradient_of_ft_is_that_of_finite_differences_where_no_difference_is_zero() -> None:
    assert torch.autograd.gradcheck(ft_loss, (draw((2, 2, 3, 3)), draw((2, 2, 3, 3), seed=1)))


def test_the_gradients_through_a_frozen_classifier_and_into_a_live_one_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    classifier, teacher = nn.Linear(3, 4).double(), draw((2, 4), seed=1).detach()
    assert torch.autograd.gradcheck(lambda h: srrl_loss(frozen_logits(h, classifier), teacher), (draw((2, 3)),))
    assert torch.autograd.gradcheck(class_activation_maps, (draw((2, 3, 2, 2)), draw((4, 3), seed=1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("loss", "reference"), PAIRS.values(), ids=PAIRS)
def test_gaps_of_ten_thousand_give_the_right_value_and_a_finite_gradient(
    loss: Loss, reference: Reference, dtype: torch.dtype
) -> None:
    student = draw((2, 3, 4, 4), scale=1e4).detach().clamp(-6e4, 6e4).to(dtype).requires_grad_()
    teacher = draw((2, 3, 4, 4), seed=1, scale=1e4).detach().clamp(-6e4, 6e4).to(dtype)
    value = loss(student, teacher)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(reference(array(student), array(teacher)), rel=1e-4)
    assert gradient(loss, student, teacher).isfinite().all()


def test_half_precision_overflows_neither_a_classifier_nor_a_class_activation_map() -> None:
    classifier = nn.Linear(3, 2).half()
    nn.init.constant_(classifier.weight, 1e3)
    vectors = torch.full((1, 3), 1e3, dtype=torch.float16)
    assert frozen_logits(vectors, classifier).isfinite().all()
    assert class_activation_maps(vectors[:, :, None, None], classifier.weight).isfinite().all()


@pytest.mark.parametrize("name", [name for name in PAIRS if name.startswith(("ft", "catkd"))])
def test_a_dead_map_gives_no_nan(name: str) -> None:
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    assert math.isfinite(PAIRS[name][0](student, draw((2, 3, 4, 4)).float().detach()).item())
    assert gradient(PAIRS[name][0], student, torch.ones(2, 3, 4, 4)).isfinite().all()
