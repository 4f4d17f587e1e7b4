"""The losses once more, written from the papers as plain loops over float64 numbers. Nothing of kd_cli is used here.

Logits are [B, K] arrays, labels [B] integers; every function returns a Python float.
"""

from __future__ import annotations

import math

import numpy as np


def _softmax(row: np.ndarray, temperature: float) -> list[float]:
    """Hinton et al. 2015, eq. 1: exp(z_i/T) / Σ_j exp(z_j/T)."""
    largest = max(float(z) for z in row)
    powers = [math.exp((float(z) - largest) / temperature) for z in row]
    return [power / math.fsum(powers) for power in powers]


def _log_softmax(row: np.ndarray, temperature: float) -> list[float]:
    largest = max(float(z) for z in row)
    log_sum = math.log(math.fsum(math.exp((float(z) - largest) / temperature) for z in row))
    return [(float(z) - largest) / temperature - log_sum for z in row]


def kd(student: np.ndarray, teacher: np.ndarray, temperature: float, scale_by_t2: bool = True) -> float:
    """Hinton et al. 2015: Σ p_t · (log p_t − log p_s), where 0 · log 0 is 0; mean over the batch; times T²."""
    total = 0.0
    for student_row, teacher_row in zip(student, teacher, strict=True):
        log_p_s, log_p_t = _log_softmax(student_row, temperature), _log_softmax(teacher_row, temperature)
        for k, p_t in enumerate(_softmax(teacher_row, temperature)):
            if p_t > 0:
                total += p_t * (log_p_t[k] - log_p_s[k])
    return total / len(student) * (temperature**2 if scale_by_t2 else 1)


def soft_ce(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """Hinton et al. 2015: −Σ p_t · log p_s; mean over the batch; times T²."""
    total = 0.0
    for student_row, teacher_row in zip(student, teacher, strict=True):
        log_p_s = _log_softmax(student_row, temperature)
        for k, p_t in enumerate(_softmax(teacher_row, temperature)):
            total -= p_t * log_p_s[k]
    return total / len(student) * temperature**2


def mse_logits(student: np.ndarray, teacher: np.ndarray) -> float:
    """Ba & Caruana 2014, eq. 1 without the half, as a mean over classes and batch."""
    total = 0.0
    for b in range(student.shape[0]):
        for k in range(student.shape[1]):
            total += (float(student[b, k]) - float(teacher[b, k])) ** 2
    return total / student.size


def mse_probs(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """Squared difference of the softened probabilities, mean over classes and batch."""
    total = 0.0
    for student_row, teacher_row in zip(student, teacher, strict=True):
        pairs = zip(_softmax(student_row, temperature), _softmax(teacher_row, temperature), strict=True)
        total += math.fsum((p_s - p_t) ** 2 for p_s, p_t in pairs)
    return total / student.size


def cross_entropy(logits: np.ndarray, labels: np.ndarray, smoothing: float = 0.0) -> float:
    """Szegedy et al. 2016, section 7: targets (1 − ε) · one-hot + ε/K; mean over the batch."""
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        for k, log_p in enumerate(_log_softmax(row, 1.0)):
            total -= ((1 - smoothing) * (k == label) + smoothing / len(row)) * log_p
    return total / len(logits)


def label_smoothing(logits: np.ndarray, labels: np.ndarray, smoothing: float) -> float:
    """What smoothing adds to the cross-entropy."""
    return cross_entropy(logits, labels, smoothing) - cross_entropy(logits, labels)
