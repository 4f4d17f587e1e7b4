"""The losses of features as methods: their options, the layers that they learn, and the networks that they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kd_cli.config.recipe import Recipe
from kd_cli.errors import ConfigError
from kd_cli.losses.base import LOSSES, Distiller, Mix, build_loss
from kd_cli.losses.kdsvd import eigenvectors, kdsvd_loss, singular_vectors
from kd_cli.losses.vid import Gaussian
from kd_cli.training.task import Distillation
from kd_cli.training.trainer import Trainer
from kd_cli.types import Outputs
from tests.losses.references import features as references
from tests.support.features import draw
from tests.support.small import CPU, SPEC, SmallNet, loss_options, make_batch, make_data, make_student, make_teacher

NAMES = ("fitnet", "at", "sp", "pkt", "nst", "fsp", "vid", "kdsvd")
# name → how many tensors it learns for the small student and teacher with the options of its yaml
LEARNED = {"fitnet": 1, "at": 0, "sp": 0, "pkt": 0, "nst": 0, "fsp": 3, "vid": 9, "kdsvd": 3}
Arrays = Sequence[np.ndarray]


def outputs(side: int, classes: int = 10) -> Outputs:
    """Float64 features: of the student (side 0) two stages, of the teacher three, of other channels and sizes."""
    stages = (((6, 3, 6, 5), (6, 4, 3, 3)), ((6, 2, 9, 9), (6, 3, 6, 6), (6, 5, 2, 4)))[side]
    features = draw([*stages, (6, 7 - side)], seed=side)
    named = {f"stage{i + 1}": feature for i, feature in enumerate(features[:-1])}
    named |= {"stage-1": features[-2], "stage-2": features[-3], "embedding": features[-1]}
    return Outputs(draw([(6, classes)], seed=2 + side)[0], named)


def bound(name: str, student: Outputs, teacher: Outputs, **options: Any) -> Distiller:
    """The method with its yaml's options, in float64."""
    method, _ = build_loss({**loss_options(name), **options})
    method.bind(student, teacher, SPEC)
    return method.double()


def distillation(name: str, student: nn.Module, teacher: nn.Module, **options: Any) -> Distillation:
    method, _ = build_loss({**loss_options(name), **options})
    return Distillation(student, teacher, method, Mix(), SPEC, name=name)


def pooled(ours: np.ndarray, theirs: np.ndarray) -> list[np.ndarray]:
    pairs = [references._same_size(one, other) for one, other in zip(ours, theirs, strict=True)]
    return [np.stack(images) for images in zip(*pairs, strict=True)]


def project(weight: np.ndarray, maps: np.ndarray) -> np.ndarray:
    return np.einsum("oc,bc...->bo...", weight.reshape(weight.shape[:2]), maps)


def vid_of_two(ours: Arrays, theirs: Arrays, weights: Arrays) -> float:
    total = 0.0
    for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        student, teacher = pooled(one, other)
        raw, first, last = weights[3 * i : 3 * i + 3]
        mean = project(last, np.maximum(project(first, student), 0))
        total += references.vid(mean, np.log1p(np.exp(raw)) + 1e-5, teacher)
    return total


