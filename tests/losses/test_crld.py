"""Two views of each image: the loss, the batches that have them, and who is refused."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from kd_cli.config.recipe import Recipe
from kd_cli.errors import ConfigError
from kd_cli.experiments.build import build_task
from kd_cli.losses.base import build_loss
from kd_cli.losses.crld import crld_loss
from kd_cli.losses.kd import kd_loss
from tests.losses.references import recent_logits as recent
from tests.support.logits import arrays, draw
from tests.support.small import CPU, logits_only, loss_options, make_data, make_student, make_teacher

everything = {"weak_threshold": 0.0, "strong_threshold": 0.0}
TWO_VIEWS = {"augment": "weak_strong", "repeats": 2}


@pytest.mark.parametrize("shape", [(2, 3), (6, 10), (16, 100)])
def test_crld_equals_its_reference(shape: tuple[int, int]) -> None:
    student, teacher, _ = draw(shape)
    found = crld_loss(student, teacher, 1.5, 0.7, 2.0, 0.6, 0.5)
    assert found.item() == pytest.approx(recent.crld(*arrays(student, teacher), (1.5, 0.7), 2.0, [0.6, 0.5]), rel=1e-9)
    assert torch.autograd.gradcheck(partial(crld_loss, teacher_logits=teacher[:4], **everything), (student[:4],))


def test_crld_with_the_options_of_its_yaml_is_its_reference_whether_a_batch_has_one_view_or_two() -> None:
    method, mix = build_loss(loss_options("crld"))
    student, teacher, batch = logits_only(*draw((6, 5))[:2])
    given = arrays(student.logits, teacher.logits)
    pairs = replace(batch, repeat=torch.arange(6) % 2)
    expected = recent.crld(*given, (2.0, 0.5), 4.0, [0.9, 0.2])
    assert method(student, teacher, pairs).item() == pytest.approx(expected, rel=1e-9)
    twice = recent.crld(*(each.repeat(2, axis=0) for each in given), (2.0, 0.5), 4.0, [0.9, 0.2])
    assert method(student, teacher, batch).item() == pytest.approx(twice, rel=1e-9)
    assert mix.ce_weight == 2.0  # the authors' code sums the cross-entropies of the two views


def test_within_views_alone_and_without_thresholds_crld_is_kd() -> None:
    student, teacher, _ = draw((6, 10))
    within = crld_loss(student, teacher, 1.0, 0.0, **everything)
    torch.testing.assert_close(within, 2 * kd_loss(student, teacher))
    other_view = teacher[[1, 0, 3, 2, 5, 4]]
    cross = crld_loss(student, teacher, 0.0, 1.0, **everything)
    torch.testing.assert_close(cross, 2 * kd_loss(student, other_view))


def test_an_image_of_which_the_teacher_is_not_sure_teaches_nothing_and_the_others_as_before() -> None:
    """A mask that multiplies the mean of the batch, as that of published multi-level distillation, only scales it."""
    student = draw((4, 3))[0]
    teacher = torch.tensor([[9.0, 0, 0], [0.1, 0, 0], [0.1, 0, 0], [9.0, 0, 0]], dtype=torch.float64)
    within = torch.autograd.grad(crld_loss(student, teacher, 1.0, 0.0, strong_threshold=0.9), student)[0]
    assert within[:2].all()  # sure of the weak view of the first image
    assert not within[2:].any()
    cross = torch.autograd.grad(crld_loss(student, teacher, 0.0, 1.0, strong_threshold=0.9), student)[0]
    assert not cross[:2].any()
    assert cross[2:].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_and_large_gaps_are_finite(dtype: torch.dtype) -> None:
    student = torch.tensor([[1e4, 0.0], [0.0, 1e4]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[0.0, 1e4], [0.0, 9e3]], dtype=dtype)
    found = crld_loss(student, teacher)
    found.backward()
    assert found.dtype is torch.float32
    assert found.item() == pytest.approx(recent.crld(*arrays(student, teacher), (2.0, 0.5), 4.0, [0.9, 0.2]), rel=1e-6)
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("temperature", 0.0, "> 0"),
        ("within_weight", -1.0, "≥ 0"),
        ("cross_weight", -1.0, "≥ 0"),
        ("weak_threshold", 1.1, "≥ 0 and ≤ 1"),
        ("strong_threshold", -0.1, "≥ 0 and ≤ 1"),
    ],
)
def test_a_number_outside_its_range_is_refused_by_its_key(option: str, value: float, rule: str) -> None:
    with pytest.raises(ConfigError, match=rf"^loss\.{option}: {value} is not possible; it must be {rule}"):
        build_loss({**loss_options("crld"), option: value})


@pytest.mark.parametrize(
    "loss",
    [
        {"name": "crld"},
        {"name": "combined", "terms": [{"name": "kd"}, {"name": "crld"}]},
        {"name": "logit_standardization", "around": {"name": "crld"}},
    ],
    ids=lambda loss: loss["name"],
)
def test_a_batch_with_another_number_of_views_is_refused_before_anything_is_trained(loss: dict[str, Any]) -> None:
    for repeats in (1, 3):
        data = make_data(augment="weak_strong", repeats=repeats)
        with pytest.raises(ConfigError) as error:
            build_task(loss, make_student(), make_teacher(), data, Recipe(batch_size=12))
        assert str(error.value).endswith(
            f"it compares 2 views of each image, and a batch has {repeats}; type dataset.repeats=2 "
            "dataset.augment=weak_strong"
        )
    build_task(loss, make_student(), make_teacher(), make_data(**TWO_VIEWS), Recipe(batch_size=12))
    build_task({**loss, "weight": 0}, make_student(), None, make_data(), Recipe(batch_size=12))  # the baseline


def test_a_batch_of_two_views_pairs_the_views_of_an_image() -> None:
    data = make_data(**TWO_VIEWS)
    method, _ = build_loss(loss_options("crld"))
    task = build_task(loss_options("crld"), make_student(), make_teacher(), data, Recipe(batch_size=12))
    batch = next(data.train_batches(seed=0, epoch=1, batch_size=12, device=CPU))
    assert batch.repeat is not None
    assert torch.equal(batch.ids[0::2], batch.ids[1::2])
    assert batch.repeat.tolist() == [0, 1] * 6
    outputs = task.example(batch.images)
    found = method(*outputs, batch).item()
    expected = recent.crld(*arrays(outputs[0].logits, outputs[1].logits), (2.0, 0.5), 4.0, [0.9, 0.2])
    assert found == pytest.approx(expected, rel=1e-5)
