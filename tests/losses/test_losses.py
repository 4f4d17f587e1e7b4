"""The mathematics of the losses: against independent references, and by what holds for any input."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_cli.errors import ConfigError
from kd_cli.losses.base import LOSSES, Distiller, build_loss
from kd_cli.losses.kd import kd_loss
from kd_cli.losses.label_smoothing import label_smoothing_loss
from kd_cli.losses.mse_logits import mse_logits_loss
from kd_cli.losses.mse_probs import mse_probs_loss
from kd_cli.losses.soft_ce import soft_ce_loss
from kd_cli.training.task import Distillation
from tests.losses.references import basic as references
from tests.support.small import SPEC, logits_only, loss_options, make_batch, make_student, make_teacher

Loss = Callable[[Tensor, Tensor], Tensor]
TEMPERATURES = (0.5, 1.0, 4.0, 20.0)
SHAPES = [(1, 2), (3, 2), (5, 10), (16, 100)]

# name → our function of (student, teacher) and the reference of the same options
PAIRS: dict[str, tuple[Loss, Callable[[np.ndarray, np.ndarray], float]]] = {
    "mse_logits": (mse_logits_loss, references.mse_logits),
    **{
        f"{name}, T = {t:g}": (partial(ours, temperature=t), partial(reference, temperature=t))
        for name, ours, reference in (
            ("kd", kd_loss, references.kd),
            ("soft_ce", soft_ce_loss, references.soft_ce),
            ("mse_probs", mse_probs_loss, references.mse_probs),
        )
        for t in TEMPERATURES
    },
    "kd without T²": (
        partial(kd_loss, temperature=3.0, scale_by_t2=False),
        partial(references.kd, temperature=3.0, scale_by_t2=False),
    ),
}
# name → the reference with the options of conf/loss/<name>.yaml
CLASSES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], float]] = {
    "kd": lambda s, t, y: 0.9 * references.kd(s, t, 4.0),
    "soft_ce": lambda s, t, y: 0.9 * references.soft_ce(s, t, 4.0),
    "mse_logits": lambda s, t, y: references.mse_logits(s, t),
    "mse_probs": lambda s, t, y: 10.0 * references.mse_probs(s, t, 1.0),
    "label_smoothing": lambda s, t, y: references.label_smoothing(s, y, 0.1),
    "combined": lambda s, t, y: 0.5 * references.kd(s, t, 4.0) + 0.1 * references.mse_logits(s, t),
}
every_loss = pytest.mark.parametrize("loss", [ours for ours, _ in PAIRS.values()], ids=PAIRS)
every_distance = pytest.mark.parametrize(
    "loss",
    [ours for name, (ours, _) in PAIRS.items() if "soft_ce" not in name],
    ids=[n for n in PAIRS if "soft_ce" not in n],
)


def draw(shape: tuple[int, int], seed: int = 0, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    """Student and teacher logits, float64; the student's want a gradient."""
    random = torch.Generator().manual_seed(seed)
    student, teacher = (scale * torch.randn(shape, generator=random, dtype=torch.float64) for _ in range(2))
    return student.requires_grad_(), teacher


def gradient(loss: Loss, student: Tensor, teacher: Tensor) -> Tensor:
    return torch.autograd.grad(loss(student, teacher), student)[0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("ours", "reference"), PAIRS.values(), ids=PAIRS)
def test_a_loss_equals_its_reference(ours: Loss, reference: Callable[..., float], shape: tuple[int, int]) -> None:
    student, teacher = draw(shape)
    assert ours(student, teacher).item() == pytest.approx(
        reference(student.detach().numpy(), teacher.numpy()), rel=1e-6
    )


