"""Losses of logits beyond kd: against independent references, and by what holds for any input."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from kd_cli.errors import ConfigError
from kd_cli.losses.abkd import abkd_loss
from kd_cli.losses.base import build_loss
from kd_cli.losses.ctkd import ctkd_loss
from kd_cli.losses.dist import dist_loss
from kd_cli.losses.dkd import dkd_loss
from kd_cli.losses.mlkd import mlkd_loss
from kd_cli.losses.nkd import nkd_loss
from kd_cli.losses.rld import rld_loss
from kd_cli.losses.tfkd import tfkd_loss
from kd_cli.losses.ttm import ttm_loss
from kd_cli.losses.wkd_l import wkd_l_loss
from kd_cli.losses.wsld import wsld_loss
from kd_cli.losses.wttm import wttm_loss
from tests.losses.references import basic as references
from tests.losses.references import logits as reference
from tests.losses.references import recent_logits as recent
from tests.support.logits import Loss, arrays, draw, gradient
from tests.support.small import logits_only, loss_options

Reference = Callable[[np.ndarray, np.ndarray, np.ndarray], float]
SHAPES = [(1, 3), (3, 4), (5, 10), (16, 100), (20, 7)]

# name → our function of (student, teacher, labels) and the reference of the same options
PAIRS: dict[str, tuple[Loss, Reference]] = {
    "dkd": (dkd_loss, lambda s, t, y: reference.dkd(s, t, y, 1.0, 8.0, 4.0)),
    "dkd, T = 1": (
        partial(dkd_loss, target_weight=0.5, nontarget_weight=3.0, temperature=1.0),
        lambda s, t, y: reference.dkd(s, t, y, 0.5, 3.0, 1.0),
    ),
    "dist": (lambda s, t, y: dist_loss(s, t), lambda s, t, y: reference.dist(s, t, 2.0, 2.0, 4.0, True)),
    "dist without T²": (
        lambda s, t, y: dist_loss(s, t, 1.0, 0.5, temperature=1.5, scale_by_t2=False),
        lambda s, t, y: reference.dist(s, t, 1.0, 0.5, 1.5, False),
    ),
    "nkd": (nkd_loss, lambda s, t, y: reference.nkd(s, t, y, 1.5, 1.0)),
    "nkd, T = 3": (partial(nkd_loss, temperature=3.0), lambda s, t, y: reference.nkd(s, t, y, 1.5, 3.0)),
    "mlkd": (
        lambda s, t, y: mlkd_loss(s, t, 2.0, 0.5, 2.0, 3.0),
        lambda s, t, y: reference.mlkd(s, t, [2.0], [0.5, 2.0, 3.0]),
    ),
    "ctkd": (lambda s, t, y: ctkd_loss(s, t, torch.tensor(2.5)), lambda s, t, y: references.kd(s, t, 2.5)),
    "wsld": (wsld_loss, lambda s, t, y: reference.wsld(s, t, y, 2.0)),
    "wsld, T = 5": (partial(wsld_loss, temperature=5.0), lambda s, t, y: reference.wsld(s, t, y, 5.0)),
    "tfkd": (lambda s, t, y: tfkd_loss(s, y), lambda s, t, y: reference.tfkd(s, y, 0.99, 20.0)),
    "tfkd, T = 2": (lambda s, t, y: tfkd_loss(s, y, 0.9, 2.0), lambda s, t, y: reference.tfkd(s, y, 0.9, 2.0)),
    "rld": (rld_loss, lambda s, t, y: recent.rld(s, t, y, 1.0, 8.0, 1.0, 4.0)),
    "rld, other T": (
        partial(rld_loss, confidence_weight=0.5, confidence_temperature=3.0, temperature=1.5),
        lambda s, t, y: recent.rld(s, t, y, 0.5, 8.0, 3.0, 1.5),
    ),
    "ttm": (lambda s, t, y: ttm_loss(s, t), lambda s, t, y: recent.ttm(s, t, 0.1)),
    "ttm, T = 0.5": (lambda s, t, y: ttm_loss(s, t, 0.5), lambda s, t, y: recent.ttm(s, t, 2.0)),
    "wttm": (lambda s, t, y: wttm_loss(s, t), lambda s, t, y: recent.ttm(s, t, 0.2, weighted=True)),
    "abkd": (lambda s, t, y: abkd_loss(s, t), lambda s, t, y: recent.abkd(s, t, 0.8, 0.3, 4.0)),
    "abkd, T = 1": (lambda s, t, y: abkd_loss(s, t, 0.5, 2.0, 1.0), lambda s, t, y: recent.abkd(s, t, 0.5, 2.0, 1.0)),
    "wkd_l": (
        lambda s, t, y: wkd_l_loss(s, t, y, (1 - torch.eye(s.shape[1])) / 2, transport_weight=5.0),
        lambda s, t, y: recent.wkd_l(s, t, y, (1 - np.eye(s.shape[1])) / 2, (1.0, 5.0), 8.0, 0.05, 10),
    ),
}
# name → the reference with the options of conf/loss/<name>.yaml
CLASSES: dict[str, Reference] = {
    "dkd": lambda s, t, y: reference.dkd(s, t, y, 1.0, 8.0, 4.0),
    "dist": lambda s, t, y: reference.dist(s, t, 2.0, 2.0, 4.0, True),
    "nkd": lambda s, t, y: reference.nkd(s, t, y, 1.5, 1.0),
    "mlkd": lambda s, t, y: reference.mlkd(s, t, [2.0, 3.0, 4.0, 5.0, 6.0], [0.9, 0.9, 0.9]),
    "ctkd": lambda s, t, y: 0.9 * references.kd(s, t, 1 + 20 / (1 + math.exp(-1))),
    "wsld": lambda s, t, y: 2.5 * reference.wsld(s, t, y, 2.0),
    "tfkd": lambda s, t, y: 0.1 * reference.tfkd(s, y, 0.99, 20.0),
    "rld": lambda s, t, y: recent.rld(s, t, y, 1.0, 8.0, 1.0, 4.0),
    "ttm": lambda s, t, y: 45.0 * recent.ttm(s, t, 0.1),
    "wttm": lambda s, t, y: 4.0 * recent.ttm(s, t, 0.2, weighted=True),
    "abkd": lambda s, t, y: 32.0 * recent.abkd(s, t, 0.8, 0.3, 4.0),
    "logit_standardization": lambda s, t, y: 9.0 * references.kd(reference.z_scores(s), reference.z_scores(t), 2.0),
}
# Above 0 where student and teacher agree.
NO_DISTANCES = ("nkd", "tfkd", "rld", "ttm", "wttm", "wkd_l")
every_loss = pytest.mark.parametrize("loss", [ours for ours, _ in PAIRS.values()], ids=PAIRS)
DISTANCES = {name: ours for name, (ours, _) in PAIRS.items() if not name.startswith(NO_DISTANCES)}
every_distance = pytest.mark.parametrize("loss", DISTANCES.values(), ids=DISTANCES)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("ours", "theirs"), PAIRS.values(), ids=PAIRS)
def test_a_loss_equals_its_reference(ours: Loss, theirs: Reference, shape: tuple[int, int]) -> None:
    tensors = draw(shape)
    assert ours(*tensors).dtype is torch.float64
    assert ours(*tensors).item() == pytest.approx(theirs(*arrays(*tensors)), rel=1e-6)


@pytest.mark.parametrize("name", CLASSES)
def test_a_method_with_the_options_of_its_yaml_is_its_reference(name: str) -> None:
    method, _ = build_loss(loss_options(name))
    outputs = logits_only(*draw((6, 5))[:2])
    expected = CLASSES[name](*arrays(outputs[0].logits, outputs[1].logits, outputs[2].labels))
    assert method(*outputs).item() == pytest.approx(expected, rel=1e-6)


@every_distance
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(loss: Loss) -> None:
    student, _, labels = draw((6, 10))
    teacher = student.detach().clone()
    assert loss(student, teacher, labels).item() == pytest.approx(0, abs=1e-12)
    assert gradient(loss, student, teacher, labels).abs().max() < 1e-12


@every_distance
def test_any_other_student_has(loss: Loss) -> None:
    assert all(loss(*draw((6, 10), seed)) > 1e-6 for seed in range(5))


@every_loss
def test_a_constant_added_to_all_logits_of_an_image_changes_nothing(loss: Loss) -> None:
    student, teacher, labels = draw((6, 10))
    shift = torch.linspace(-50, 50, 6, dtype=torch.float64)[:, None]
    torch.testing.assert_close(loss(student + shift, teacher - 2 * shift, labels), loss(student, teacher, labels))


@every_loss
def test_the_order_of_images_and_of_classes_does_not_matter(loss: Loss) -> None:
    student, teacher, labels = draw((6, 10))
    images, classes = torch.randperm(6), torch.randperm(10)
    permuted = student[images][:, classes], teacher[images][:, classes], classes.argsort()[labels[images]]
    torch.testing.assert_close(loss(*permuted), loss(student, teacher, labels))


@pytest.mark.parametrize("loss", [loss for name, (loss, _) in PAIRS.items() if name != "mlkd"])
def test_a_batch_seen_twice_has_the_same_mean(loss: Loss) -> None:
    tensors = draw((6, 10))
    torch.testing.assert_close(loss(*(torch.cat([tensor, tensor]) for tensor in tensors)), loss(*tensors))


@pytest.mark.parametrize("loss", [loss for name, (loss, _) in PAIRS.items() if not name.startswith("wsld")])
def test_the_gradient_is_that_of_finite_differences(loss: Loss) -> None:
    student, teacher, labels = draw((4, 5), scale=1.0)
    assert torch.autograd.gradcheck(lambda logits: loss(logits, teacher, labels), (student,))


@every_loss
def test_no_gradient_reaches_a_teacher_that_asks_for_one(loss: Loss) -> None:
    student, teacher, labels = draw((4, 5))
    loss(student, teacher.requires_grad_(), labels).backward()
    assert teacher.grad is None
    assert student.grad is not None


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(loss: Loss, dtype: torch.dtype) -> None:
    student, teacher, labels = draw((6, 10))
    small = student.detach().to(dtype).requires_grad_()
    value = loss(small, teacher.to(dtype), labels)
    assert value.dtype is torch.float32
    assert value.item() == pytest.approx(loss(small.double(), teacher.to(dtype).double(), labels).item(), rel=1e-4)
    assert torch.autograd.grad(value, small)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("ours", "theirs"), PAIRS.values(), ids=PAIRS)
def test_logit_gaps_of_ten_thousand_give_the_right_value_and_a_finite_gradient(
    ours: Loss, theirs: Reference, dtype: torch.dtype
) -> None:
    student = torch.tensor([[1e4, 0.0, -3.0], [0.0, 1e4, 5.0], [0.0, 8e3, -8e3]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[0.0, 1e4, -1e4], [0.0, 9e3, 0.0], [6e3, 0.0, 0.0]], dtype=dtype)
    labels = torch.tensor([0, 1, 2])
    expected = theirs(*arrays(student, teacher, labels))
    assert ours(student, teacher, labels).item() == pytest.approx(expected, rel=1e-5)
    assert gradient(ours, student, teacher, labels).isfinite().all()


@pytest.mark.parametrize("name", [name for name in PAIRS if not name.startswith("dkd")])
def test_two_classes_are_possible(name: str) -> None:
    ours, theirs = PAIRS[name]
    tensors = draw((6, 2))
    assert ours(*tensors).item() == pytest.approx(theirs(*arrays(*tensors)), rel=1e-6)
    assert gradient(ours, *tensors).abs().max() > 1e-6


@pytest.mark.parametrize("loss", [loss for name, (loss, _) in PAIRS.items() if not name.startswith("tfkd")])
def test_networks_of_different_classes_are_refused(loss: Loss) -> None:
    with pytest.raises(ValueError, match=r"must both be \[B, K\], not \[4, 10\] and \[4, 9\]"):
        loss(torch.zeros(4, 10), torch.zeros(4, 9), torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("name", "option", "value", "rule"),
    [
        *(
            (name, "temperature", value, "it must be > 0")
            for name in ("dkd", "dist", "nkd", "wsld", "tfkd", "rld", "ttm", "wttm", "abkd", "wkd_l", "tekap")
            for value in (0.0, -1.0, math.inf, math.nan)
        ),
        *((name, "target_weight", -1.0, "it must be ≥ 0") for name in ("dkd", "nkd")),
        *((name, "nontarget_weight", -1.0, "it must be ≥ 0") for name in ("dkd", "nkd")),
        *(("dist", f"{term}_weight", -1.0, "it must be ≥ 0") for term in ("inter", "intra")),
        *(("mlkd", f"{term}_weight", -1.0, "it must be ≥ 0") for term in ("instance", "batch", "class")),
        *((name, "kl_weight", -1.0, "it must be ≥ 0") for name in ("wsld", "tfkd", "ctkd", "ttm", "wttm", "tekap")),
        *(("rld", f"{term}_weight", -1.0, "it must be ≥ 0") for term in ("confidence", "correlation")),
        ("rld", "confidence_temperature", 0.0, "it must be > 0"),
        *(("abkd", option, -0.1, "it must be ≥ 0") for option in ("alpha", "beta", "divergence_weight")),
        *(("wkd_l", option, -0.1, "it must be ≥ 0") for option in ("target_weight", "transport_weight")),
        ("wkd_l", "regularization", 0.01, "it must be ≥ 0.02"),
        *((name, option, 0, "it must be ≥ 1") for name, option in (("wkd_l", "iterations"), ("tekap", "teachers"))),
        ("tekap", "noise_share", 1.5, "it must be ≥ 0 and ≤ 1"),
        *(("ctkd", key, 0.0, "it must be > 0") for key in ("min_temperature", "temperature_range", "ramp_epochs")),
        *(("tfkd", "label_probability", value, r"it must be in \(0, 1\)") for value in (0.0, 1.0, -0.5, math.nan)),
    ],
)
def test_a_number_outside_its_range_is_refused_by_its_key(name: str, option: str, value: float, rule: str) -> None:
    with pytest.raises(ConfigError, match=rf"^loss\.{option}: {value} is not possible; {rule}"):
        build_loss({**loss_options(name), option: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "mlkd", "temperatures": []}, "loss.temperatures: [] is not possible; it must name one at least"),
        ({"name": "mlkd", "temperatures": [2.0, 0.0]}, "loss.temperatures: [2.0, 0.0]: 0.0 is not possible; it must"),
        ({"name": "tfkd", "form": "itself"}, "loss.form: 'itself' is not possible; did you mean 'self'"),
    ],
)
def test_options_that_are_not_one_number_are_refused_by_their_key(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_loss(options)
    assert message in str(error.value)