# name → the loss with the options of conf/loss/<name>.yaml, of the pairs of features and the learned tensors. Of the
# student's two stages the deepest one has other channels than its teacher's, the other as many.
EXPECTED: dict[str, Callable[[Arrays, Arrays, Arrays], float]] = {
    "fitnet": lambda s, t, w: 100 * references.fitnet(*pooled(project(w[0], s[0]), t[0])),
    "at": lambda s, t, w: 1000 * sum(references.at(*pair, 2.0) for pair in zip(s, t, strict=True)),
    "sp": lambda s, t, w: 3000 * references.sp(s[0], t[0]),
    "pkt": lambda s, t, w: 30000 * references.pkt(s[0], t[0]),
    "nst": lambda s, t, w: 50 * sum(references.nst(*pair) for pair in zip(s, t, strict=True)),
    "fsp": lambda s, t, w: 50 * references.fsp([s[0], project(w[0], s[1])], t),
    "vid": vid_of_two,
    "kdsvd": lambda s, t, w: references.kdsvd([s[0], project(w[0], s[1])], t, 1),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_method_with_the_options_of_its_yaml_is_its_weight_times_its_reference(name: str) -> None:
    student, teacher = outputs(0), outputs(1)
    method = bound(name, student, teacher)
    pairs = [[feature.detach().numpy() for feature in pair] for pair in method.pairs(student, teacher)]
    ours, theirs = zip(*pairs, strict=True)
    learned = [parameter.detach().numpy() for parameter in method.parameters()]
    loss = method(student, teacher, make_batch(6))
    assert loss.item() == pytest.approx(EXPECTED[name](ours, theirs, learned), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_two_classes_are_enough_because_logits_are_not_read(name: str) -> None:
    student, teacher, batch = outputs(0, classes=2), outputs(1, classes=2), make_batch(6)
    method = bound(name, student, teacher)
    assert torch.equal(method(student, teacher, batch), method(outputs(0), outputs(1), batch))


@pytest.mark.parametrize(("name", "count"), LEARNED.items())
def test_every_layer_of_a_method_is_moved_by_the_trainer_and_saved(name: str, count: int) -> None:
    task = distillation(name, make_student(), make_teacher())
    before = {key: value.detach().clone() for key, value in task.method.named_parameters()}
    assert len(before) == count
    assert {f"method.{key}" for key in before} <= task.state_dict().keys()
    recipe = Recipe(epochs=1, batch_size=16, limit_train_batches=2, lr=0.01, weight_decay=0.0)
    list(Trainer(recipe, seed=0, device=CPU).epochs(task, make_data()))
    assert all(not torch.equal(value, before[key]) for key, value in task.method.named_parameters())


@pytest.mark.parametrize("name", ["fsp", "kdsvd"])
def test_a_stage_that_has_its_teachers_channels_already_is_not_projected(name: str) -> None:
    task = distillation(name, SmallNet((5, 6, 12), first_stride=2, dropout=0.0), make_teacher())
    assert [parameter.shape[:2] for parameter in task.method.parameters()] == [(8, 6)]


def test_the_variance_of_vid_begins_where_it_is_told_and_learns_each_channel_by_itself() -> None:
    student, teacher = draw([(64, 6), (64, 3)])
    spread = torch.tensor([0.3, 0.6, 1.2], dtype=torch.float64)
    gaussian = Gaussian(student, teacher, variance=0.7).double()
    for layer in (gaussian.mean[0], gaussian.mean[2]):
        nn.init.zeros_(layer.weight)
    at_first = (teacher.square() / 0.7 + math.log(0.7)).mean() / 2
    assert gaussian(student, teacher).item() == pytest.approx(at_first.item(), rel=1e-6)
    optimizer = torch.optim.Adam(gaussian.parameters(), lr=0.5)
    for _ in range(300):
        optimizer.zero_grad()
        gaussian(student, spread * teacher).backward()
        optimizer.step()
    learned = torch.nn.functional.softplus(gaussian.raw_variance)
    torch.testing.assert_close(learned, (spread * teacher).square().mean(dim=0), rtol=0.05, atol=0)


@pytest.mark.parametrize("name", ["fitnet", "vid", "sp", "pkt"])
def test_vectors_are_possible_too(name: str) -> None:
    task = distillation(name, make_student(), make_teacher(), taps=["embedding"], teacher_taps=["embedding"])
    assert task(make_batch()).loss.isfinite()


def test_losses_of_features_can_be_combined() -> None:
    student, teacher, batch = outputs(0), outputs(1), make_batch(6)
    terms = [{"name": "fitnet"}, {"name": "at", "weight": 0.5}, {"name": "pkt"}]
    torch.manual_seed(0)
    combined, _ = build_loss({"name": "combined", "terms": terms})
    combined.bind(student, teacher, SPEC)
    torch.manual_seed(0)
    apart = [bound(name, student, teacher)(student, teacher, batch) for name in ("fitnet", "at", "pkt")]
    torch.testing.assert_close(combined.double()(student, teacher, batch), apart[0] + 0.5 * apart[1] + apart[2])


class OneStage(nn.Module):
    """A network of a single stage of one pixel."""

    taps = {"stage1": "stage", "embedding": "fc:in"}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.Conv2d(3, 4, 16)
        self.fc = nn.Linear(4, SPEC.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.stage(images).flatten(1))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fitnet", {}, r"^OneStage has no tap 'stage-2'.* Known: .*stage1"),
        ("fitnet", {"taps": ["stage-1"], "teacher_taps": ["embedding"]}, "take two feature maps or two vectors"),
        ("vid", {"taps": ["embedding"], "teacher_taps": ["stage-1"]}, "take two feature maps or two vectors"),
        ("at", {}, "^taps: all maps are compared at a single pixel"),
        ("nst", {}, "^taps: all maps are compared at a single pixel"),
        *((name, {"taps": ["embedding"]}, r"^taps: .* feature maps \[B, C, H, W\], not") for name in ("at", "nst")),
        *((name, {}, "^taps: .* both networks need two of them, not 1") for name in ("fsp", "kdsvd")),
        *((name, {"taps": ["embedding"] * 2}, r"^taps: .* feature maps") for name in ("fsp", "kdsvd")),
        *(
            (name, {"taps": ["stage-1", "embedding"], "teacher_taps": ["stage-1"]}, "^loss.teacher_taps: ")
            for name in NAMES
        ),
    ],
)
def test_a_pair_that_cannot_be_is_refused_with_a_reason(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, ConfigError), match=message):
        distillation(name, OneStage(), make_teacher(), **options)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        *((name, f"{name}_weight", value) for name in NAMES for value in (-1.0, math.nan)),
        ("at", "power", 0.0),
        ("vid", "initial_variance", 1e-5),
        ("kdsvd", "k", 0),
    ],
)
def test_a_number_outside_its_range_is_refused_by_its_key(name: str, option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^loss\.{option}: {value} is not possible; it must be "):
        build_loss({**loss_options(name), option: value})


@pytest.mark.parametrize("name", ["at", "nst"])
def test_a_stage_of_one_pixel_adds_nothing_and_does_not_forbid_the_others(name: str) -> None:
    student, teacher, batch = outputs(0), outputs(1), make_batch(6)
    first, deepest = (student.features[f"stage{i}"] for i in (1, 2))
    both = Outputs(student.logits, {"stage1": first, "stage2": deepest[:, :, :1, :1]})
    one, told = (
        Outputs(student.logits, {"stage1": first}),
        Outputs(teacher.logits, {"stage1": teacher.features["stage2"]}),
    )
    expected = bound(name, one, told)(one, told, batch)
    torch.testing.assert_close(bound(name, both, teacher)(both, teacher, batch), expected)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        (name, option)
        for name in LOSSES.names()
        for option in ("taps", "teacher_taps")
        if loss_options(name).get("taps") and option in loss_options(name)
    ],
)
def test_an_empty_list_of_taps_is_refused_where_features_are_needed(name: str, option: str) -> None:
    with pytest.raises(ConfigError, match=rf"^loss\.{option}: \[\] is not possible; the method reads one"):
        build_loss({**loss_options(name), option: []})


