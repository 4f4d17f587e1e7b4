"""What one batch is asked of a network."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_cli.losses.base import Distiller, Mix, build_loss
from kd_cli.losses.ctkd import CTKD
from kd_cli.losses.kd import KD, kd_loss
from kd_cli.losses.label_smoothing import LabelSmoothing
from kd_cli.training.task import Distillation, Supervised, cross_entropy
from kd_cli.types import Batch, DataSpec, Outputs
from tests.support.small import SPEC, make_batch, make_student, make_teacher, same_tensors

BATCH = make_batch()


class Embeddings(Distiller):
    """A method with a tap and a layer of its own."""

    taps = ("embedding",)

    def bind(self, student: Outputs, teacher: Outputs, data: DataSpec) -> None:
        self.data = data
        self.layer = nn.Linear(student.features["embedding"].shape[1], teacher.features["embedding"].shape[1])

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return F.mse_loss(self.layer(student.features["embedding"]), teacher.features["embedding"])


class Grafted(KD):
    """A method that deploys more than the student."""

    def deploy(self, student: nn.Module, teacher: nn.Module | None) -> nn.Module:
        return nn.Sequential(student, nn.Softmax(dim=1))


def test_supervised_is_the_cross_entropy_with_the_labels() -> None:
    network = make_student().eval()
    step = Supervised(network, label_smoothing=0.2)(BATCH)
    assert torch.equal(step.logits, network(BATCH.images))
    assert torch.equal(step.loss, F.cross_entropy(step.logits, BATCH.labels, label_smoothing=0.2))
    assert torch.equal(step.terms["ce"], step.loss)
    assert not step.terms["ce"].requires_grad


def test_the_terms_of_a_distillation_are_detached_weighted_and_sum_to_the_loss() -> None:
    student, teacher = make_student().eval(), make_teacher()
    task = Distillation(student, teacher, KD(temperature=3.0, kl_weight=0.5), Mix(0.25, 2.0), SPEC, name="kd")
    step = task(BATCH)
    logits = student(BATCH.images), teacher(BATCH.images)
    assert list(step.terms) == ["ce", "kd"]
    torch.testing.assert_close(step.terms["ce"], 0.25 * F.cross_entropy(logits[0], BATCH.labels).detach())
    torch.testing.assert_close(step.terms["kd"], 2.0 * 0.5 * kd_loss(*logits, temperature=3.0).detach())
    torch.testing.assert_close(step.loss.detach(), step.terms["ce"] + step.terms["kd"])
    assert step.loss.requires_grad
    assert not any(term.requires_grad for term in step.terms.values())
    assert torch.equal(step.logits, logits[0])


@pytest.mark.parametrize(("mix", "names"), [(Mix(0.0, 1.0), ["distill"]), (Mix(1.0, 0.0), ["ce"])])
def test_a_weight_of_zero_leaves_the_term_out(mix: Mix, names: list[str]) -> None:
    step = Distillation(make_student(), make_teacher(), KD(), mix, SPEC)(BATCH)
    assert list(step.terms) == names
    assert torch.equal(step.loss.detach(), step.terms[names[0]])


def test_the_labels_of_a_distillation_may_be_smoothed() -> None:
    student = make_student().eval()
    task = Distillation(student, make_teacher(), KD(), Mix(0.5, 1.0), SPEC, label_smoothing=0.3)
    expected = 0.5 * F.cross_entropy(student(BATCH.images), BATCH.labels, label_smoothing=0.3)
    torch.testing.assert_close(task(BATCH).terms["ce"], expected.detach())


def test_the_terms_of_a_sum_are_shown_one_by_one() -> None:
    kd = {"name": "kd", "temperature": 2.0}
    terms = [kd, {"name": "at", "weight": 0.5}, {**kd, "weight": 3.0, "warmup_epochs": 6.0}, {**kd, "weight": 0.0}]
    method, mix = build_loss({"name": "combined", "terms": terms, "weight": 2.0})
    student = make_student().eval()
    step = Distillation(student, make_teacher(), method, mix, SPEC, name="combined")(BATCH)
    assert list(step.terms) == ["ce", "combined_kd", "combined_at", "combined_kd2"]
    torch.testing.assert_close(sum(step.terms.values()), step.loss.detach())
    torch.testing.assert_close(step.terms["combined_kd2"], 0.5 * step.terms["combined_kd"])


def test_label_smoothing_as_a_method_is_label_smoothing_as_an_option() -> None:
    method, mix = build_loss({"name": "label_smoothing", "smoothing": 0.3})
    student = make_student().eval()
    step = Distillation(student, None, method, mix, SPEC)(BATCH)
    torch.testing.assert_close(step.loss, Supervised(student, label_smoothing=0.3)(BATCH).loss)


def test_a_method_that_asks_no_teacher_trains_without_one() -> None:
    student = make_student()
    Distillation(student, None, LabelSmoothing(), Mix(0.0, 1.0), SPEC)(BATCH).loss.backward()
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_only_the_student_and_the_layers_of_the_method_are_trained_and_saved() -> None:
    student, teacher, method = make_student(), make_teacher(), Embeddings()
    task = Distillation(student, teacher, method, Mix(), SPEC)
    assert {id(p) for p in task.parameters()} == {id(p) for p in [*student.parameters(), *method.layer.parameters()]}
    assert list(task.state_dict()) == [
        *(f"network.{name}" for name in student.state_dict()),
        "method.layer.weight",
        "method.layer.bias",
    ]


def test_training_the_task_leaves_the_teacher_in_eval_mode_and_as_it_was() -> None:
    teacher = make_teacher()
    before = copy.deepcopy(teacher)
    task = Distillation(make_student(), teacher, Embeddings(), Mix(), SPEC).train()
    task(BATCH).loss.backward()
    assert same_tensors(teacher, before)
    assert not any(module.training for module in teacher.modules())
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_binding_leaves_the_student_and_the_random_state_as_they_were(training: bool) -> None:
    student, teacher = make_student().train(training), make_teacher()
    before, random = copy.deepcopy(student), torch.get_rng_state()
    Distillation(student, teacher, KD(), Mix(), SPEC)
    assert same_tensors(student, before)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training is training for module in student.modules())
    assert all(parameter.grad is None for parameter in student.parameters())


def test_a_method_is_bound_to_the_shapes_of_the_pair_and_to_the_data() -> None:
    method = Embeddings()
    Distillation(make_student(), make_teacher(), method, Mix(), SPEC)
    assert method.layer.weight.shape == (12, 8)
    assert method.data is SPEC


def test_a_method_that_is_switched_off_asks_nothing_of_a_teacher_that_is_not_there() -> None:
    student = make_student().eval()
    task = Distillation(student, None, Embeddings(), Mix(1.0, 0.0), SPEC)
    torch.testing.assert_close(task(BATCH).loss, Supervised(student)(BATCH).loss)
    assert Distillation(student, None, Grafted(), Mix(1.0, 0.0), SPEC).deployed is student


def test_what_is_deployed_is_what_the_method_says_and_is_saved_once() -> None:
    student = make_student()
    plain = Distillation(student, make_teacher(), KD(), Mix(), SPEC)
    grafted = Distillation(student, make_teacher(), Grafted(), Mix(), SPEC)
    assert plain.deployed is student
    assert isinstance(grafted.deployed[1], nn.Softmax)
    assert list(grafted.state_dict()) == list(plain.state_dict())
    assert Supervised(student).deployed is student


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cross_entropy_of_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e4, 0.0], [0.5, 0.25]], dtype=dtype)
    labels = torch.tensor([1, 0])
    assert torch.equal(cross_entropy(logits, labels), F.cross_entropy(logits.float(), labels))


def test_what_a_method_without_a_word_would_learn_is_where_the_network_is() -> None:
    task = Distillation(make_student().to("meta"), None, CTKD(), Mix(1.0, 0.0), SPEC, name="ctkd")
    assert all(parameter.is_meta for parameter in task.parameters())
