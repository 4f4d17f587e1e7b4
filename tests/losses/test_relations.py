"""Losses of the relations between images and between channels: rkd, cc, ickd."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kd_cli.errors import ConfigError
from kd_cli.losses.base import Mix, build_loss
from kd_cli.losses.cc import cc_loss, correlation
from kd_cli.losses.common import unit
from kd_cli.losses.ickd import channel_correlation, ickd_loss
from kd_cli.losses.rkd import angles, relative_distances, rkd_angle_loss, rkd_distance_loss
from kd_cli.training.task import Distillation
from kd_cli.types import Batch, DataSpec, Outputs
from tests.losses.references import relations as references
from tests.support.small import SPEC, loss_options, make_batch, make_student, make_teacher

Loss = Callable[[Tensor, Tensor], Tensor]
Reference = Callable[[np.ndarray, np.ndarray], float]

# name → our function of (student, teacher) and the reference of the same options
OF_EMBEDDINGS: dict[str, tuple[Loss, Reference]] = {
    "rkd distance": (rkd_distance_loss, references.rkd_distance),
    "rkd angle": (rkd_angle_loss, references.rkd_angle),
    **{
        f"cc, gamma = {gamma}, order = {order}": (
            partial(cc_loss, gamma=gamma, order=order),
            partial(references.cc, gamma=gamma, order=order),
        )
        for gamma, order in ((0.4, 2), (1.5, 1), (0.1, 5))
    },
}
LOSSES: dict[str, tuple[Loss, tuple[int, ...], tuple[int, ...]]] = {
    **{name: (loss, (5, 6), (5, 9)) for name, (loss, _) in OF_EMBEDDINGS.items()},
    "ickd": (ickd_loss, (5, 4, 3, 3), (5, 4, 6, 5)),
}
every_loss = pytest.mark.parametrize(("loss", "student_shape", "teacher_shape"), LOSSES.values(), ids=LOSSES)
NAMES = ("rkd", "cc", "ickd")


def draw(shape: tuple[int, ...], seed: int = 0, scale: float = 1.0) -> Tensor:
    """Float64 numbers that want a gradient."""
    random = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=random, dtype=torch.float64)).requires_grad_()


def gradient(loss: Loss, student: Tensor, teacher: Tensor) -> Tensor:
    return torch.autograd.grad(loss(student, teacher), student)[0]


@pytest.mark.parametrize(("batch", "ours", "theirs"), [(1, 3, 4), (2, 5, 5), (4, 1, 7), (7, 8, 3)])
@pytest.mark.parametrize(("loss", "reference"), OF_EMBEDDINGS.values(), ids=OF_EMBEDDINGS)
def test_a_loss_of_embeddings_equals_its_reference(
    loss: Loss, reference: Reference, batch: int, ours: int, theirs: int
) -> None:
    student, teacher = draw((batch, ours), scale=3.0), draw((batch, theirs), seed=1)
    expected = reference(student.detach().numpy(), teacher.detach().numpy())
    assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-6, abs=1e-15)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [((1, 2, 1, 1), (1, 2, 1, 1)), ((3, 5, 4, 4), (3, 5, 4, 4)), ((2, 4, 2, 3), (2, 4, 8, 5)), ((4, 1, 2, 2),) * 2],
)
def test_ickd_equals_its_reference(ours: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    student, teacher = draw(ours, scale=3.0), draw(theirs, seed=1)
    expected = references.ickd(student.detach().numpy(), teacher.detach().numpy())
    assert ickd_loss(student, teacher).item() == pytest.approx(expected, rel=1e-6, abs=1e-15)


def test_rkd_of_a_case_worked_by_hand() -> None:
    student, teacher = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    # distances 1, 3, 2 (mean 2) and 3, 4, 5 (mean 4); every pair counts twice, and three zeros with them
    by_hand = 2 * sum((a / 2 - b / 4) ** 2 / 2 for a, b in ((1, 3), (3, 4), (2, 5))) / 9
    assert rkd_distance_loss(student, teacher).item() == pytest.approx(by_hand, rel=1e-6)
    # angles on a line: 0, π, 0; of the triangle: cosines 0, 3/5, 4/5; each twice
    by_hand = 2 * sum(references._huber(a - b) for a, b in ((1, 0), (-1, 3 / 5), (1, 4 / 5))) / 27
    assert rkd_angle_loss(student, teacher).item() == pytest.approx(by_hand, rel=1e-6)


def test_the_expansion_of_cc_becomes_the_gaussian_kernel() -> None:
    x = unit(draw((6, 4)).detach())
    squares = torch.cdist(x, x).square()
    torch.testing.assert_close(correlation(5 * x, gamma=0.7, order=25), torch.exp(-0.7 * squares))


@every_loss
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(
    loss: Loss, student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]
) -> None:
    student = draw(student_shape)
    assert loss(student, student.detach()).item() == pytest.approx(0, abs=1e-15)
    assert gradient(loss, student, student.detach()).abs().max() < 1e-12
    assert loss(student, draw(teacher_shape, seed=1)) > 1e-5


@every_loss
def test_the_scale_of_the_student_and_the_order_and_repetition_of_images_do_not_matter(
    loss: Loss, student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]
) -> None:
    student, teacher = draw(student_shape), draw(teacher_shape, seed=1)
    expected, order = loss(student, teacher), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(loss(7 * student, 0.1 * teacher), expected)
    torch.testing.assert_close(loss(student[order], teacher[order]), expected)
    twice = [torch.cat([feature, feature]) for feature in (student, teacher)]
    torch.testing.assert_close(loss(*twice), expected)


@pytest.mark.parametrize("loss", [rkd_distance_loss, rkd_angle_loss])
def test_rkd_knows_no_origin_and_no_axes(loss: Loss) -> None:
    student, teacher = draw((5, 6)), draw((5, 4), seed=1)
    rotation = torch.linalg.qr(draw((6, 6), seed=2).detach())[0]
    torch.testing.assert_close(loss(student @ rotation + 3, teacher), loss(student, teacher))


def test_cc_knows_no_axes_but_an_origin() -> None:
    student, teacher = draw((5, 6)), draw((5, 4), seed=1)
    rotation = torch.linalg.qr(draw((6, 6), seed=2).detach())[0]
    torch.testing.assert_close(cc_loss(student @ rotation, teacher), cc_loss(student, teacher))
    assert not torch.isclose(cc_loss(student + 3, teacher), cc_loss(student, teacher))


def test_ickd_knows_no_positions_but_channels() -> None:
    student, teacher = draw((5, 4, 3, 3)), draw((5, 4, 3, 3), seed=1)
    moved = student.flatten(2)[:, :, torch.randperm(9)].unflatten(2, (3, 3))
    torch.testing.assert_close(ickd_loss(moved, teacher), ickd_loss(student, teacher))
    assert not torch.isclose(ickd_loss(student.flip(1), teacher), ickd_loss(student, teacher))
    torch.testing.assert_close(ickd_loss(student.flip(1), teacher.flip(1)), ickd_loss(student, teacher))


@every_loss
def test_the_gradient_is_that_of_finite_differences_and_none_is_the_teachers(
    loss: Loss, student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]
) -> None:
    student, teacher = draw(student_shape), draw(teacher_shape, seed=1)
    assert torch.autograd.gradcheck(lambda values: loss(values, teacher.detach()), (student,))
    loss(student, teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_loss
def test_half_precision_is_computed_in_float32(
    loss: Loss, student_shape: tuple[int, ...], teacher_shape: tuple[int, ...], dtype: torch.dtype, scale: float
) -> None:
    student, teacher = (
        draw(shape, seed, scale).detach().to(dtype) for seed, shape in enumerate((student_shape, teacher_shape))
    )
    student.requires_grad_()
    value = loss(student, teacher)
    assert value.dtype is torch.float32
    torch.testing.assert_close(value, loss(student.float(), teacher.float()))
    assert gradient(loss, student, teacher).isfinite().all()


@every_loss
def test_autocast_does_not_coarsen_the_products(
    loss: Loss, student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]
) -> None:
    student, teacher = draw(student_shape).float(), draw(teacher_shape, seed=1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(student, teacher)
    torch.testing.assert_close(inside, loss(student, teacher))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", [rkd_distance_loss, rkd_angle_loss])
@pytest.mark.parametrize("rows", [[0, 0, 1, 2], [0, 0, 0, 0], [0, 0], [0]], ids=str)
def test_equal_images_have_no_distance_no_angle_and_no_wild_gradient(
    rows: list[int], loss: Loss, dtype: torch.dtype
) -> None:
    student = draw((3, 6)).detach().to(dtype)[rows].requires_grad_()
    teacher = draw((4, 5), seed=1).to(dtype)[: len(rows)]
    assert loss(student, teacher).isfinite()
    assert gradient(loss, student, teacher).abs().max() < 1  # neither NaN nor 1e12
    assert loss(teacher, student).isfinite()  # and when it is the teacher for whom they are equal


def test_equal_images_do_not_enter_the_mean_distance() -> None:
    embeddings = draw((3, 6)).detach()
    once, twice = relative_distances(embeddings), relative_distances(embeddings.repeat(2, 1))
    torch.testing.assert_close(twice[:3, :3], once)
    assert once.sum().item() == pytest.approx(6)


def test_an_angle_is_at_its_first_index() -> None:
    corner = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 5.0]])
    assert angles(corner)[0, 1, 2] == 0
    assert angles(corner)[1, 0, 2].item() == pytest.approx(2 / math.sqrt(29))


def test_dead_channels_and_black_images_give_no_wild_gradient() -> None:
    maps = draw((3, 4, 2, 2)).detach()
    maps[0], maps[1, 2] = 0, 0
    maps.requires_grad_()
    assert gradient(ickd_loss, maps, draw((3, 4, 3, 3), seed=1)).abs().max() < 10
    assert gradient(cc_loss, maps.flatten(1), draw((3, 5), seed=1)).abs().max() < 10
    assert channel_correlation(maps)[0].abs().max() == 0


def test_a_unit_vector_has_length_one_and_a_vector_of_zeros_none() -> None:
    vectors = torch.cat([draw((2, 5)), torch.zeros(1, 5, dtype=torch.float64)])
    torch.testing.assert_close(unit(vectors).norm(dim=1), torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(unit(vectors[:2].T, dim=0).T, unit(vectors[:2]))


def outputs() -> tuple[Outputs, Outputs, Batch]:
    """Float64 features of unequal widths and sizes."""
    shapes = {"stage-1": ((6, 4, 3, 3), (6, 5, 2, 4)), "embedding": ((6, 7), (6, 5))}
    student, teacher = ({tap: draw(pair[side], side) for tap, pair in shapes.items()} for side in (0, 1))
    return Outputs(draw((6, 10)), student), Outputs(draw((6, 10)), teacher), make_batch(6)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("rkd", lambda s, t: 25 * references.rkd_distance(s, t) + 50 * references.rkd_angle(s, t)),
        ("cc", lambda s, t: 100 * references.cc(s, t, 0.4, 2)),
    ],
)
def test_a_method_of_embeddings_with_the_options_of_its_yaml_is_its_weights_times_its_references(
    name: str, reference: Reference
) -> None:
    method, _ = build_loss(loss_options(name))
    student, teacher, batch = outputs()
    method.bind(student, teacher, SPEC)
    expected = reference(*(side.features["embedding"].detach().numpy() for side in (student, teacher)))
    assert method(student, teacher, batch).item() == pytest.approx(expected, rel=1e-6)
    assert not method.state_dict()


def test_ickd_with_the_options_of_its_yaml_is_its_weight_times_its_reference_of_the_connected_student() -> None:
    method, _ = build_loss(loss_options("ickd"))
    student, teacher, batch = outputs()
    method.bind(student, teacher, SPEC)
    ours, theirs = (side.features["stage-1"].detach() for side in (student, teacher))
    projection, *affine = (parameter.detach() for parameter in method.double().parameters())
    maps = torch.einsum("oc,bchw->bohw", projection.flatten(1), ours).numpy()
    mean, variance = (moment(maps, axis=(0, 2, 3), keepdims=True) for moment in (np.mean, np.var))
    assert [values.unique().tolist() for values in affine] == [[1.0], [0.0]]  # as batch normalisation begins
    expected = 2.5 * references.ickd((maps - mean) / np.sqrt(variance + 1e-5), theirs.numpy())
    loss = method(student, teacher, batch)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    gradients = torch.autograd.grad(loss, [*method.parameters(), student.features["stage-1"]])
    assert all(gradient.any() for gradient in gradients)


@pytest.mark.parametrize(
    ("name", "taps"), [("rkd", ["embedding", "stage3"]), ("cc", ["embedding"] * 2), ("ickd", ["stages"])]
)
def test_several_features_are_summed_and_every_connector_is_learned_and_saved(name: str, taps: list[str]) -> None:
    method, _ = build_loss({"name": name, "taps": taps})
    task = Distillation(make_student(), make_teacher(), method, Mix(0.0, 1.0), SPEC, name=name)
    task(make_batch()).loss.backward()
    learned = dict(method.named_parameters())
    assert len(learned) == {"rkd": 0, "cc": 0, "ickd": 9}[name]
    assert all(parameter.grad.any() for parameter in learned.values())
    assert {f"method.{key}" for key in learned} <= task.state_dict().keys()
    assert {id(parameter) for parameter in learned.values()} <= {id(parameter) for parameter in task.parameters()}


@pytest.mark.parametrize("name", NAMES)
def test_two_classes_are_enough(name: str) -> None:
    method, _ = build_loss(loss_options(name))
    student, teacher, batch = outputs()
    method.bind(student, teacher, DataSpec(2, 200, (3, 16, 16), ("a", "b")))
    assert method.double()(student, teacher, batch).isfinite()


def test_ickd_refuses_vectors_and_unequal_channels() -> None:
    method, _ = build_loss({"name": "ickd", "taps": ["embedding"]})
    with pytest.raises(ValueError, match=r"^taps: the method reads feature maps \[B, C, H, W\], not \[2, 8\]"):
        Distillation(make_student(), make_teacher(), method, Mix(), SPEC)
    with pytest.raises(ValueError, match=r"^taps: channels are compared one by one, and 3 are not 4"):
        ickd_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, 4))


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("rkd", "distance_weight", -1.0),
        ("rkd", "angle_weight", math.nan),
        ("cc", "gamma", 0.0),
        ("cc", "order", 0),
        ("cc", "cc_weight", -0.5),
        ("ickd", "ickd_weight", math.inf),
    ],
)
def test_a_number_outside_its_range_is_refused_by_its_key(name: str, option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^loss\.{option}: {value} is not possible; it must be "):
        build_loss({**loss_options(name), option: value})
