"""Z-scores around every loss of logits."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_cli.errors import ConfigError
from kd_cli.losses.base import LOSSES, Distiller, Mix, build_loss
from kd_cli.losses.common import standardized
from kd_cli.losses.logit_standardization import LogitStandardization
from kd_cli.training.task import Distillation
from kd_cli.types import Batch, DataSpec, Outputs
from tests.losses.references import logits as reference
from tests.support.logits import arrays, draw
from tests.support.small import (
    SPEC,
    logits_only,
    loss_options,
    make_batch,
    make_student,
    make_teacher,
    same_tensors,
    yaml_names,
)


def inner_options(name: str) -> dict[str, Any]:
    """The options of conf/loss/<name>.yaml that are the method's own."""
    mix = {field.name for field in fields(Mix)}
    return {key: value for key, value in loss_options(name).items() if key not in mix}


def reads_only_logits(name: str) -> bool:
    method = LOSSES.build(inner_options(name))
    return method.teacher == "frozen" and not method.taps and not method.teacher_taps


NAMES = sorted({*LOSSES.names()} & {*yaml_names("loss")})
POSSIBLE = [name for name in NAMES if reads_only_logits(name)]
IMPOSSIBLE = [name for name in NAMES if name not in POSSIBLE]
around_every_loss = pytest.mark.parametrize("name", POSSIBLE)


def bound(name: str) -> LogitStandardization:
    method = LogitStandardization(inner_options(name))
    Distillation(make_student(), make_teacher(), method, Mix(), SPEC)
    return method


def run(method: Distiller, student: Tensor, teacher: Tensor) -> Tensor:
    torch.manual_seed(5)  # of a method that draws
    labels = torch.arange(len(student)) % 10
    return method(Outputs(student), Outputs(teacher), Batch(make_batch(len(student)).images, labels, labels))


def test_the_losses_to_stand_around_are_found() -> None:
    assert {"kd", "soft_ce", "mse_logits", "dkd", "dist", "nkd", "mlkd", "ctkd", "wsld", "combined"} <= set(POSSIBLE)
    assert {"label_smoothing", "tfkd"} <= set(IMPOSSIBLE)


@pytest.mark.parametrize("shape", [(1, 3), (5, 10), (4, 100)])
def test_standardized_rows_are_the_z_scores_of_the_reference(shape: tuple[int, int]) -> None:
    rows = draw(shape)[0]
    torch.testing.assert_close(standardized(rows).detach(), torch.from_numpy(reference.z_scores(*arrays(rows))))
    assert torch.autograd.gradcheck(standardized, (rows,))


@around_every_loss
def test_the_method_inside_sees_z_scores_and_nothing_else(name: str) -> None:
    student, teacher, _ = draw((8, 10))
    method = bound(name).double()
    z_scores = (torch.from_numpy(reference.z_scores(*arrays(logits))) for logits in (student, teacher))
    torch.testing.assert_close(run(method, student, teacher), run(method.method, *z_scores))


@around_every_loss
def test_scale_and_shift_of_an_images_logits_do_not_matter(name: str) -> None:
    student, teacher, _ = draw((8, 10))
    scale = torch.linspace(0.1, 20, 8, dtype=torch.float64)[:, None]
    method = bound(name).double()
    moved = run(method, scale * student + 5, teacher / scale - scale)
    torch.testing.assert_close(moved, run(method, student, teacher))


@around_every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_equal_logits_and_wide_gaps_give_finite_numbers(name: str, dtype: torch.dtype) -> None:
    student, teacher = torch.randn(3, 10, dtype=dtype), torch.randn(3, 10, dtype=dtype)
    student[0], student[1, 0], teacher[1, 1], teacher[2] = 0.1, 1e4, -1e4, 0.3
    student.requires_grad_()
    loss = run(bound(name), student, teacher)
    loss.backward()
    assert loss.dtype is torch.float32
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert not student.grad[0].any()  # a row of equal logits has no direction


@around_every_loss
def test_layers_and_optimizers_of_the_method_inside_are_trained_and_saved(name: str) -> None:
    torch.manual_seed(0)
    task = Distillation(make_student(), make_teacher(), LogitStandardization(inner_options(name)), Mix(), SPEC)
    torch.manual_seed(0)
    alone = Distillation(make_student(), make_teacher(), LOSSES.build(inner_options(name)), Mix(), SPEC)
    assert [p.shape for p in task.parameters()] == [p.shape for p in alone.parameters()]
    assert len(task.optimizers()) == len(alone.optimizers())
    assert len(task.state_dict()) == len(alone.state_dict())
    task.train()(make_batch()).loss.backward()
    assert all(parameter.grad is not None for parameter in task.method.parameters())
    assert same_tensors(task.deployed, task.network)


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_method_that_reads_more_than_two_networks_logits_is_refused_and_the_possible_ones_named(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^loss\.around: {name} (reads features|asks no frozen teacher)") as error:
        build_loss({"name": "logit_standardization", "around": inner_options(name)})
    possible = str(error.value).partition("must be one of ")[2].split(", ")
    assert {"kd", "dkd", "dist", "combined"} <= set(possible) <= set(POSSIBLE)


def test_what_is_named_as_possible_is_all_that_is() -> None:
    with pytest.raises(ValueError, match="must be one of") as error:
        LogitStandardization({"name": "label_smoothing"})
    possible = str(error.value).partition("must be one of ")[2].split(", ")
    assert {*possible, "logit_standardization"} == set(POSSIBLE)


@pytest.mark.parametrize(
    ("around", "message"),
    [
        ({"name": "kd", "ce_weight": 0.5}, "loss.around: ce_weight belongs to the whole; type loss.ce_weight=…"),
        ({"name": "kd", "warmup_epochs": 5.0}, "loss.around: warmup_epochs belongs to the whole"),
        ({"name": "kdd"}, "there is no loss 'kdd'"),
        ({"name": "kd", "temprature": 2.0}, "loss.around.temprature: loss 'kd' has no option"),
        ({"name": "dkd", "temperature": 0.0}, "loss.around.temperature: 0.0 is not possible"),
        ({}, "does not say which loss it is"),
        ("kd", "loss.around: 'kd' is not a mapping"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_its_key(around: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_loss({"name": "logit_standardization", "around": around})
    assert message in str(error.value)


def test_two_classes_are_refused_because_their_z_scores_are_constants() -> None:
    two = DataSpec(2, 200, SPEC.image_shape, ("a", "b"))
    with pytest.raises(ValueError, match=r"z-scores of two logits are 1 and −1"):
        Distillation(make_student(), make_teacher(), LogitStandardization(), Mix(), two)
    student, teacher, _ = draw((4, 2))
    loss = LogitStandardization()(*logits_only(student, teacher))
    assert torch.autograd.grad(loss, student)[0].abs().max() < 1e-12


def test_without_a_word_it_is_kd_with_the_papers_numbers() -> None:
    outputs = logits_only(*draw((6, 10))[:2])
    plain = {"name": "kd", "temperature": 2.0, "kl_weight": 9.0}
    assert torch.equal(LogitStandardization()(*outputs), LogitStandardization(plain)(*outputs))
    assert inspect.signature(LogitStandardization).parameters["around"].default is None


def test_the_command_line_may_put_another_loss_inside(kd) -> None:
    words = "dataset=synthetic", "loss=logit_standardization", "loss.around={name: dkd, temperature: 2}"
    assert "temperature: 2" in kd("distill", *words, "--cfg", "job").out
