"""SimKD and the network that it deploys: the student's body, a projector, the teacher's classifier."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd_cli.config.recipe import Recipe
from kd_cli.losses.base import Mix, build_loss
from kd_cli.losses.simkd import Projector, headless
from kd_cli.metrics.evaluate import evaluate, evaluating
from kd_cli.models.base import MODELS, count_parameters
from kd_cli.taps import Tapped
from kd_cli.training.task import Distillation
from kd_cli.training.trainer import Trainer
from tests.losses.references import stages as references
from tests.support.heads import HEADS, headed
from tests.support.small import CPU, SPEC, loss_options, make_batch, make_data, make_student, make_teacher, same_tensors

BATCH = make_batch()
PUBLISHED = tuple(head for head in HEADS if head != "nothing published")
every_teacher = pytest.mark.parametrize("teacher_head", PUBLISHED)
every_pair = pytest.mark.parametrize(
    ("student_head", "teacher_head"), [(s, t) for s in ("average", "convolution") for t in PUBLISHED]
)


def task_of(student: nn.Module, teacher: nn.Module, mix: Mix | None = None, **options: Any) -> Distillation:
    method, usual = build_loss({**loss_options("simkd"), **options})
    return Distillation(student, teacher, method, mix or usual, SPEC, name="simkd")


def pair(student_head: str, teacher_head: str, seed: int = 0) -> Distillation:
    torch.manual_seed(seed)
    return task_of(
        headed(student_head, seed=seed, size=4), headed(teacher_head, seed=seed + 1, channels=9, size=5)
    )  # fmt: skip


def trained(task: Distillation, steps: int = 3) -> Distillation:
    optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=0.1)
    for seed in range(steps):
        optimizer.zero_grad()
        task.train()(make_batch(seed=seed)).loss.backward()
        optimizer.step()
    return task.eval()


def logits(network: nn.Module) -> Tensor:
    with evaluating(network):
        return network(BATCH.images).clone()


def reads_the_map(head: str) -> bool:
    return head in ("average", "one pixel")


@every_pair
def test_the_deployed_network_is_the_teachers_classifier_on_the_projected_feature_of_the_student(
    student_head: str, teacher_head: str
) -> None:
    task = trained(pair(student_head, teacher_head))
    student, teacher = task.example(BATCH.images)
    feature = student.features["final" if reads_the_map(teacher_head) else "embedding"]
    with torch.no_grad(), evaluating(task.deployed):
        projected = task.method.projector(feature)
        expected = teacher.classifier(projected.mean(dim=(2, 3)))
    torch.testing.assert_close(logits(task.deployed), expected)
    assert projected.shape[2:] == ((4, 4) if teacher_head == "average" else (1, 1))


@every_teacher
def test_it_gives_the_teachers_logits_where_the_projected_feature_is_the_teachers(teacher_head: str) -> None:
    teacher = headed(teacher_head, seed=1, channels=9, size=5)
    task = task_of(headed("average"), teacher)
    theirs = Tapped(teacher, ["stage1", "embedding"])(BATCH.images)
    feature = theirs.features["stage1" if reads_the_map(teacher_head) else "embedding"]
    deployed = copy.deepcopy(task.deployed).eval()
    deployed.projector = Always(feature if feature.ndim == 4 else feature[:, :, None, None])
    torch.testing.assert_close(deployed(BATCH.images), theirs.logits)


class Always(nn.Module):
    """The feature of the batch, whatever it is given."""

    def __init__(self, feature: Tensor) -> None:
        super().__init__()
        self.feature = feature.detach()

    def forward(self, _: Tensor) -> Tensor:
        return self.feature


@every_pair
def test_its_state_fits_a_freshly_built_one_even_of_another_teacher(student_head: str, teacher_head: str) -> None:
    task, fresh = trained(pair(student_head, teacher_head)), pair(student_head, teacher_head, seed=7)
    assert not torch.equal(logits(fresh.deployed), logits(task.deployed))
    fresh.deployed.load_state_dict(task.deployed.state_dict())
    assert torch.equal(logits(fresh.deployed), logits(task.deployed))


def test_its_tensors_are_those_that_are_trained_and_the_teachers_classifier_a_frozen_copy() -> None:
    student, teacher = headed("average"), headed("average", seed=1, channels=9)
    task = task_of(student, teacher)
    learned = {id(p) for p in task.deployed.parameters() if p.requires_grad}
    head = {id(p) for p in student.head.parameters()}
    assert learned == {id(p) for p in task.parameters()} - head
    assert same_tensors(task.deployed.classifier, teacher.head[1])
    assert task.deployed.classifier.weight is not teacher.head[1].weight
    deployed = task.method.deploy(student, teacher.requires_grad_(True))
    assert not any(p.requires_grad for p in deployed.classifier.parameters())
    before = copy.deepcopy(task.deployed)
    trained(task)
    assert not torch.equal(logits(task.deployed), logits(before))
    assert same_tensors(task.deployed.classifier, before.classifier)
    assert count_parameters(task.deployed) == sum(
        count_parameters(part) for part in (student.stage, task.method.projector, teacher.head)
    )


def test_the_student_keeps_its_own_classifier() -> None:
    student = headed("hidden layer")
    expected = logits(student)
    body = headless(student)
    assert isinstance(student.head[1], nn.Linear)
    assert isinstance(body.head[1], nn.Identity)
    assert body.stage is student.stage
    assert body.hidden.weight is student.hidden.weight
    assert torch.equal(logits(student), expected)
    nothing = headed("nothing published")
    assert headless(nothing) is nothing


def test_train_and_eval_mode_reach_all_that_is_deployed_and_come_back() -> None:
    task = pair("average", "average")
    task.train()
    with evaluating(task.deployed):
        assert not any(module.training for module in task.deployed.modules())
        assert not any(module.training for module in task.network.stage.modules())
    assert all(module.training for module in task.network.stage.modules())
    assert all(module.training for module in task.method.modules())


def test_a_deep_copy_is_a_network_of_its_own() -> None:
    task = trained(pair("average", "average"))
    copied, expected = copy.deepcopy(task.deployed), logits(task.deployed)
    with torch.no_grad():
        for parameter in task.deployed.parameters():
            parameter.zero_()
    assert torch.equal(logits(copied), expected)
    assert not {id(p) for p in copied.parameters()} & {id(p) for p in task.deployed.parameters()}


def test_it_can_be_pickled() -> None:
    task = trained(pair("average", "average"))
    torch.save(task.deployed, file := io.BytesIO())
    restored = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    assert torch.equal(logits(restored), logits(task.deployed))


def test_compiling_changes_no_logit() -> None:
    task = trained(pair("average", "average"))
    expected = logits(task.deployed)
    task.deployed.compile(backend="eager")
    torch.testing.assert_close(logits(task.deployed), expected)


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_a_trained_student_is_evaluated_with_the_teachers_head(ema_decay: float | None) -> None:
    task = task_of(make_student(), make_teacher())
    recipe = Recipe(epochs=2, batch_size=16, limit_train_batches=6, ema_decay=ema_decay)
    trainer = Trainer(recipe, seed=0, device=CPU)
    data = make_data()
    last = list(trainer.epochs(task, data))[-1]
    scores = evaluate(trainer.deployed, data, "val", batch_size=20, device=CPU)
    assert last["val_top1"] == scores["top1"]
    with evaluating(trainer.deployed):
        feature = Tapped(trainer.deployed.body, ["stage3"])(BATCH.images).features["stage3"]
        expected = trainer.deployed.classifier(trainer.deployed.projector(feature).mean(dim=(2, 3)))
        assert torch.equal(trainer.deployed(BATCH.images), expected)
    assert (trainer.deployed is task.deployed) == (ema_decay is None)


def test_the_loss_is_the_distance_from_the_teachers_feature_and_of_no_logit() -> None:
    task = pair("average", "average")
    task.eval()
    student, teacher = task.example(BATCH.images)
    projected = task.method.projector(student.features["final"]).detach().double().numpy()
    expected = references.simkd(projected, teacher.features["final"].double().numpy())
    step = task(BATCH)
    assert list(step.terms) == ["simkd"]  # ce_weight is 0 in the yaml
    assert step.loss.item() == pytest.approx(expected, rel=1e-5)
    step.loss.backward()
    assert task.network.head[1].weight.grad is None


@pytest.mark.parametrize(("ours", "theirs", "size"), [(8, 4, 4), (3, 5, 3), (5, 1, 1)])
def test_the_larger_of_two_maps_is_averaged_in_training_and_in_the_deployed_network(
    ours: int, theirs: int, size: int
) -> None:
    task = task_of(headed("average", size=ours), headed("average", seed=1, channels=9, size=theirs))
    feature = torch.rand(2, 6, ours, ours)
    pooled = torch.from_numpy(references.average(feature.numpy(), size, size)).float()
    projector = task.method.projector.eval()
    assert projector(feature).shape == (2, 9, size, size)
    torch.testing.assert_close(projector(feature), projector(pooled))
    assert logits(task.deployed).shape == (8, 10)


@pytest.mark.parametrize("rectified", [True, False])
def test_a_projector_ends_with_a_relu_only_for_a_teacher_without_negative_features(rectified: bool) -> None:
    ours, theirs = torch.randn(2, 6, 4, 4), torch.randn(2, 9, 4, 4)
    projector = Projector(ours, theirs.relu() if rectified else theirs, reduction=2)
    assert bool((projector(ours) < 0).any()) != rectified
    other = Projector(ours, theirs, reduction=2)
    other.load_state_dict(projector.state_dict())
    assert torch.equal(other(ours), projector(ours))


def test_a_teacher_without_a_classifier_to_reuse_is_refused() -> None:
    unpublished = headed("nothing published")
    with pytest.raises(ValueError, match=r"^teacher_taps: of none of \['stage-1'\] the teacher's classifier makes"):
        task_of(headed("average"), unpublished, taps=["stage-1"])
    with pytest.raises(ValueError, match=r"one of the taps: loss\.taps=\[embedding\]"):
        task_of(headed("average"), headed("convolution"), taps=["stage-1"])


def test_networks_without_feature_maps_are_grafted_at_their_embeddings() -> None:
    torch.manual_seed(0)
    student, teacher = (
        MODELS.build({"name": "mlp", "hidden": [n]}, where="student", num_classes=10, in_channels=3, image_size=16)
        for n in (5, 7)
    )
    task = trained(task_of(student, teacher, taps=["embedding"]))
    assert logits(task.deployed).shape == (8, 10)
    assert task.deployed.body.fc is not student.fc


def test_without_weight_the_student_is_deployed_as_it_is() -> None:
    student = make_student()
    assert task_of(student, make_teacher(), Mix(1.0, 0.0)).deployed is student


def test_in_a_sum_of_losses_it_deploys_the_same() -> None:
    terms = [{"name": "kd", "temperature": 2.0}, {"name": "simkd"}]
    method, _ = build_loss({"name": "combined", "terms": terms})
    task = Distillation(make_student(), make_teacher(), method, Mix(), SPEC)
    task.train()(BATCH).loss.backward()
    assert task.deployed.projector is method.terms[1].projector
    assert logits(task.deployed).shape == (8, 10)