def test_kd_of_a_case_worked_by_hand() -> None:
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]])  # (1/2, 1/2) and (3/4, 1/4)
    by_hand = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert kd_loss(student, teacher, temperature=1.0).item() == pytest.approx(by_hand, rel=1e-6)
    assert kd_loss(2 * student, 2 * teacher, temperature=2.0).item() == pytest.approx(4 * by_hand, rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_cross_entropy_plus_label_smoothing_is_torchs_smoothed_cross_entropy(
    smoothing: float, shape: tuple[int, int]
) -> None:
    logits, _ = draw(shape)
    labels = torch.arange(shape[0]) % shape[1]
    added = label_smoothing_loss(logits, labels, smoothing)
    assert added.item() == pytest.approx(
        references.label_smoothing(logits.detach().numpy(), labels.numpy(), smoothing), abs=1e-9
    )
    torch.testing.assert_close(
        F.cross_entropy(logits, labels) + added, F.cross_entropy(logits, labels, label_smoothing=smoothing)
    )


@pytest.mark.parametrize("name", CLASSES)
def test_a_method_with_the_options_of_its_yaml_is_its_weight_times_its_reference(name: str) -> None:
    method, _ = build_loss(loss_options(name))
    student, teacher, batch = logits_only(*draw((6, 5)))
    arrays = (student.logits.detach().numpy(), teacher.logits.numpy(), batch.labels.numpy())
    assert method(student, teacher, batch).item() == pytest.approx(CLASSES[name](*arrays), rel=1e-6)


@every_distance
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(loss: Loss) -> None:
    student, _ = draw((6, 10))
    teacher = student.detach().clone()
    assert loss(student, teacher).item() == pytest.approx(0, abs=1e-12)
    assert gradient(loss, student, teacher).abs().max() < 1e-12


@every_distance
def test_any_other_student_has(loss: Loss) -> None:
    assert loss(*draw((6, 10))) > 1e-6


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_soft_ce_is_kd_plus_the_teachers_entropy_with_the_same_gradient(temperature: float) -> None:
    student, teacher = draw((6, 10))
    soft_ce, kd = partial(soft_ce_loss, temperature=temperature), partial(kd_loss, temperature=temperature)
    torch.testing.assert_close(gradient(soft_ce, student, teacher), gradient(kd, student, teacher))
    entropy = torch.distributions.Categorical(logits=teacher / temperature).entropy().mean()
    torch.testing.assert_close(soft_ce(student, teacher) - kd(student, teacher), temperature**2 * entropy)


@pytest.mark.parametrize("loss", [kd_loss, soft_ce_loss, mse_probs_loss])
def test_a_constant_added_to_all_logits_of_an_image_changes_nothing(loss: Loss) -> None:
    student, teacher = draw((6, 10))
    shifts = torch.linspace(-50, 50, 6, dtype=torch.float64)[:, None]
    torch.testing.assert_close(loss(student + shifts, teacher), loss(student, teacher))
    torch.testing.assert_close(loss(student, teacher - shifts), loss(student, teacher))


@every_loss
def test_repeating_a_batch_changes_nothing(loss: Loss) -> None:
    student, teacher = draw((6, 10))
    torch.testing.assert_close(loss(student.repeat(3, 1), teacher.repeat(3, 1)), loss(student, teacher))


@every_loss
def test_the_gradient_is_that_of_finite_differences(loss: Loss) -> None:
    student, teacher = draw((3, 4), scale=1.0)
    assert torch.autograd.gradcheck(loss, (student, teacher))


def test_the_gradient_of_label_smoothing_is_that_of_finite_differences() -> None:
    student, _ = draw((3, 4))
    assert torch.autograd.gradcheck(partial(label_smoothing_loss, labels=torch.tensor([0, 3, 1])), (student,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("ours", "reference"), PAIRS.values(), ids=PAIRS)
def test_logit_gaps_of_ten_thousand_give_the_right_value_and_a_finite_gradient(
    ours: Loss, reference: Callable[..., float], dtype: torch.dtype
) -> None:
    student = torch.tensor([[1e4, 0.0, -3.0], [0.0, 1e4, 5.0]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[0.0, 1e4, -1e4], [0.0, 9e3, 0.0]], dtype=dtype)  # probabilities of exactly 0
    expected = reference(student.detach().double().numpy(), teacher.double().numpy())
    assert ours(student, teacher).item() == pytest.approx(expected, rel=1e-5)
    assert torch.isfinite(gradient(ours, student, teacher)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_label_smoothing_of_half_precision_logits_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e4, 0.0, -3.0], [0.5, 1.25, 5.0]], dtype=dtype, requires_grad=True)
    labels = torch.tensor([1, 2])
    loss = label_smoothing_loss(logits, labels)
    assert loss.item() == pytest.approx(
        references.label_smoothing(logits.detach().double().numpy(), labels.numpy(), 0.1), rel=1e-5
    )
    assert torch.isfinite(torch.autograd.grad(loss, logits)[0]).all()


def test_kd_is_summed_over_classes_and_not_averaged() -> None:
    student, teacher = draw((6, 10))
    many = [F.pad(logits, (0, 90), value=-1e3) for logits in (student, teacher)]  # 90 classes that nobody believes in
    torch.testing.assert_close(kd_loss(*many), kd_loss(student, teacher))


def test_kd_is_never_negative() -> None:  # it is where softmax is passed for log-softmax
    assert all(kd_loss(*draw((4, 5), seed), temperature=t) >= 0 for seed in range(20) for t in TEMPERATURES)


def test_the_size_of_kds_gradient_hardly_depends_on_a_high_temperature() -> None:
    student, teacher = draw((6, 10))
    sizes = [gradient(partial(kd_loss, temperature=t), student, teacher).norm().item() for t in (50.0, 200.0)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)  # section 2.1; without T² it falls to a sixteenth


@pytest.mark.parametrize("ce_weight", [0.0, 0.1])
def test_kd_keeps_its_factor_whatever_the_weight_of_the_labels(ce_weight: float) -> None:
    student, teacher, batch = make_student().eval(), make_teacher(), make_batch()
    method, mix = build_loss({"name": "kd", "temperature": 4.0, "kl_weight": 0.9, "ce_weight": ce_weight})
    step = Distillation(student, teacher, method, mix, SPEC, name="kd")(batch)
    logits = (network(batch.images).detach().double().numpy() for network in (student, teacher))
    assert step.terms["kd"].item() == pytest.approx(0.9 * references.kd(*logits, temperature=4.0), rel=1e-5)


