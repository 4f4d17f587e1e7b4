"""Methods that read a classifier: srrl and catkd, and which feature a classifier reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kd_cli.losses.adapters import makes_logits
from kd_cli.losses.base import Mix, build_loss
from kd_cli.models.base import MODELS
from kd_cli.taps import Tapped
from kd_cli.training.task import Distillation
from tests.losses.references import stages as references
from tests.support.heads import HEADS, headed
from tests.support.small import SPEC, loss_options, make_batch

BATCH = make_batch()
NAMES = ("srrl", "catkd")
AVERAGED = ("average", "one pixel")  # heads whose classifier reads the average of the stage's map


def task_of(
    name: str, student: nn.Module | None = None, teacher: nn.Module | None = None, **options: Any
) -> Distillation:
    """A student and a teacher that end with an average, of different channels and sizes; eval mode, no dropout."""
    method, _ = build_loss({**loss_options(name), **options})
    student, teacher = student or headed("average"), teacher or headed("average", seed=1, channels=9, size=7)
    torch.manual_seed(0)
    return Distillation(student, teacher, method, Mix(0.0, 1.0), SPEC, name=name).eval()


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def test_srrl_equals_its_reference() -> None:
    teacher = headed("average", seed=1, channels=9, size=7)
    task = task_of("srrl", teacher=teacher, fm_weight=0.5, sr_weight=2.0)
    student, said = task.example(BATCH.images)
    ours = array(task.method.connector(student.features["embedding"]))
    head = array(teacher.head[1].weight), array(teacher.head[1].bias)
    expected = references.srrl(ours, array(said.features["embedding"]), *head, fm=0.5, sr=2.0)
    assert task(BATCH).loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("resolution", [2, 3])
def test_catkd_equals_its_reference(resolution: int) -> None:
    networks = headed("average"), headed("average", seed=1, channels=9, size=7)
    task = task_of("catkd", *networks, resolution=resolution)
    maps = [
        references.class_maps(array(said.features["final"]), array(network.head[1].weight))
        for network, said in zip(networks, task.example(BATCH.images), strict=True)
    ]
    assert task(BATCH).loss.item() == pytest.approx(400 * references.catkd(*maps, resolution), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_teachers_classifier_is_read_live_and_never_gets_a_gradient(name: str) -> None:
    teacher = headed("average", seed=1, channels=9)
    task = task_of(name, teacher=teacher)
    teacher.requires_grad_(True)  # it would get one if a method let it through
    first = task(BATCH).loss
    first.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert task.network.stage[0].weight.grad.any()
    with torch.no_grad():
        teacher.head[1].weight.copy_(torch.randn_like(teacher.head[1].weight))
    assert task(BATCH).loss != first


@pytest.mark.parametrize("name", [*NAMES, "simkd"])
def test_no_gradient_reaches_a_teacher_whose_outputs_would_pass_one(name: str) -> None:
    teacher = headed("average", seed=1, channels=9)
    task = task_of(name, teacher=teacher)
    teacher.requires_grad_(True)
    outputs = (
        Tapped(task.network, task.method.taps)(BATCH.images),
        Tapped(teacher, task.method.teacher_taps)(BATCH.images),
    )
    task.method(*outputs, BATCH).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_students_classifier_learns_from_its_class_activation_maps() -> None:
    task = task_of("catkd")
    task(BATCH).loss.backward()
    assert task.network.head[1].weight.grad.any()
    assert task.network.head[1].bias.grad is None  # a bias is nowhere


def test_srrl_leaves_the_students_classifier_to_the_labels() -> None:
    task = task_of("srrl")
    task(BATCH).loss.backward()
    assert task.network.head[1].weight.grad is None


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_of_the_teacher_teaches_nothing(name: str) -> None:
    task = task_of(name, headed("average"), headed("average"))
    if name == "srrl":
        nn.init.eye_(task.method.connector.weight)
    step = task(BATCH)
    step.loss.backward()
    assert step.loss.item() == pytest.approx(0, abs=1e-9)
    assert all(grad is None or grad.abs().max() < 1e-5 for grad in (p.grad for p in task.parameters()))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("head", HEADS)
def test_what_a_classifier_reads_is_seen_whatever_the_weights_are(head: str, seed: int) -> None:
    network = headed(head, seed=seed)
    outputs = Tapped(network, ["stage1", "head.1:in", "head.0"])(BATCH.images)
    published = head != "nothing published"
    assert makes_logits(outputs, outputs.features["stage1"]) == (head in AVERAGED)
    assert makes_logits(outputs, outputs.features["head.1:in"]) == published
    assert makes_logits(outputs, outputs.features["head.0"]) == published


@pytest.mark.parametrize("head", ["norm and relu", "convolution", "hidden layer"])
def test_an_example_batch_of_a_fresh_network_tells_its_head(head: str) -> None:
    task = task_of("srrl", headed(head), headed(head), taps=["embedding"])
    student, _ = task.example(BATCH.images)
    assert makes_logits(student, student.features["embedding"])
    with pytest.raises(ValueError, match=r"^taps: \['final'\] is not"):  # zeros would have told nothing
        task_of("catkd", student=headed(head))


@pytest.mark.parametrize("head", [head for head in HEADS if head not in AVERAGED])
def test_catkd_refuses_a_network_whose_classifier_does_not_read_an_average(head: str) -> None:
    message = r"^{}: \['final'\] is not the feature map .* the {}'s linear classifier reads; .* loss\.{}=\[pool:in\]"
    with pytest.raises(ValueError, match=message.format("taps", "student", "taps")):
        task_of("catkd", student=headed(head))
    with pytest.raises(ValueError, match=message.format("teacher_taps", "teacher", "teacher_taps")):
        task_of("catkd", teacher=headed(head))


@pytest.mark.parametrize(("head", "path"), [("norm and relu", "between"), ("convolution", "between")])
def test_the_path_of_the_map_that_is_averaged_makes_up_for_it(head: str, path: str) -> None:
    task = task_of("catkd", teacher=headed(head, channels=9), teacher_taps=[path]).train()
    assert task(BATCH).loss.isfinite()


def test_the_pooled_map_of_a_wide_residual_network_is_read() -> None:
    wide = MODELS.build({"name": "wrn_16_1"}, where="student", num_classes=10, in_channels=3, image_size=16)
    expected = task_of("catkd", wide, taps=["pool:in"], teacher_taps=["stage-1"])(BATCH).loss
    assert expected.isfinite()
    assert torch.equal(task_of("catkd", wide)(BATCH).loss, expected)  # final


def test_catkd_refuses_maps_of_one_pixel_which_have_nothing_but_a_sign() -> None:
    with pytest.raises(ValueError, match=r"^taps: all maps are compared at a single pixel"):
        task_of("catkd", student=headed("one pixel"))


@pytest.mark.parametrize("head", [head for head in HEADS if head != "nothing published"])
def test_srrl_works_with_every_published_head(head: str) -> None:
    assert task_of("srrl", headed(head), headed(head, seed=1, channels=9)).train()(BATCH).loss.isfinite()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"taps": ["stage-1"]}, r"^taps: \['stage-1'\] must be one embedding \[B, D\]; type loss\.taps=\[embedding\]"),
        ({"taps": ["embedding", "head.0"]}, r"^taps: .* must be one embedding"),
        (
            {"taps": ["embedding"], "teacher_taps": ["head"]},
            r"^teacher_taps: \['head'\] is not what a linear classifier",
        ),
    ],
)
def test_srrl_refuses_what_is_no_embedding(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task_of("srrl", **options)


def test_srrl_refuses_a_teacher_whose_classifier_is_not_published() -> None:
    with pytest.raises(ValueError, match=r"^teacher_taps: .* the teacher must publish its `embedding`"):
        task_of("srrl", teacher=headed("nothing published"), taps=["embedding"], teacher_taps=["head.1:in"])


def test_catkd_refuses_several_features() -> None:
    with pytest.raises(ValueError, match=r"^taps: \['stage1', 'stage.3'\] are 2 features; type loss\.taps=\[final\]"):
        task_of("catkd", taps=["stage1", "stage.3"])
