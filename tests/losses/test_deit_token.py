"""A student with two heads: one learns from the labels, the other from the teacher."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_cli.errors import ConfigError
from kd_cli.losses.base import build_loss
from kd_cli.losses.deit_token import deit_token_loss
from kd_cli.training.task import Distillation
from tests.losses.references import basic as references
from tests.support.logits import arrays, draw
from tests.support.small import SPEC, loss_options, make_batch, make_student, make_teacher


class TwoHeads(nn.Module):
    """What a transformer with a distillation token is to a loss."""

    taps = {"distill_logits": "distilled"}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.head, self.distilled = (nn.Linear(3 * 16 * 16, SPEC.num_classes) for _ in range(2))

    def forward(self, images: Tensor) -> Tensor:
        own, second = self.head(images.flatten(1)), self.distilled(images.flatten(1))
        return cast(Tensor, own if self.training else (own + second) / 2)


def make_task(student: nn.Module, **options: Any) -> Distillation:
    method, mix = build_loss({**loss_options("deit_token"), **options})
    return Distillation(student, make_teacher(), method, mix, SPEC, name="deit_token", mixed=True)


@pytest.mark.parametrize("shape", [(1, 2), (5, 10), (16, 100)])
def test_deit_token_equals_its_reference(shape: tuple[int, int]) -> None:
    student, teacher, _ = draw(shape)
    given = arrays(student, teacher)
    hard = references.cross_entropy(given[0], given[1].argmax(axis=1))
    assert deit_token_loss(student, teacher).item() == pytest.approx(hard, rel=1e-9)
    soft = references.kd(*given, 3.0)  # summed over the classes: divided by them it would be off by K
    assert deit_token_loss(student, teacher, "soft").item() == pytest.approx(soft, rel=1e-9)
    for form in ("hard", "soft"):
        assert torch.autograd.gradcheck(lambda logits, f=form: deit_token_loss(logits, teacher, f), (student,))


@pytest.mark.parametrize("form", ["hard", "soft"])
def test_each_head_learns_from_its_own_teacher_and_half_of_it(form: str) -> None:
    student, batch = TwoHeads(), make_batch()
    task = make_task(student, form=form)
    task.train()(batch).loss.backward()
    logits = (student.head(batch.images.flatten(1)), student.distilled(batch.images.flatten(1)))
    said = task.ask(batch.images).logits
    losses = (F.cross_entropy(logits[0], batch.labels), deit_token_loss(logits[1], said, form))  # type: ignore[arg-type]
    for head, loss in zip((student.head, student.distilled), losses, strict=True):
        expected = torch.autograd.grad(loss / 2, head.weight)[0]
        assert head.weight.grad is not None
        torch.testing.assert_close(head.weight.grad, expected)


def test_of_the_teacher_it_asks_the_logits_alone() -> None:
    assert make_task(TwoHeads()).teacher_taps == ()


def test_half_precision_is_computed_in_float32() -> None:
    student, teacher, _ = draw((6, 10))
    small = [logits.detach().bfloat16() for logits in (student, teacher)]
    for form in ("hard", "soft"):
        found = deit_token_loss(*small, form)  # type: ignore[arg-type]
        assert found.dtype is torch.float32
        torch.testing.assert_close(found, deit_token_loss(*(logits.float() for logits in small), form))  # type: ignore[arg-type]


@pytest.mark.parametrize("taps", [["embedding"], ["distill_logits", "embedding"]])
def test_a_tap_that_is_no_logits_is_refused(taps: list[str]) -> None:
    with pytest.raises(
        ValueError, match=r"must be logits of the teacher's classes, \[2, 10\], and is .*\[2, 8\]; type"
    ):
        make_task(make_student(), taps=taps)


def test_a_student_without_a_second_head_is_refused() -> None:
    student = make_student()
    student.taps = {}
    with pytest.raises(ValueError, match=r"SmallNet has no tap 'distill_logits'; a .*: student.distilled=true$"):
        make_task(student)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("temperature", 0.0, "0.0 is not possible; it must be > 0"),
        ("token_weight", -1.0, "-1.0 is not possible; it must be ≥ 0"),
        ("form", "harder", "'harder' is not possible; did you mean 'hard'"),
    ],
)
def test_an_option_outside_its_range_is_refused_by_its_key(option: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_loss({**loss_options("deit_token"), option: value})
    assert f"loss.{option}: {message}" in str(error.value)