@every_loss
def test_networks_of_different_classes_are_refused(loss: Loss) -> None:
    with pytest.raises(ValueError, match=r"must both be \[B, K\], not \[4, 10\] and \[4, 9\]"):
        loss(torch.zeros(4, 10), torch.zeros(4, 9))
    with pytest.raises(ValueError, match=r"must both be \[B, K\]"):
        loss(torch.zeros(4, 10, 1), torch.zeros(4, 10, 1))


def combine(*terms: dict[str, Any]) -> Distiller:
    return LOSSES.build({"name": "combined", "terms": list(terms)})


def test_a_combination_is_the_weighted_sum_of_its_terms() -> None:
    terms = ({"name": "kd", "temperature": 2.0}, {"name": "label_smoothing"}, {"name": "mse_logits", "mse_weight": 3.0})
    outputs = logits_only(*draw((6, 5)))
    apart = [LOSSES.build(term)(*outputs) for term in terms]
    together = combine(terms[0], {**terms[1], "weight": 0.25}, {**terms[2], "weight": 0.5})(*outputs)
    torch.testing.assert_close(together, apart[0] + 0.25 * apart[1] + 0.5 * apart[2])


def test_a_term_of_weight_zero_is_not_computed() -> None:
    outputs = logits_only(torch.tensor([[1e30, 0.0]]), torch.zeros(1, 2))  # its square is infinite, and 0 · ∞ no number
    together = combine({"name": "kd"}, {"name": "mse_logits", "weight": 0.0})(*outputs)
    assert torch.equal(together, combine({"name": "kd"})(*outputs))


def test_a_combination_asks_for_a_teacher_if_any_of_its_terms_does() -> None:
    assert combine({"name": "label_smoothing"}).teacher == "none"
    assert combine({"name": "label_smoothing"}, {"name": "kd"}).teacher == "frozen"


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([], "loss.terms: needs one at least"),
        ([{"name": "kd", "ce_weight": 0.5}], "loss.terms: ce_weight belongs to the sum"),
        ([{"name": "kd", "weight": 0.0}], "loss.terms: every weight is 0"),
        ([{"name": "kd"}, {"name": "mse_logit"}], "there is no loss 'mse_logit'; did you mean 'mse_logits'"),
        ([{"name": "kd"}, {"name": "kd", "temprature": 2.0}], "loss.terms[1].temprature: "),
        ([{"name": "kd", "temperature": -1.0}], "loss.terms[0].temperature: -1.0 is not possible"),
        ([{"name": "kd", "weight": -1.0}], "loss.terms[0].weight: -1.0 is not possible"),
        ("kd", "loss.terms: 'kd' is not a list"),
    ],
)
def test_a_combination_that_cannot_be_is_refused_by_its_key(terms: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_loss({"name": "combined", "terms": terms})
    assert message in str(error.value)


def test_a_sum_whose_terms_all_end_is_refused_where_no_label_is_learned_from() -> None:
    ends, stays = {"name": "kd", "decay_epochs": 5.0}, {"name": "mse_logits"}
    whole = {"name": "combined", "terms": [ends, {"name": "combined", "terms": [ends]}]}
    build_loss({**whole, "ce_weight": 0.1})
    build_loss({"name": "combined", "terms": [ends, stays], "ce_weight": 0.0})
    for loss in (whole, {"name": "logit_standardization", "around": whole}):
        with pytest.raises(ConfigError, match=r"^loss\.ce_weight: 0 is not possible while all terms fall to 0"):
            build_loss({**loss, "ce_weight": 0.0})


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        *(
            (name, "temperature", value)
            for name in ("kd", "soft_ce", "mse_probs")
            for value in (-1.0, 0.0, math.inf, math.nan)
        ),
        *(("kd", "kl_weight", value) for value in (-1.0, math.inf, math.nan)),
        ("soft_ce", "soft_ce_weight", -1.0),
        ("mse_logits", "mse_weight", -1.0),
        ("mse_probs", "mse_weight", -1.0),
        *(("label_smoothing", "smoothing", value) for value in (1.5, 1.0, -0.1, math.nan)),
        *((name, key, -1.0) for name in ("kd", "combined") for key in ("ce_weight", "weight")),
    ],
)
def test_a_number_outside_its_range_is_refused_by_its_key(name: str, option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^loss\.{option}: {value} is not possible; it must be "):
        build_loss({**loss_options(name), option: value})


def test_two_weights_of_zero_are_refused_because_nothing_would_be_learned() -> None:
    with pytest.raises(ConfigError, match=r"^loss\.ce_weight: 0 is not possible while weight is 0"):
        build_loss({"name": "kd", "ce_weight": 0.0, "weight": 0.0})
