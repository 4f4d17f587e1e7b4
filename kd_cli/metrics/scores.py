"""What logits and labels say of a network: accuracy, likelihood, calibration, and how far it agrees with its teacher.

N images, K classes. Accuracies, calibration errors and agreement are percentages with two decimals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CALIBRATION_BINS = 15  # equally wide; Guo et al. 2017, arXiv:1706.04599, section 5


def accuracy(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """`top1`, `top5` where there are more than five classes, `nll` (mean negative log-likelihood, nats), `images`.

    Args:
        logits: [N, K], N > 0.
        labels: [N].
    """
    scores: dict[str, Any] = {"top1": top_k(logits, labels, 1)}
    if logits.shape[1] > 5:
        scores["top5"] = top_k(logits, labels, 5)
    return scores | {"nll": round(float(F.cross_entropy(logits, labels)), 6), "images": len(labels)}


def judge(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """`accuracy`, `brier`, `ece` and `mce`.

    The Brier score is that of several classes (Brier 1950): the mean over images of the sum over classes of the squared
    distance between the probabilities and the label as 0 and 1; 0 … 2. ECE and MCE are the mean and the largest gap
    between confidence and accuracy in bins of confidence (Guo et al. 2017, arXiv:1706.04599, Eq. 3 and 5).

    Args:
        logits: [N, K], N > 0.
        labels: [N].

    Raises:
        ValueError: a logit is not finite.
    """
    if not logits.isfinite().all():
        raise ValueError("not all of its logits are finite")
    probabilities = logits.double().softmax(dim=1)
    squares = (probabilities - F.one_hot(labels, logits.shape[1])).square().sum(dim=1)
    bins = reliability(probabilities, labels)
    errors = {name: calibration_error(bins, norm) for name, norm in (("ece", "l1"), ("mce", "max"))}
    return accuracy(logits, labels) | {"brier": round(float(squares.mean()), 6)} | errors


def reliability(probabilities: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """The bins of a reliability diagram: images by the confidence of their first choice.

    Args:
        probabilities: [N, K].
        labels: [N].

    Returns:
        For each of 15 equally wide bins from `low` up to, but without, `high` (1 belongs to the last) its `images`,
        and their mean `confidence` and `accuracy`, 0 … 1; None where it has no images.
    """
    confidence, choice = probabilities.double().max(dim=1)
    edges = torch.linspace(0, 1, CALIBRATION_BINS + 1, dtype=torch.float64)
    place = (torch.bucketize(confidence, edges, right=True) - 1).clamp(0, CALIBRATION_BINS - 1)
    images = torch.bincount(place, minlength=CALIBRATION_BINS).tolist()
    sums = [
        torch.bincount(place, each, CALIBRATION_BINS).tolist() for each in (confidence, (choice == labels).double())
    ]
    return [
        {"low": low, "high": high, "images": count}
        | {
            name: total / count if count else None
            for name, total in zip(("confidence", "accuracy"), totals, strict=True)
        }
        for low, high, count, *totals in zip(edges[:-1].tolist(), edges[1:].tolist(), images, *sums, strict=True)
    ]


def calibration_error(bins: Sequence[Mapping[str, Any]], norm: str) -> float:
    """The gap between confidence and accuracy, percent.

    Args:
        bins: as `reliability` gives them.
        norm: `l1`: the mean gap, weighed by the images of a bin; `max`: the largest.
    """
    gaps = [(int(each["images"]), abs(each["confidence"] - each["accuracy"])) for each in bins if each["images"]]
    if norm == "max":
        return round(100 * float(max(gap for _, gap in gaps)), 2)
    return round(100 * float(sum(images * gap for images, gap in gaps)) / sum(images for images, _ in gaps), 2)


def confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """How often an image of class i was taken for class j: int64 [K, K]."""
    classes = logits.shape[1]
    return torch.bincount(labels * classes + logits.argmax(dim=1), minlength=classes**2).view(classes, classes)


def selection(select_by: str, logits: Tensor, labels: Tensor) -> dict[str, float]:
    """The score of validation images that a training asked for beside top-1 and likelihood, named as in its records.

    Balanced accuracy is the mean recall of the classes with images, macro F1 the mean of F1 = 2·TP / (2·TP + FP + FN)
    over the classes with images or answers; both in percent.

    Args:
        select_by: top1, balanced_accuracy, macro_f1 or nll.
        logits: [N, K], N > 0.
        labels: [N].
    """
    if select_by not in ("balanced_accuracy", "macro_f1"):
        return {}
    counts = confusion(logits, labels).double()
    right, images, answers = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
    parts, wholes = (right, images) if select_by == "balanced_accuracy" else (2 * right, images + answers)
    there = wholes > 0
    return {f"val_{select_by}": round(100 * float((parts[there] / wholes[there]).mean()), 2)}


def per_class(counts: Tensor, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """For each class its name, its `images` and how many of them were recognised, `top1`; None without images.

    Args:
        counts: [K, K], as `confusion` gives them.
    """
    images, hits = counts.sum(dim=1).tolist(), counts.diagonal().tolist()
    return [
        {"class": name, "images": total, "top1": round(100 * right / total, 2) if total else None}
        for name, total, right in zip(class_names, images, hits, strict=True)
    ]


def agreement(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> dict[str, float | None]:
    """How close a student is to its teacher, on all images and on those on which the teacher is wrong.

    Args:
        student_logits: [N, K], N > 0.
        teacher_logits: [N, K].
        labels: [N].

    Returns:
        `agreement`, the share of images with the same first choice; `agreement_when_wrong`, that share of the images
        on which the teacher's is not the label, None where there are none; and `kl`, the mean of
        KL(teacher ‖ student) at temperature 1 in nats.
    """
    same = student_logits.argmax(dim=1) == teacher_logits.argmax(dim=1)
    student, teacher = (logits.double().log_softmax(dim=1) for logits in (student_logits, teacher_logits))
    divergence = F.kl_div(student, teacher, log_target=True, reduction="batchmean")
    shared = same[teacher_logits.argmax(dim=1) != labels].double()
    return {
        "agreement": round(100 * float(same.double().mean()), 2),
        "agreement_when_wrong": round(100 * float(shared.mean()), 2) if len(shared) else None,
        "kl": round(float(divergence), 6),
    }


AGREEMENT = ("agreement", "agreement_when_wrong", "kl")  # what `agreement` gives


def only_answer(logits: Tensor, labels: Tensor, class_names: Sequence[str]) -> str | None:
    """The class that a network takes every image for, where the images [N] are of several classes; else None."""
    answers = logits.argmax(dim=1)
    alike = len(labels) > 0 and bool((answers == answers[0]).all()) and bool((labels != labels[0]).any())
    return class_names[int(answers[0])] if alike else None


def top_k(logits: Tensor, labels: Tensor, k: int) -> float:
    """Percentage of rows of logits [N, K] whose label [N] is among the k largest."""
    return round(100 * float(hits(logits, labels, k).double().mean()), 2)


def hits(logits: Tensor, labels: Tensor, k: int = 1) -> Tensor:
    """[N], whether the label [N] of a row of logits [N, K] is among the k largest."""
    return (logits.topk(k, dim=1).indices == labels[:, None]).any(dim=1)
