"""wkd_f, sdd, ofa, vkd and encoder: areas, exits, projections, and what others got wrong."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kd_cli.errors import ConfigError
from kd_cli.losses.base import Mix, build_loss
from kd_cli.losses.encoder import Encoder, encoder_loss
from kd_cli.losses.kd import kd_loss
from kd_cli.losses.ofa import OFA, ofa_loss
from kd_cli.losses.sdd import sdd_loss
from kd_cli.losses.soft_ce import soft_ce_loss
from kd_cli.losses.vkd import OrthogonalProjection, vkd_loss
from kd_cli.losses.wkd_f import wkd_f_loss
from kd_cli.training.task import Distillation
from kd_cli.types import Outputs
from tests.losses.references import recent as references
from tests.support.heads import HEADS, headed
from tests.support.small import SPEC, batch_of, draw, loss_options, make_batch, make_student, make_teacher, spec

BATCH = make_batch()
LABELS = torch.tensor([1, 0, 3, 3, 2])
NOTHING = Outputs(torch.zeros(0, 0))


def task_of(name: str, student: nn.Module, teacher: nn.Module | None, **options: Any) -> Distillation:
    """In eval mode, the method alone."""
    method, _ = build_loss({**loss_options(name), **options})
    torch.manual_seed(0)
    return Distillation(student, teacher, method, Mix(0.0, 1.0), SPEC, name=name).eval()


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


# --- wkd_f


def test_a_map_of_one_position_has_a_mean_and_no_spread() -> None:
    student, teacher = draw(3, 4, 1, 1), draw(3, 4, 1, 1, seed=1)
    loss = wkd_f_loss(student, teacher, mean_weight=1.0, std_weight=1.0)  # the authors' variance is 0/0 there
    torch.testing.assert_close(loss, (student - teacher).square().sum(dim=1).mean())
    assert torch.autograd.grad(loss, student)[0].isfinite().all()


def test_a_small_spread_around_a_large_mean_is_seen_in_float32() -> None:
    random = torch.Generator().manual_seed(0)
    maps = 1e4 + torch.randn(2, 3, 8, 8, generator=random)
    for grid in (1, 2):
        loss = wkd_f_loss(maps, torch.full_like(maps, 1e4), 0.0, 1.0, grid)
        expected = references.wkd_f(array(maps), array(torch.full_like(maps, 1e4)), 0.0, 1.0, grid)
        assert loss.item() == pytest.approx(expected, rel=1e-3)


def test_where_in_an_area_a_channel_answers_does_not_count_but_in_which_area() -> None:
    student, teacher = draw(2, 3, 4, 4), draw(2, 3, 4, 4, seed=1)
    turned = student.rot90(2, dims=(2, 3))
    torch.testing.assert_close(wkd_f_loss(turned, teacher), wkd_f_loss(student, teacher))
    assert not torch.isclose(wkd_f_loss(turned, teacher, grid=2), wkd_f_loss(student, teacher, grid=2))
    assert not torch.isclose(wkd_f_loss(student.flip(1), teacher), wkd_f_loss(student, teacher))


# --- sdd


@pytest.mark.parametrize(("images", "areas", "classes"), [(1, 1, 2), (5, 5, 4), (4, 21, 10)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_sdd_equals_its_reference(images: int, areas: int, classes: int, temperature: float) -> None:
    student, teacher = draw(images, areas, classes), draw(images, areas, classes, seed=1, scale=3.0)
    labels = torch.arange(images) % classes
    expected = references.sdd(array(student), array(teacher), labels.numpy(), 3.0, temperature)
    assert sdd_loss(student, teacher, labels, 3.0, temperature).item() == pytest.approx(expected, rel=1e-9)


def test_sdd_asks_the_classifiers_about_every_area() -> None:
    networks = headed("average"), headed("average", seed=1, channels=9, size=7)
    task = task_of("sdd", *networks, kl_weight=0.5)
    said = [
        references.area_logits(array(o.features["final"]), array(n.head[1].weight), array(n.head[1].bias), [1, 2, 4])
        for n, o in zip(networks, task.example(BATCH.images), strict=True)
    ]
    expected = 0.5 * references.sdd(*said, BATCH.labels.numpy(), 2.0, 4.0)
    assert task(BATCH).loss.item() == pytest.approx(expected, rel=1e-5)


def test_an_area_that_is_right_where_the_image_is_wrong_counts_twice_and_so_does_the_opposite() -> None:
    student = torch.zeros(2, 2, 2)
    teacher = torch.tensor([[[3.0, 0.0], [0.0, 3.0]], [[3.0, 0.0], [3.0, 0.0]]])
    each = kd_loss(student[0, :1], teacher[0, :1])
    for labels in ([0, 0], [1, 1]):  # the first image's areas disagree about either of them, the second's do not
        loss = sdd_loss(student, teacher, torch.tensor(labels))
        torch.testing.assert_close(loss, each * (1 + 2 + 1 + 1) / 4)


def test_sdd_of_the_whole_image_is_kd() -> None:
    student, teacher = draw(5, 1, 4), draw(5, 1, 4, seed=1)
    torch.testing.assert_close(sdd_loss(student, teacher, LABELS), kd_loss(student[:, 0], teacher[:, 0]))
    networks = headed("average"), headed("average", seed=1, channels=9)
    kd = task_of("kd", *networks)(BATCH).loss
    torch.testing.assert_close(task_of("sdd", *networks, scales=[1])(BATCH).loss, kd)


def test_scales_beyond_the_pixels_are_left_out_and_the_whole_image_is_always_there() -> None:
    small, large = headed("average", size=3), headed("average", seed=1, size=8)
    assert task_of("sdd", large, large).method.areas == [1, 2, 4]
    assert task_of("sdd", small, large).method.areas == [1, 2]
    assert task_of("sdd", large, small, scales=[3, 2, 2]).method.areas == [1, 2, 3]
    with pytest.raises(ValueError, match=r"^taps: all maps are compared at a single pixel"):
        task_of("sdd", headed("one pixel"), large)


def test_sdd_hides_no_number_that_is_none() -> None:
    student, teacher = draw(5, 5, 4), draw(5, 5, 4, seed=1)
    for value in (math.nan, math.inf):
        broken = student.detach().clone()
        broken[1, 2, 3] = value
        assert not sdd_loss(broken, teacher, LABELS).isfinite()


def test_both_classifiers_judge_areas_and_the_students_alone_learns() -> None:
    student, teacher = headed("average"), headed("average", seed=1, channels=9)
    task = task_of("sdd", student, teacher)
    teacher.requires_grad_(True)
    task(BATCH).loss.backward()
    assert student.head[1].weight.grad.any()
    assert student.stage[0].weight.grad.any()
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("head", [head for head in HEADS if head not in ("average", "one pixel")])
def test_sdd_refuses_a_network_whose_classifier_does_not_read_an_average(head: str) -> None:
    with pytest.raises(ValueError, match=r"^taps: \['final'\] is not the feature map"):
        task_of("sdd", headed(head), headed("average"))


def test_logits_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must both be \[B, R, K\], not \[5, 4\] and \[5, 4\]"):
        sdd_loss(draw(5, 4), draw(5, 4), LABELS)


# --- ofa


@pytest.mark.parametrize(("images", "classes"), [(1, 2), (5, 4), (8, 100)])
@pytest.mark.parametrize(("epsilon", "temperature"), [(1.0, 1.0), (1.5, 1.0), (0.5, 4.0)])
def test_ofa_equals_its_reference(images: int, classes: int, epsilon: float, temperature: float) -> None:
    student, teacher = draw(images, classes), draw(images, classes, seed=1, scale=3.0)
    labels = torch.arange(images) % classes
    expected = references.ofa(array(student), array(teacher), labels.numpy(), epsilon, temperature)
    assert ofa_loss(student, teacher, labels, epsilon, temperature).item() == pytest.approx(expected, rel=1e-9)


def test_ofa_with_an_exponent_of_one_is_cross_entropy_with_soft_targets() -> None:
    student, teacher = draw(5, 4), draw(5, 4, seed=1)
    torch.testing.assert_close(ofa_loss(student, teacher, LABELS, 1.0), soft_ce_loss(student, teacher, 1.0))


def test_a_larger_exponent_makes_the_label_louder_and_other_classes_quieter() -> None:
    student, teacher = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)
    loss = ofa_loss(student, teacher, torch.tensor([0]), 2.0)
    assert loss.item() == pytest.approx(math.log(2) * ((1.75**2 - 1) + 0.25**2))


def test_repeating_a_batch_or_shifting_logits_changes_nothing() -> None:
    student, teacher = draw(5, 4), draw(5, 4, seed=1)
    expected = ofa_loss(student, teacher, LABELS)
    torch.testing.assert_close(ofa_loss(student.repeat(2, 1), teacher.repeat(2, 1), LABELS.repeat(2)), expected)
    torch.testing.assert_close(ofa_loss(student + 50, teacher - 50, LABELS), expected)


@pytest.mark.parametrize("loss", [ofa_loss, sdd_loss])
def test_the_gradient_is_that_of_finite_differences_and_none_is_the_teachers(loss: Any) -> None:
    shape = (5, 4) if loss is ofa_loss else (5, 3, 4)
    student, teacher = draw(*shape), draw(*shape, seed=1)
    assert torch.autograd.gradcheck(lambda z: loss(z, teacher.detach(), LABELS), (student,))
    loss(student, teacher, LABELS).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", [ofa_loss, sdd_loss])
def test_logit_gaps_of_ten_thousand_give_a_finite_value_and_gradient(loss: Any, dtype: torch.dtype) -> None:
    shape = (5, 4) if loss is ofa_loss else (5, 3, 4)  # the authors' log of a softmax is −∞ there
    student, teacher = (draw(*shape, seed=i).detach().sign().mul(1e4).to(dtype).requires_grad_() for i in (0, 1))
    value = loss(student, teacher, LABELS)
    assert value.dtype is torch.float32
    assert value.isfinite()
    assert torch.autograd.grad(value, student)[0].isfinite().all()


def test_ofa_asks_the_teacher_for_logits_alone_and_any_network_can_be_one() -> None:
    teacher = headed("nothing published")
    task = task_of("ofa", make_student(), teacher)
    assert task.teacher_taps == ()
    assert len(task.method.exits) == 3
    assert task.deployed is task.network
    assert task.train()(BATCH).loss.isfinite()


def test_ofa_is_the_sum_of_its_exits_and_of_the_students_own_logits() -> None:
    task = task_of("ofa", make_student(), make_teacher(), exit_weight=2.0, logit_weight=0.5)
    student, teacher = task.example(BATCH.images)
    exits = [leave(maps) for leave, maps in zip(task.method.exits, student.features.values(), strict=True)]
    each = partial(
        references.ofa, teacher=array(teacher.logits), labels=BATCH.labels.numpy(), epsilon=1.5, temperature=1
    )
    expected = 2 * sum(each(array(logits)) for logits in exits) + 0.5 * each(array(student.logits))
    assert task(BATCH).loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_shallower_a_stage_the_more_its_exit_halves_it() -> None:
    method = OFA()
    maps = {"stage1": draw(2, 3, 8, 8), "stage2": draw(2, 4, 4, 4), "stage3": draw(2, 6, 2, 2)}
    method.bind(Outputs(draw(2, 4), maps), Outputs(draw(2, 4)), spec(4))
    shapes = [tuple(leave.double().blocks(m).shape) for leave, m in zip(method.exits, maps.values(), strict=True)]
    assert shapes == [(2, 6, 2, 2), (2, 6, 2, 2), (2, 6, 2, 2)]


def test_stages_that_are_vectors_have_exits_without_convolutions_over_positions() -> None:
    method = OFA(taps=["stage1", "stage2"])
    vectors = {"stage1": draw(5, 3), "stage2": draw(5, 6)}
    outputs = Outputs(draw(5, 4), vectors), Outputs(draw(5, 4))
    method.bind(*outputs, spec(4))
    assert method.double()(*outputs, batch_of(LABELS)).isfinite()
    assert all(parameter.shape[2:] in ((), (1, 1)) for parameter in method.parameters())


def test_networks_of_other_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must both be \[B, K\]"):
        OFA().bind(Outputs(draw(2, 4), {"stage1": draw(2, 3)}), Outputs(draw(2, 7)), spec(4))


# --- vkd


@pytest.mark.parametrize(("ours", "theirs"), [(3, 7), (7, 3), (5, 5), (1, 4), (4, 1)])
def test_the_projection_is_orthogonal_whatever_was_learned(ours: int, theirs: int) -> None:
    torch.manual_seed(0)
    project = OrthogonalProjection(ours, theirs).double()
    project.base = torch.linalg.qr(project.base).Q  # it was drawn in float32
    first = project.matrix().detach()
    for turns in (torch.zeros_like(project.turns), 3 * torch.randn_like(project.turns)):
        with torch.no_grad():
            project.turns.copy_(turns)
        matrix = project.matrix()
        assert matrix.shape == (theirs, ours)
        small = matrix.mT @ matrix if ours <= theirs else matrix @ matrix.mT
        torch.testing.assert_close(small, torch.eye(min(ours, theirs), dtype=torch.float64))
    assert max(ours, theirs) == 1 or not torch.allclose(matrix, first)


def test_a_projection_into_more_dimensions_keeps_every_inner_product() -> None:
    torch.manual_seed(0)
    project, vectors = OrthogonalProjection(6, 10), draw(5, 6).float()
    torch.nn.init.normal_(project.turns)
    torch.testing.assert_close(project(vectors) @ project(vectors).T, vectors @ vectors.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("ours", "theirs"), [(2, 4), (4, 2)])
def test_the_gradient_through_the_projection_is_that_of_finite_differences(ours: int, theirs: int) -> None:
    project, vectors = OrthogonalProjection(ours, theirs).double(), draw(3, ours)
    names = [name for name, _ in project.named_parameters()]

    def projected(x: Tensor, turns: Tensor) -> Tensor:
        return torch.func.functional_call(project, {names[0]: turns}, (x,))

    assert torch.autograd.gradcheck(projected, (vectors, draw(4, 2, seed=1)))


def test_the_projection_is_still_orthogonal_after_a_training() -> None:
    task = task_of("vkd", make_student(), make_teacher())
    optimizer = torch.optim.SGD(task.parameters(), lr=0.5, momentum=0.9)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = task(BATCH).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    matrix = task.method.projections[0].matrix()
    torch.testing.assert_close(matrix.mT @ matrix, torch.eye(8), rtol=1e-5, atol=1e-5)
    assert task.method.projections[0].turns.abs().max() > 0.01
    assert losses[-1] < losses[0]


def test_the_size_and_the_mean_of_a_teachers_embedding_do_not_count() -> None:
    student, teacher = draw(5, 6), draw(5, 6, seed=1)
    expected = vkd_loss(student, teacher)
    torch.testing.assert_close(vkd_loss(student, 7 * teacher + 3), expected, rtol=1e-4, atol=1e-4)
    assert not torch.isclose(vkd_loss(7 * student, teacher), expected)


def test_a_student_at_the_normalised_embedding_has_nothing_to_learn() -> None:
    teacher = draw(5, 6, seed=1).detach()
    student = nn.functional.layer_norm(teacher, (6,)).requires_grad_()
    assert vkd_loss(student, teacher).item() == pytest.approx(0, abs=1e-14)
    assert not torch.autograd.grad(vkd_loss(student, teacher), student)[0].any()


def test_of_maps_the_average_is_projected() -> None:
    student, teacher = headed("average"), headed("average", seed=1, channels=9, size=7)
    expected = task_of("vkd", student, teacher)(BATCH).loss
    torch.testing.assert_close(task_of("vkd", student, teacher, taps=["final"])(BATCH).loss, expected)


# --- encoder


def test_the_cosine_is_blind_to_lengths_and_the_mean_square_is_not() -> None:
    student, teacher = draw(5, 3, 4, 2), draw(5, 3, 4, 2, seed=1)
    torch.testing.assert_close(encoder_loss(7 * student, 0.1 * teacher), encoder_loss(student, teacher))
    assert not torch.isclose(encoder_loss(7 * student, teacher, "mse"), encoder_loss(student, teacher, "mse"))


@pytest.mark.parametrize("distance", ["cosine", "mse"])
@pytest.mark.parametrize("hidden", [None, 5])
def test_embeddings_and_maps_are_projected_and_the_larger_map_is_averaged(distance: str, hidden: int | None) -> None:
    options = {"distance": distance, "hidden": hidden, "encoder_weight": 0.5, "taps": ["embedding", "final"]}
    task = task_of("encoder", headed("average"), headed("average", seed=1, channels=9, size=8), **options)
    student, teacher = task.example(BATCH.images)
    expected = 0.0
    for project, tap in zip(task.method.projectors, ("embedding", "final"), strict=True):
        wanted = teacher.features[tap]
        wanted = nn.functional.avg_pool2d(wanted, 2) if tap == "final" else wanted
        expected += 0.5 * references.encoder(array(project(student.features[tap])), array(wanted), distance)
        assert len(project.layers) == (3 if hidden else 1)
    assert task(BATCH).loss.item() == pytest.approx(expected, rel=1e-5)


def test_an_encoders_classes_and_the_labels_may_be_anything() -> None:
    """Another number of logits, and images that have two labels."""
    teacher = make_teacher()
    teacher.classifier = nn.Linear(12, 3)
    method, _ = build_loss(loss_options("encoder"))
    mix = Mix(ce_weight=0.0, weight=1.0)
    task = Distillation(make_student(), teacher, method, mix, SPEC, name="encoder", mixed=True)
    task.train()(BATCH).loss.backward()
    assert task.network.stage1[0].weight.grad.any()
    assert task.network.classifier.weight.grad is None


@pytest.mark.parametrize("name", ["vkd", "wkd_f"])
def test_other_methods_that_read_no_label_take_mixed_images_too(name: str) -> None:
    method, _ = build_loss(loss_options(name))
    mix = Mix(ce_weight=0.0, weight=1.0)
    task = Distillation(make_student(), make_teacher(), method, mix, SPEC, name=name, mixed=True)
    task.train()(BATCH).loss.backward()
    assert task.network.stage1[0].weight.grad.any()


def test_an_unknown_distance_and_features_of_two_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^distance: l1 is not possible; it must be cosine or mse"):
        encoder_loss(draw(2, 3), draw(2, 3), "l1")
    with pytest.raises(ConfigError, match=r"loss\.distance"):
        build_loss({**loss_options("encoder"), "distance": "l1"})
    with pytest.raises(ValueError, match=r"^taps: .* cannot be compared with"):
        Encoder().bind(
            Outputs(draw(2, 4), {"embedding": draw(2, 3)}), Outputs(draw(2, 4), {"embedding": draw(2, 3, 1, 1)}), SPEC
        )
    for loss in (encoder_loss, vkd_loss):
        with pytest.raises(ValueError, match=r"^taps: .* must have one shape, not \[2, 3\] and \[2, 4\]"):
            loss(draw(2, 3), draw(2, 4))
    with pytest.raises(ValueError, match=r"^taps: channels are compared one by one, and 3 are not 2"):
        wkd_f_loss(draw(2, 3, 2, 2), draw(2, 2, 2, 2))


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("wkd_f", "mean_weight", -1.0),
        ("wkd_f", "std_weight", math.nan),
        ("wkd_f", "grid", 0),
        ("sdd", "temperature", 0.0),
        ("sdd", "kl_weight", -1.0),
        ("sdd", "complementary_weight", math.inf),
        ("ofa", "epsilon", 0.0),
        ("ofa", "temperature", -1.0),
        ("ofa", "exit_weight", -1.0),
        ("ofa", "logit_weight", -1.0),
        ("vkd", "vkd_weight", -1.0),
        ("encoder", "hidden", 0),
        ("encoder", "encoder_weight", -1.0),
    ],
)
def test_a_number_outside_its_range_is_refused_by_its_key(name: str, option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^loss\.{option}: {value} is not possible; it must be "):
        build_loss({**loss_options(name), option: value})


def test_a_scale_of_no_area_is_refused_by_its_key() -> None:
    with pytest.raises(ConfigError, match=r"^loss\.scales"):
        build_loss({**loss_options("sdd"), "scales": [1, 0]})
