"""Every score against a slow reference in float64, and at its edges."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from kd_cli.metrics.evaluate import evaluate, predict
from kd_cli.metrics.scores import agreement, calibration_error, confusion, judge, per_class, reliability
from tests.support.small import CPU, make_data, make_student

SHAPES = [(40, 10), (40, 2), (1, 10), (1, 2), (200, 7)]


def drawn(images: int, classes: int, seed: int = 0, scale: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(images, classes, generator=random)
    return logits, torch.randint(classes, (images,), generator=random)


def softmax(logits: torch.Tensor) -> np.ndarray[Any, Any]:
    values = logits.numpy().astype(np.float64)
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def bins(logits: torch.Tensor, labels: torch.Tensor) -> list[tuple[int, float]]:
    """For each of 15 bins of confidence its images and the gap between confidence and accuracy."""
    found: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(softmax(logits), labels.tolist(), strict=True):
        number = min(int(row.max() * 15), 14)
        found.setdefault(number, []).append((row.max(), row.argmax() == label))
    return [
        (len(each), abs(sum(confidence for confidence, _ in each) - sum(right for _, right in each)) / len(each))
        for each in found.values()
    ]


@pytest.mark.parametrize(("images", "classes"), SHAPES)
def test_the_scores_equal_slow_references(images: int, classes: int) -> None:
    logits, labels = drawn(images, classes)
    scores, rows = judge(logits, labels), softmax(logits)
    pairs = list(zip(rows, labels.tolist(), strict=True))
    brier = [sum((row[k] - (k == label)) ** 2 for k in range(classes)) for row, label in pairs]
    assert scores["images"] == images
    assert scores["top1"] == pytest.approx(100 * np.mean([row.argmax() == label for row, label in pairs]), abs=0.005)
    assert scores["nll"] == pytest.approx(np.mean([-math.log(row[label]) for row, label in pairs]), abs=2e-6)
    assert scores["brier"] == pytest.approx(np.mean(brier), abs=1e-6)
    gaps = bins(logits, labels)
    assert scores["ece"] == pytest.approx(100 * sum(size * gap for size, gap in gaps) / images, abs=0.006)
    assert scores["mce"] == pytest.approx(100 * max(gap for _, gap in gaps), abs=0.006)
    if classes <= 5:
        assert "top5" not in scores
    else:
        among = [label in np.argsort(row)[-5:] for row, label in pairs]
        assert scores["top5"] == pytest.approx(100 * np.mean(among), abs=0.005)


def test_certain_answers_are_scored_without_a_nan() -> None:
    logits = torch.tensor([[1000.0, 0.0], [1000.0, 0.0], [0.0, 1000.0], [0.0, 1000.0]])  # probabilities of 0 and 1
    scores = judge(logits, torch.tensor([0, 0, 1, 0]))
    assert scores["top1"] == 75
    assert scores["brier"] == 0.5  # one image of four is wrong by 1 in both classes
    assert scores["ece"] == 25
    assert scores["mce"] == 25
    assert scores["nll"] == 250


def test_a_confidence_of_one_shares_the_last_bin() -> None:
    """Two images, certain and right, certain by 0.95 and wrong: in one bin their gaps partly cancel."""
    logits = torch.tensor([[1000.0, 0.0], [math.log(19.0), 0.0]])
    assert judge(logits, torch.tensor([0, 1]))["mce"] == pytest.approx(100 * (1.95 - 1) / 2, abs=0.005)


def test_a_uniform_answer_is_as_confident_as_it_is_right() -> None:
    probabilities, labels = torch.full((10, 10), 0.1, dtype=torch.float64), torch.arange(10)
    assert calibration_error(reliability(probabilities, labels), "l1") == 0


def test_logits_that_are_not_finite_are_refused() -> None:
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite"):
            judge(torch.tensor([[bad, 0.0]]), torch.tensor([0]))


@pytest.mark.parametrize(("images", "classes"), SHAPES)
def test_confusion_and_the_accuracy_of_a_class_count_by_hand(images: int, classes: int) -> None:
    logits, labels = drawn(images, classes)
    expected = np.zeros((classes, classes), dtype=int)
    for row, label in zip(softmax(logits), labels.tolist(), strict=True):
        expected[label, row.argmax()] += 1
    counts = confusion(logits, labels)
    assert counts.tolist() == expected.tolist()
    for label, row in enumerate(per_class(counts, [f"class {k}" for k in range(classes)])):
        total = int((labels == label).sum())
        assert (row["class"], row["images"]) == (f"class {label}", total)
        assert row["top1"] == (round(100 * expected[label, label] / total, 2) if total else None)


@pytest.mark.parametrize(("images", "classes"), SHAPES)
def test_agreement_and_divergence_equal_slow_references(images: int, classes: int) -> None:
    (student, labels), (teacher, _) = drawn(images, classes), drawn(images, classes, seed=1)
    ours, theirs = softmax(student), softmax(teacher)
    found = agreement(student, teacher, labels)
    assert found["agreement"] == pytest.approx(100 * np.mean(ours.argmax(axis=1) == theirs.argmax(axis=1)), abs=0.005)
    assert found["kl"] == pytest.approx((theirs * np.log(theirs / ours)).sum(axis=1).mean(), abs=1e-6)
    wrong = [image for image in range(images) if theirs[image].argmax() != labels[image]]
    copied = [ours[image].argmax() == theirs[image].argmax() for image in wrong]
    expected = 100 * np.mean(copied) if wrong else None
    assert found["agreement_when_wrong"] == (None if expected is None else pytest.approx(expected, abs=0.005))
    right = teacher.argmax(dim=1)
    assert agreement(teacher, teacher, right) == {"agreement": 100, "agreement_when_wrong": None, "kl": 0}
    assert agreement(teacher, teacher, (right + 1) % classes)["agreement_when_wrong"] == 100


def test_the_divergence_is_finite_where_a_probability_is_zero_and_is_from_teacher_to_student() -> None:
    certain, even = torch.tensor([[2000.0, 0.0]]), torch.zeros(1, 2)
    label = torch.zeros(1, dtype=torch.long)
    assert agreement(even, certain, label)["kl"] == pytest.approx(math.log(2), abs=1e-6)
    assert agreement(certain, even, label)["kl"] == pytest.approx(1000 - math.log(2), abs=1e-3)


def test_the_scores_of_a_training_are_among_those_of_an_evaluation() -> None:
    data, network = make_data(), make_student()
    options = {"batch_size": 7, "device": CPU}
    assert evaluate(network, data, "val", **options).items() <= judge(*predict(network, data, "val", **options)).items()


@pytest.mark.parametrize(("images", "classes"), SHAPES)
@pytest.mark.parametrize("scale", [0.1, 2.0, 50.0])
def test_the_calibration_errors_are_those_of_torchmetrics(images: int, classes: int, scale: float) -> None:
    logits, labels = drawn(images, classes, scale=scale)
    probabilities = logits.double().softmax(dim=1)
    bins = reliability(probabilities, labels)
    below_one = probabilities.clamp(max=1 - 2**-24)  # torchmetrics gives a confidence of exactly 1 a bin of its own
    for norm in ("l1", "max"):
        theirs = multiclass_calibration_error(below_one, labels, classes, n_bins=15, norm=norm)
        assert calibration_error(bins, norm) == pytest.approx(100 * float(theirs), abs=0.006)


def test_the_bins_of_a_reliability_diagram_hold_every_image_once() -> None:
    logits, labels = drawn(200, 7)
    probabilities = logits.double().softmax(dim=1)
    rows = reliability(probabilities, labels)
    assert [row["low"] for row in rows] == pytest.approx([k / 15 for k in range(15)])
    assert [row["high"] for row in rows] == pytest.approx([(k + 1) / 15 for k in range(15)])
    assert sum(row["images"] for row in rows) == 200
    right = sum(row["images"] * row["accuracy"] for row in rows if row["images"])
    assert right == pytest.approx(int((probabilities.argmax(dim=1) == labels).sum()))
    for row in rows:
        if row["images"]:
            assert row["low"] <= row["confidence"] < row["high"]
        else:
            assert row["confidence"] is row["accuracy"] is None
