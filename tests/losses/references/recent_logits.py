"""Losses of logits of 2024 and later once more, from their papers, in float64. Nothing of kd_cli is used here.

Logits are [B, K] arrays, labels [B] integers; every function returns a Python float.
"""

from __future__ import annotations

import math

import numpy as np

from tests.losses.references.basic import _log_softmax, _softmax, kd
from tests.losses.references.logits import _kl, _log_sum_exp, _without


def scd(student: np.ndarray, teacher: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """Sun et al. 2025: KL of (p, 1 − p), p the teacher's largest probability and the student's of the label; · T²."""
    total = 0.0
    for s, t, y in zip(student / temperature, teacher / temperature, labels, strict=True):
        pairs = ((t, int(np.argmax(t))), (s, y))
        b_t, b_s = ([z[k] - _log_sum_exp(z), _log_sum_exp(_without(z, k)) - _log_sum_exp(z)] for z, k in pairs)
        total += _kl(b_t, b_s)
    return total / len(student) * temperature**2


def mcd(student: np.ndarray, teacher: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """Sun et al. 2025: KL among the classes whose teacher logit is below that of the label; times T²."""
    total = 0.0
    for s, t, y in zip(student, teacher, labels, strict=True):
        kept = [k for k in range(len(t)) if t[k] < t[y]]
        if kept:
            total += _kl(_log_softmax(t[kept], temperature), _log_softmax(s[kept], temperature))
    return total / len(student) * temperature**2


def rld(
    student: np.ndarray, teacher: np.ndarray, labels: np.ndarray, alpha: float, beta: float, cool: float, warm: float
) -> float:
    """Sun et al. 2025: α · SCD at one temperature, β · MCD at another."""
    return alpha * scd(student, teacher, labels, cool) + beta * mcd(student, teacher, labels, warm)


def _transformed(row: np.ndarray, gamma: float) -> tuple[list[float], float]:
    """Zheng, Yang 2024: log(p_k^γ / Σ p_j^γ) of each class, and Σ p_j^γ."""
    log_powers = [gamma * log_p for log_p in _log_softmax(row, 1.0)]
    log_sum = _log_sum_exp(np.array(log_powers))
    return [value - log_sum for value in log_powers], math.exp(log_sum)


def ttm(student: np.ndarray, teacher: np.ndarray, gamma: float, weighted: bool = False) -> float:
    """Zheng, Yang 2024: KL from the transformed teacher; WTTM weighs each image by Σ p^γ."""
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        transformed, smoothness = _transformed(t, gamma)
        total += (smoothness if weighted else 1.0) * _kl(transformed, _log_softmax(s, 1.0))
    return total / len(student)


def abkd(student: np.ndarray, teacher: np.ndarray, alpha: float, beta: float, temperature: float) -> float:
    """Wang et al. 2025: the α-β divergence, α and β above 0."""
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        for q, p in zip(_softmax(s, temperature), _softmax(t, temperature), strict=True):
            inner = p**alpha * q**beta
            inner -= alpha / (alpha + beta) * p ** (alpha + beta) + beta / (alpha + beta) * q ** (alpha + beta)
            total -= inner / (alpha * beta)
    return total / len(student)


def _plan_cost(p: np.ndarray, q: np.ndarray, cost: np.ndarray, eta: float, iterations: int) -> float:
    """Sinkhorn: u = 1; v = q / Kᵀu, u = p / Kv; the plan is u_i · K_ij · v_j."""
    kernel = np.exp(-cost / eta)
    u = np.ones(len(p))
    for _ in range(iterations):
        v = q / (kernel.T @ u)
        u = p / (kernel @ v)
    plan = u[:, None] * kernel * v[None, :]
    return float((plan * cost).sum())


def wkd_l(
    student: np.ndarray,
    teacher: np.ndarray,
    labels: np.ndarray,
    cost: np.ndarray,
    weights: tuple[float, float],
    temperature: float,
    eta: float,
    iterations: int,
) -> float:
    """Lv et al. 2024: −p_t(y) log p_s(y), and the transport among the classes that are not y."""
    total = 0.0
    for s, t, y in zip(student, teacher, labels, strict=True):
        others = [k for k in range(len(s)) if k != y]
        ours, theirs = (np.array(_softmax(z[others], temperature)) for z in (s, t))
        moved = _plan_cost(ours, theirs, cost[np.ix_(others, others)], eta, iterations)
        total += weights[0] * -_softmax(t, 1.0)[y] * _log_softmax(s, 1.0)[y] + weights[1] * moved
    return total / len(student)


def tekap(
    student: np.ndarray, teacher: np.ndarray, noise: np.ndarray, share: float, weight: float, temperature: float
) -> float:
    """Hossain et al. 2025: kd from the teacher, and w · kd from each teacher (1 − s) · z + s · noise."""
    copies = [kd(student, (1 - share) * teacher + share * each, temperature) for each in noise]
    return kd(student, teacher, temperature) + weight * math.fsum(copies)


def crld(student: np.ndarray, teacher: np.ndarray, weights: tuple[float, float], t: float, taus: list[float]) -> float:
    """Zhang et al. 2024: rows 2i are the weak view of image i, rows 2i + 1 its strong one."""
    total, images = 0.0, range(len(student) // 2)
    for i in images:
        weak, strong = slice(2 * i, 2 * i + 1), slice(2 * i + 1, 2 * i + 2)
        if max(_softmax(teacher[2 * i], 1.0)) >= taus[0]:
            total += weights[0] * (kd(student[weak], teacher[weak], t) + kd(student[strong], teacher[strong], t))
        if max(_softmax(teacher[2 * i + 1], 1.0)) >= taus[1]:
            total += weights[1] * (kd(student[strong], teacher[weak], t) + kd(student[weak], teacher[strong], t))
    return total / len(images)