def with_singular_values(values: Sequence[float]) -> Tensor:
    """Maps [1, 4, 2, 3] whose right singular vectors are the same, in this order of the values."""
    left, right = (torch.linalg.qr(square.detach())[0] for square in draw([(6, 6), (4, 4)]))
    matrix = left[:, :4] @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.T
    return matrix.T.reshape(1, 4, 2, 3).requires_grad_()


def test_singular_vectors_and_their_gradient_are_those_of_torchs_decomposition() -> None:
    for shape in ((3, 4, 3, 5), (3, 6, 2, 2)):
        maps, direction = draw([shape, (3, 2, shape[1])])
        _, vectors = singular_vectors(maps, 2)
        _, _, rows = torch.linalg.svd(maps.flatten(2).mT, full_matrices=False)
        signs = (vectors * rows[:, :2]).sum(dim=2, keepdim=True).sign().detach()
        torch.testing.assert_close(vectors, signs * rows[:, :2])
        ours, theirs = (
            torch.autograd.grad((side * direction).sum(), maps)[0] for side in (vectors, signs * rows[:, :2])
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3)


def test_a_vector_is_compared_with_the_most_similar_one_whatever_its_rank() -> None:
    teacher, student = with_singular_values([9, 4, 2, 1]), with_singular_values([4, 2, 9, 1])
    assert kdsvd_loss([student, student], [teacher, teacher]).item() == pytest.approx(0, abs=1e-12)
    assert kdsvd_loss([student, student], [student.flip(1)] * 2) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "values", [[3, 3, 1, 1], [2, 2, 2, 2], [5, 0, 0, 0], [5, 5, 0, 0], [0, 0, 0, 0], [1, 1 - 1e-9, 0, 0]]
)
def test_equal_singular_values_and_low_rank_give_a_bounded_gradient(values: list[float], dtype: torch.dtype) -> None:
    maps = with_singular_values(values).detach().to(dtype).requires_grad_()
    teacher = with_singular_values([4, 3, 2, 1]).detach().to(dtype).flip(1)
    loss = kdsvd_loss([maps, maps], [teacher, teacher], k=2)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, maps)[0].abs().max() < 1e4
    found, vectors = singular_vectors(maps, 4)
    assert ((vectors.norm(dim=2) > 0.5) == (found > 0)).all()
    assert (found > 0).sum() == sum(value > 0 for value in values)


def test_eigenvectors_of_a_repeated_value_have_no_gradient_and_the_others_that_of_torch() -> None:
    (square,) = draw([(2, 5, 5)])
    matrices = square + square.mT
    _, ours = eigenvectors(matrices, 1)
    theirs = torch.linalg.eigh(matrices)[1][..., -1]
    ours, theirs = (torch.autograd.grad(side.square()[..., 0].sum(), square)[0] for side in (ours[:, 0], theirs))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    identity = torch.eye(3).expand(1, 3, 3).clone().requires_grad_()
    assert torch.autograd.grad(eigenvectors(identity, 2)[1].sum(), identity)[0].abs().max() == 0
