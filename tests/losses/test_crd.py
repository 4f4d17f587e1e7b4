"""Contrastive representation distillation: its mathematics, and what it remembers."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kd_cli.config.recipe import Recipe
from kd_cli.errors import ConfigError
from kd_cli.losses.base import Mix, build_loss
from kd_cli.losses.common import unit
from kd_cli.losses.crd import CRD, crd_loss, crd_scores, log_normalizer
from kd_cli.training.state import TrainState
from kd_cli.training.task import Distillation
from kd_cli.training.trainer import Trainer
from kd_cli.types import Batch, DataSpec, Outputs
from tests.losses.references import relations as references
from tests.support.small import CPU, SPEC, loss_options, make_batch, make_data, make_student, make_teacher, same_tensors

IDS, LABELS = torch.tensor([4, 0, 7, 2]), torch.tensor([1, 0, 1, 2])


def draw(*shape: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=random, dtype=torch.float64)


def spec(num_train: int, num_classes: int = 10) -> DataSpec:
    return DataSpec(num_classes, num_train, (3, 16, 16), tuple("abcdefghij"[:num_classes]))


def bound(num_train: int = 20, seed: int = 0, **options: Any) -> CRD:
    """In float64, for embeddings of 6 and of 9 numbers; in training mode."""
    method = CRD(**{"dim": 5, "crd_weight": 1.0, **options})
    torch.manual_seed(seed)
    method.bind(*embeddings(2), spec(num_train))
    return method.double()


def embeddings(size: int, seed: int = 0) -> tuple[Outputs, Outputs]:
    student, teacher = draw(size, 6, seed=seed).requires_grad_(), draw(size, 9, seed=seed + 100).requires_grad_()
    logits = torch.zeros(size, 10)
    return Outputs(logits, {"embedding": student}), Outputs(logits, {"embedding": teacher})


def batch_of(ids: Tensor, labels: Tensor) -> Batch:
    return Batch(torch.zeros(len(ids), 3, 4, 4), labels, ids)


def seen(method: CRD, labels: Tensor) -> CRD:
    """A method that has seen every training image once, and whose normaliser is not of this batch."""
    torch.manual_seed(7)
    method(*embeddings(len(labels), seed=5), batch_of(torch.arange(len(labels)), labels))
    return method


@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("num_negatives", [1, 6, 20])
def test_one_direction_equals_its_reference(num_negatives: int, temperature: float) -> None:
    anchors, memory, memory_labels = draw(4, 5), unit(draw(20, 5, seed=1)), torch.arange(20) % 3
    drawn = torch.randperm(20, generator=torch.Generator().manual_seed(num_negatives))[:num_negatives]
    excluded = (memory_labels[drawn] == LABELS[:, None]) | (drawn == IDS[:, None])
    scores = crd_scores(unit(anchors), memory[IDS], memory[drawn], excluded, temperature)
    arrays = (anchors.numpy(), memory.numpy(), IDS.numpy(), LABELS.numpy(), drawn.tolist(), memory_labels.numpy())
    for z in (None, 3.0):
        log_z = log_normalizer(scores) if z is None else torch.tensor(math.log(z))
        expected = references.crd(*arrays, temperature, z)
        assert crd_loss(scores, log_z).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("weight", [0.8, 2.0])
def test_the_method_is_the_sum_of_both_directions_over_negatives_of_other_classes(weight: float) -> None:
    labels = torch.arange(20) % 3
    method = seen(bound(crd_weight=weight), labels)  # 20 images, 16384 negatives: all of them are drawn
    student, teacher = embeddings(4)
    memories = [method.student_memory.numpy().copy(), method.teacher_memory.numpy().copy()]
    z = method.log_z.exp().tolist()
    anchors = [
        method.student_layer(student.features["embedding"]).detach().numpy(),
        method.teacher_layer(teacher.features["embedding"]).detach().numpy(),
    ]
    rest = (IDS.numpy(), labels[IDS].numpy(), list(range(20)), labels.numpy(), 0.07)
    expected = references.crd(anchors[0], memories[1], *rest, z[0]) + references.crd(
        anchors[1], memories[0], *rest, z[1]
    )
    loss = method(student, teacher, batch_of(IDS, labels[IDS]))
    assert loss.item() == pytest.approx(weight * expected, rel=1e-6)


def test_the_loss_falls_where_the_own_memory_is_near_and_rises_where_anothers_is() -> None:
    memory = torch.eye(3, dtype=torch.float64)
    excluded = torch.zeros(1, 2, dtype=torch.bool)
    log_z = torch.tensor(0.0)
    near, far = (crd_loss(crd_scores(a, memory[:1], memory[1:], excluded), log_z) for a in (memory[:1], memory[1:2]))
    assert near < far


def test_the_gradient_is_that_of_finite_differences_and_reaches_no_memory() -> None:
    memory, excluded = unit(draw(20, 5, seed=1)), torch.rand(4, 9, generator=torch.Generator().manual_seed(0)) < 0.3
    log_z = torch.tensor(0.3)

    def loss(anchors: Tensor) -> Tensor:
        return crd_loss(crd_scores(unit(anchors), memory[IDS], memory[:9], excluded, 0.5), log_z)

    assert torch.autograd.gradcheck(loss, (draw(4, 5).requires_grad_(),))
    assert not log_normalizer(crd_scores(draw(4, 5).requires_grad_(), memory[IDS], memory[:9], excluded)).requires_grad


def test_every_layer_learns_and_no_gradient_reaches_the_teachers_embedding() -> None:
    method = bound()
    student, teacher = embeddings(4)
    method(student, teacher, batch_of(IDS, LABELS)).backward()
    assert len(list(method.parameters())) == 4
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in method.parameters())
    assert student.features["embedding"].grad.any()
    assert teacher.features["embedding"].grad is None
    assert {"student_memory", "teacher_memory", "labels", "log_z"} < method.state_dict().keys()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_half_precision_and_a_tiny_temperature_stay_finite(scale: float, dtype: torch.dtype) -> None:
    method = bound(temperature=0.001).float()  # exp(1/τ) overflows float64 too
    student, teacher = embeddings(4)
    features = (scale * student.features["embedding"]).detach().to(dtype).requires_grad_()
    others = (scale * teacher.features["embedding"]).detach().to(dtype)
    for _ in range(2):
        outputs = [Outputs(student.logits, {"embedding": feature}) for feature in (features, others)]
        loss = method(*outputs, batch_of(IDS, LABELS))
        assert loss.dtype is torch.float32
        assert loss.isfinite()
        assert torch.autograd.grad(loss, features)[0].isfinite().all()


def test_images_of_the_anchors_class_and_itself_are_no_negatives() -> None:
    labels = torch.arange(20) % 3
    student, teacher = embeddings(4)
    losses = []
    for scale in (1.0, -1.0):
        method = seen(bound(), labels)
        relatives = (labels == 1).nonzero().flatten()
        method.teacher_memory[relatives[relatives != 4]] *= scale  # of image 4's class, but not itself
        losses.append(method(one(student, 0), one(teacher, 0), batch_of(IDS[:1], labels[IDS[:1]])))
    torch.testing.assert_close(losses[0], losses[1])


def test_an_image_nobody_has_seen_is_a_negative_of_every_class_and_never_of_itself() -> None:
    method, (student, teacher) = bound(), embeddings(4)
    rest = (IDS.numpy(), LABELS.numpy(), list(range(20)), np.full(20, -1), 0.07)
    sides = [
        (method.student_layer, student.features["embedding"], method.teacher_memory.numpy().copy()),
        (method.teacher_layer, teacher.features["embedding"], method.student_memory.numpy().copy()),
    ]
    expected = sum(references.crd(layer(x).detach().numpy(), memory, *rest) for layer, x, memory in sides)
    assert method(student, teacher, batch_of(IDS, LABELS)).item() == pytest.approx(expected, rel=1e-6)


def one(outputs: Outputs, row: int) -> Outputs:
    return Outputs(outputs.logits[:1], {"embedding": outputs.features["embedding"][row : row + 1]})


@pytest.mark.parametrize("num_classes", [1, 2])
def test_two_classes_are_enough_and_one_leaves_the_positive_alone(num_classes: int) -> None:
    labels = torch.arange(20) % num_classes
    method = seen(bound(), labels)
    loss = method(*embeddings(4), batch_of(IDS, labels[IDS]))
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in method.parameters())


def test_negatives_are_distinct_rows_drawn_from_torchs_generator() -> None:
    method = seen(bound(num_train=20, negatives=7), torch.arange(20) % 3).eval()
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(method(*embeddings(4), batch_of(IDS, IDS % 3)))
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_the_other_negatives_count_for_those_that_are_left_out() -> None:
    anchors, memory = unit(draw(4, 5)), unit(draw(1, 5, seed=1)).expand(6, 5)  # all alike
    excluded = torch.arange(6) < torch.tensor([[0], [1], [3], [5]])
    losses = [
        crd_loss(crd_scores(anchors, anchors, memory, left_out, 0.5), torch.tensor(0.0))
        for left_out in (excluded, torch.zeros_like(excluded))
    ]
    torch.testing.assert_close(losses[0], losses[1])


def test_the_memory_is_a_moving_average_of_unit_vectors_of_the_batch_alone() -> None:
    method = bound(momentum=0.25)
    before = method.student_memory.clone()
    student, teacher = embeddings(4)
    method(student, teacher, batch_of(IDS, LABELS))
    vectors = unit(method.student_layer(student.features["embedding"])).detach()
    expected = before.clone()
    expected[IDS] = unit(0.25 * before[IDS] + 0.75 * vectors)
    torch.testing.assert_close(method.student_memory, expected)
    torch.testing.assert_close(method.teacher_memory.norm(dim=1), torch.ones(20, dtype=torch.float64))
    assert not method.student_memory.requires_grad
    assert method.labels.tolist() == [0, -1, 2, -1, 1, -1, -1, 1, *[-1] * 12]


def test_nothing_is_remembered_outside_training_and_the_normaliser_is_of_the_first_batch() -> None:
    method = bound()
    before = copy.deepcopy(method.state_dict())
    method.eval()(*embeddings(4), batch_of(IDS, LABELS))
    assert all(torch.equal(before[name], value) for name, value in method.state_dict().items())
    method.train()(*embeddings(4), batch_of(IDS, LABELS))
    first = method.log_z.clone()
    method(*embeddings(4, seed=1), batch_of(IDS + 1, LABELS))
    assert first.isfinite().all()
    assert torch.equal(method.log_z, first)


def test_the_memory_takes_what_its_documentation_says_and_no_more_than_is_allowed() -> None:
    method = CRD()
    method.bind(*embeddings(2), spec(500))
    held = sum(buffer.nbytes for name, buffer in method.named_buffers() if name != "log_z")
    assert held == method.bank_bytes(500) == 500 * (2 * 128 * 4 + 8)
    assert method.student_memory.dtype is torch.float32
    message = r"^memory_mb: 1281167 training images take 1322 MB, .*; type loss\.memory_mb=1323, or a smaller loss\.dim"
    with pytest.raises(ValueError, match=message):
        CRD().bind(*embeddings(2), spec(1281167))
    CRD(memory_mb=0.6).bind(*embeddings(2), spec(500))


def crd_task(seed: int) -> Distillation:
    method, mix = build_loss({**loss_options("crd"), "dim": 16, "negatives": 50})
    torch.manual_seed(seed)
    return Distillation(make_student(seed), make_teacher(), method, mix, SPEC, name="crd")


def test_resuming_after_an_epoch_ends_with_the_same_bits() -> None:
    recipe, data = Recipe(epochs=3, batch_size=32, lr=0.01), make_data(augment="crop_flip")
    whole, task = Trainer(recipe, seed=5, device=CPU), crd_task(0)
    epochs = whole.epochs(task, data)
    next(epochs)
    live = whole.state()
    state = TrainState(live.epoch, live.step, copy.deepcopy(live.tensors), json.loads(json.dumps(live.plain)))
    list(epochs)
    torch.manual_seed(99)
    resumed = crd_task(1)
    assert not same_tensors(resumed, task)
    list(Trainer(recipe, seed=5, device=CPU).epochs(resumed, data, state))
    assert same_tensors(resumed, task)
    assert (resumed.method.labels >= 0).sum() == data.size("train")


def test_it_learns_to_tell_images_apart() -> None:
    task = crd_task(0)
    records = list(Trainer(Recipe(epochs=6, batch_size=32, lr=0.02), seed=0, device=CPU).epochs(task, make_data()))
    assert records[-1]["train_weighted_crd"] < 0.9 * records[0]["train_weighted_crd"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("dim", 0),
        ("negatives", 0),
        ("temperature", 0.0),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("momentum", math.nan),
        ("crd_weight", -1.0),
        ("memory_mb", 0.0),
    ],
)
def test_a_number_outside_its_range_is_refused_by_its_key(option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^loss\.{option}: {value} is not possible; it must be "):
        build_loss({**loss_options("crd"), option: value})


def test_one_embedding_is_contrasted_and_not_several() -> None:
    method, _ = build_loss({"name": "crd", "taps": ["stages"]})
    with pytest.raises(ValueError, match=r"^taps: \['stages'\] are 3 features; one embedding can be contrasted"):
        Distillation(make_student(), make_teacher(), method, Mix(), SPEC)


def test_the_small_networks_train_with_the_yaml_as_it_stands() -> None:
    method, mix = build_loss(loss_options("crd"))
    task = Distillation(make_student(), make_teacher(), method, mix, SPEC, name="crd")
    assert task.train()(make_batch()).terms["crd"].isfinite()
