"""What ofd, ab, ft and reviewkd own and read: layers, margins, features of any shape; the options of their family."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kd_cli.errors import ConfigError
from kd_cli.losses.adapters import Norm
from kd_cli.losses.base import Distiller, Mix, build_loss
from kd_cli.losses.ofd import NegativeMean
from kd_cli.training.task import Distillation
from kd_cli.types import Batch, Outputs
from tests.losses.references import stages as references
from tests.support.small import SPEC, loss_options, make_batch, make_student, make_teacher

BATCH = make_batch()
MANY = ("ofd", "ab", "ft", "reviewkd")  # methods of any number of features
OWNERS = (*MANY, "simkd", "srrl")  # of layers


def draw(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outputs(*shapes: tuple[int, ...], seed: int = 0) -> Outputs:
    """Features `stage1`, `stage2`, … that want a gradient."""
    features = {f"stage{i + 1}": draw(shape, seed + i).requires_grad_() for i, shape in enumerate(shapes)}
    return Outputs(draw((shapes[0][0], 10), seed), features)


def bound(name: str, student: Outputs, teacher: Outputs, **options: Any) -> Distiller:
    """The method with the options of its yaml, on all stages."""
    method, _ = build_loss({**loss_options(name), "taps": ["stages"], **options})
    torch.manual_seed(0)
    method.bind(student, teacher, SPEC)
    return method.double()


def task_of(name: str, teacher: nn.Module | None = None, **options: Any) -> Distillation:
    method, _ = build_loss({**loss_options(name), **options})
    return Distillation(make_student(), teacher or make_teacher(), method, Mix(0.0, 1.0), SPEC, name=name)


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def smaller(*maps: np.ndarray) -> list[np.ndarray]:
    size = [min(m.shape[i] for m in maps) for i in (2, 3)]
    return [references.average(m, *size) for m in maps]


def no_batch() -> Batch:
    return make_batch(1)


def expected_ofd(method: Distiller, ours: Tensor, theirs: Tensor, i: int) -> float:
    student, teacher = smaller(array(method.connectors[i](ours)), array(theirs))
    return references.ofd(student, teacher, references.negative_mean(teacher))


def expected_ab(method: Distiller, ours: Tensor, theirs: Tensor, i: int) -> float:
    return 3 / 1000 * references.ab(*smaller(array(method.connectors[i](ours)), array(theirs)), 1.0)


@pytest.mark.parametrize(("name", "expected", "weight"), [("ofd", expected_ofd, 1e-3), ("ab", expected_ab, 1.0)])
def test_preactivations_count_half_of_the_next_deeper_ones(name: str, expected: Any, weight: float) -> None:
    student, teacher = outputs((3, 2, 6, 6), (3, 4, 4, 4), (3, 5, 2, 2)), outputs((3, 3, 3, 3), (3, 2, 5, 4), seed=9)
    method = bound(name, student, teacher)  # the teacher has two: the student's two deepest are matched
    value = method(student, teacher, no_batch()).item()
    pairs = zip([student.features["stage2"], student.features["stage3"]], teacher.features.values(), strict=True)
    shallow, deep = (expected(method, ours, theirs, i) for i, (ours, theirs) in enumerate(pairs))
    assert value == pytest.approx(weight * (deep + shallow / 2), rel=1e-5)


@pytest.mark.parametrize("power", [1, 2])
def test_ft_compares_translated_and_paraphrased_factors_and_restores_the_teachers_feature(power: int) -> None:
    student, teacher = outputs((3, 2, 6, 6)), outputs((3, 7, 4, 4), seed=9)
    method = bound("ft", student, teacher, power=power, reconstruction_weight=0.5)
    factor = method.paraphrasers[0](teacher.features["stage1"])
    assert factor.shape == (3, 4, 4, 4)  # half of 7, rounded
    distance = references.ft(*smaller(array(method.translators[0](student.features["stage1"])), array(factor)), power)
    restoring = references.mse(array(method.restorers[0](factor)), array(teacher.features["stage1"]))
    value = method(student, teacher, no_batch()).item()
    assert value == pytest.approx(200 * distance + 0.5 * restoring, rel=1e-6)


def test_reviewkd_equals_its_reference_from_the_deepest_stage_to_the_shallowest() -> None:
    student = outputs((2, 2, 6, 6), (2, 4, 5, 3), (2, 3, 2, 2))
    teacher = outputs((2, 3, 8, 8), (2, 2, 4, 4), (2, 5, 2, 2), seed=9)
    method = bound("reviewkd", student, teacher).eval()
    fused, total, shrink = None, 0.0, 1 / math.sqrt(1 + 1e-5)  # of batch normalisation that has seen nothing
    stages = reversed(list(zip(student.features.values(), teacher.features.values(), strict=True)))
    for fusion, (ours, theirs) in zip(method.fusions, stages, strict=True):
        own = shrink * references.convolve(array(ours), array(fusion.enter[0].weight))
        if fused is not None:
            weights = array(fusion.attention.weight)[:, :, 0, 0], array(fusion.attention.bias)
            own = references.fuse(own, fused, *weights)
        fused = own
        compared = references.average(own, *theirs.shape[2:])
        compared = shrink * references.convolve(compared, array(fusion.leave[0].weight))
        total += references.hcl(compared, array(theirs))
    assert method(student, teacher, no_batch()).item() == pytest.approx(5 * total, rel=1e-6)


def test_the_fused_maps_of_reviewkd_are_never_wider_than_asked_for_or_than_the_deepest_stage() -> None:
    student, teacher = outputs((2, 8, 4, 4), (2, 6, 2, 2)), outputs((2, 9, 4, 4), (2, 9, 2, 2))
    assert bound("reviewkd", student, teacher).fusions[0].enter[0].out_channels == 6
    assert bound("reviewkd", student, teacher, channels=3).fusions[1].enter[0].out_channels == 3


SHAPES = {
    "one pixel": (((1, 3, 1, 1),), ((1, 5, 1, 1),)),
    "vectors": (((1, 3),), ((1, 5),)),
    "a vector and a map": (((1, 3),), ((1, 5, 3, 3),)),
    "more stages of the teacher": (((2, 3, 5, 5),), ((2, 2, 9, 9), (2, 4, 3, 7))),
    "more stages of the student": (((2, 3, 7, 5), (2, 3, 3, 3), (2, 1, 1, 1)), ((2, 2, 9, 9), (2, 4, 2, 2))),
}


@pytest.mark.parametrize(("ours", "theirs"), SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", MANY)
def test_features_of_any_shape_are_compared_in_train_mode(name: str, ours: Any, theirs: Any) -> None:
    student, teacher = outputs(*ours), outputs(*theirs, seed=9)
    loss = bound(name, student, teacher).train()(student, teacher, no_batch())
    loss.backward()
    assert loss.isfinite()
    assert student.features[f"stage{len(ours)}"].grad.isfinite().all()
    assert all(feature.grad is None for feature in teacher.features.values())


@pytest.mark.parametrize("name", [*MANY, "srrl", "catkd", "simkd"])
def test_features_that_are_neither_maps_nor_vectors_are_refused(name: str) -> None:
    tokens = outputs((2, 3, 4))
    with pytest.raises(ValueError, match=r"taps: "):
        bound(name, tokens, tokens)


def test_one_value_per_channel_is_normalised_by_the_running_statistics_and_any_other_as_ever() -> None:
    ours, usual = Norm(3), nn.BatchNorm2d(3)
    several, single = torch.randn(4, 3, 2, 2), torch.randn(1, 3, 1, 1)
    torch.testing.assert_close(ours(several), usual(several))
    torch.testing.assert_close(ours(single), usual.eval()(single))
    assert torch.equal(ours.running_mean, usual.running_mean)
    torch.testing.assert_close(ours(torch.ones(1, 3, 2, 1)), torch.zeros(1, 3, 2, 1))  # two values are a batch


def test_a_margin_is_the_mean_of_all_negative_values_so_far() -> None:
    mean, batches = NegativeMean(4), [draw((n, 4, 3, 3), seed=n).float() for n in (5, 1, 8)]
    for batch in batches:
        batch[:, 2].abs_()  # a channel that is never negative
        margins = mean(batch).clone()
    expected = references.negative_mean(array(torch.cat(batches)))
    np.testing.assert_allclose(array(margins)[:, 0, 0], expected, rtol=1e-5)
    assert margins.shape == (4, 1, 1)
    assert (margins <= 0).all()
    assert margins[2] == 0
    assert torch.equal(mean.eval()(100 * batches[0]), margins)
    other = NegativeMean(4)
    other.load_state_dict(mean.state_dict())
    assert torch.equal(other.train()(batches[0]), mean.train()(batches[0]))


def test_the_margin_of_a_batch_counts_in_its_own_loss() -> None:
    student, teacher = outputs((3, 2, 4, 4)), outputs((3, 2, 4, 4), seed=9)
    method = bound("ofd", student, teacher)
    first = method(student, teacher, no_batch())
    torch.testing.assert_close(method.eval()(student, teacher, no_batch()), method(student, teacher, no_batch()))
    assert method.margins[0].mean.all()
    torch.testing.assert_close(method.train()(student, teacher, no_batch()), first)


def test_the_teachers_batch_normalisation_is_in_eval_mode_whatever_mode_it_came_in() -> None:
    teacher = make_teacher().train()
    before = copy.deepcopy(teacher.state_dict())
    task = task_of("ofd", teacher=teacher).train()
    task(BATCH)
    task.eval()
    task.train()(BATCH).loss.backward()
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    with torch.no_grad():
        pre = teacher.eval().stage3[:2](teacher.stage2(teacher.stage1(BATCH.images)))
    pooled = references.average(array(pre), 2, 2)
    np.testing.assert_allclose(array(task.method.margins[2].mean), references.negative_mean(pooled), rtol=1e-4)


@pytest.mark.parametrize("name", OWNERS)
def test_the_layers_of_a_method_are_trained_and_saved(name: str) -> None:
    task = task_of(name)
    owned = dict(task.method.named_parameters())
    assert owned
    assert {id(parameter) for parameter in task.parameters()} >= {id(parameter) for parameter in owned.values()}
    assert {f"method.{key}" for key in task.method.state_dict()} <= set(task.state_dict())
    task.train()(BATCH).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in owned.values())


def gradients_of_ft(weight: float) -> tuple[list[Tensor], list[Tensor]]:
    task = task_of("ft", ft_weight=weight)
    torch.manual_seed(0)
    for parameter in task.parameters():
        nn.init.normal_(parameter, std=0.3)
    torch.manual_seed(0)
    task.eval()(BATCH).loss.backward()
    teachers = itertools.chain(task.method.paraphrasers.parameters(), task.method.restorers.parameters())
    students = itertools.chain(task.network.stage3.parameters(), task.method.translators.parameters())
    return [p.grad for p in teachers], [p.grad for p in students]


def test_the_paraphraser_learns_from_its_reconstruction_alone_and_the_student_never() -> None:
    alone, students = gradients_of_ft(0.0)
    beside, learned = gradients_of_ft(200.0)
    assert all(torch.equal(one, other) and one.any() for one, other in zip(alone, beside, strict=True))
    assert not any(grad.any() for grad in students)
    assert any(grad.any() for grad in learned)


@pytest.mark.parametrize(
    ("name", "option", "value", "rule"),
    [
        *((name, f"{term}_weight", -1.0, "≥ 0") for name, term in (("ofd", "ofd"), ("ab", "ab"), ("ft", "ft"))),
        *((name, f"{term}_weight", math.nan, "≥ 0") for name, term in (("reviewkd", "hcl"), ("simkd", "simkd"))),
        *(("srrl", f"{term}_weight", -1.0, "≥ 0") for term in ("fm", "sr")),
        ("ab", "margin", 0.0, "> 0"),
        ("ft", "power", 3, "1 or 2"),
        ("ft", "rate", 0.0, "> 0"),
        ("ft", "reconstruction_weight", 0.0, "> 0"),
        ("reviewkd", "channels", 0, "≥ 1"),
        ("simkd", "reduction", 0, "≥ 1"),
        ("catkd", "cat_weight", -1.0, "≥ 0"),
        ("catkd", "resolution", 1, "≥ 2"),
    ],
)
def test_a_number_outside_its_range_is_refused_by_its_key(name: str, option: str, value: float, rule: str) -> None:
    with pytest.raises(ConfigError, match=rf"^loss\.{option}: {value} is not possible; it must be {rule}"):
        build_loss({**loss_options(name), option: value})
