"""More losses of logits once more, from their papers, in float64. Nothing of kd_cli is used here.

Logits are [B, K] arrays, labels [B] integers; every function returns a Python float.
"""

from __future__ import annotations

import math

import numpy as np

from tests.losses.references.basic import _log_softmax, _softmax, kd


def _kl(log_p: list[float], log_q: list[float]) -> float:
    """Σ p · (log p − log q), where 0 · log 0 is 0."""
    return math.fsum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True) if math.exp(p) > 0)


def _without(row: np.ndarray, label: int) -> np.ndarray:
    return np.delete(row, label)


def _log_sum_exp(values: np.ndarray) -> float:
    largest = float(values.max())
    return largest + math.log(math.fsum(math.exp(float(v) - largest) for v in values))


def tckd(student: np.ndarray, teacher: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """Zhao et al. 2022, eqs. 1 and 5: KL of b = (p_y, Σ_{k ≠ y} p_k); mean over the batch; times T²."""
    total = 0.0
    for s, t, y in zip(student / temperature, teacher / temperature, labels, strict=True):
        b_s, b_t = ([z[y] - _log_sum_exp(z), _log_sum_exp(_without(z, y)) - _log_sum_exp(z)] for z in (s, t))
        total += _kl(b_t, b_s)
    return total / len(student) * temperature**2


def nckd(student: np.ndarray, teacher: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """Zhao et al. 2022, eqs. 2 and 5: KL of p̂_k = exp(z_k/T) / Σ_{j ≠ y} exp(z_j/T); mean over the batch; times T²."""
    total = 0.0
    for s, t, y in zip(student, teacher, labels, strict=True):
        total += _kl(_log_softmax(_without(t, y), temperature), _log_softmax(_without(s, y), temperature))
    return total / len(student) * temperature**2


def dkd(
    student: np.ndarray, teacher: np.ndarray, labels: np.ndarray, alpha: float, beta: float, temperature: float
) -> float:
    """Zhao et al. 2022, eq. 7."""
    return alpha * tckd(student, teacher, labels, temperature) + beta * nckd(student, teacher, labels, temperature)


def _one_minus_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Mean over the rows; a constant row has no correlation, which counts as 0."""
    rows = [
        1.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else 1.0 - float(np.corrcoef(a, b)[0, 1])
        for a, b in zip(one, other, strict=True)
    ]
    return math.fsum(rows) / len(rows)


def dist(
    student: np.ndarray, teacher: np.ndarray, beta: float, gamma: float, temperature: float, scale_by_t2: bool
) -> float:
    """Huang et al. 2022, eqs. 7 to 10: Pearson's distance over classes and over the batch."""
    s, t = (np.array([_softmax(row, temperature) for row in logits]) for logits in (student, teacher))
    intra = _one_minus_correlation(s.T, t.T) if len(s) > 1 else 0.0
    loss = beta * _one_minus_correlation(s, t) + gamma * intra
    return loss * (temperature**2 if scale_by_t2 else 1)


def nkd(student: np.ndarray, teacher: np.ndarray, labels: np.ndarray, gamma: float, temperature: float) -> float:
    """Yang et al. 2023: −T_y · log S_y − γ · λ² · Σ_{i ≠ y} N(T_i) · log N(S_i), N: sum 1 over i ≠ y, softened by λ."""
    total = 0.0
    for s, t, y in zip(student, teacher, labels, strict=True):
        total -= _softmax(t, 1.0)[y] * _log_softmax(s, 1.0)[y]
        pairs = zip(_softmax(_without(t, y), temperature), _log_softmax(_without(s, y), temperature), strict=True)
        total -= gamma * temperature**2 * math.fsum(p * log_q for p, log_q in pairs)
    return total / len(student)


def mlkd_batch(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """Jin et al. 2023: ‖G_s − G_t‖² / B, G_ab = Σ_k p_ak · p_bk."""
    s, t = ([_softmax(row, temperature) for row in logits] for logits in (student, teacher))
    size, total = len(s), 0.0
    for a in range(size):
        for b in range(size):
            g_s = math.fsum(x * y for x, y in zip(s[a], s[b], strict=True))
            g_t = math.fsum(x * y for x, y in zip(t[a], t[b], strict=True))
            total += (g_s - g_t) ** 2
    return total / size


def mlkd_class(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """Jin et al. 2023: ‖M_s − M_t‖² / K, M = Σ_b p_b p_bᵀ."""
    classes = student.shape[1]
    m_s, m_t = np.zeros((classes, classes)), np.zeros((classes, classes))
    for s_row, t_row in zip(student, teacher, strict=True):
        m_s += np.outer(_softmax(s_row, temperature), _softmax(s_row, temperature))
        m_t += np.outer(_softmax(t_row, temperature), _softmax(t_row, temperature))
    return float(((m_s - m_t) ** 2).sum()) / classes


def mlkd(student: np.ndarray, teacher: np.ndarray, temperatures: list[float], weights: list[float]) -> float:
    """Jin et al. 2023: instances, batch and classes, summed over the temperatures."""
    parts = (kd, mlkd_batch, mlkd_class)
    return math.fsum(
        w * part(student, teacher, t) for t in temperatures for w, part in zip(weights, parts, strict=True)
    )


def wsld(student: np.ndarray, teacher: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """Zhou et al. 2021: mean over images of (1 − exp(−CE_s/CE_t)) · T² · KL, the CE at T = 1."""
    total = 0.0
    for s, t, y in zip(student, teacher, labels, strict=True):
        ce_s, ce_t = -_log_softmax(s, 1.0)[y], -_log_softmax(t, 1.0)[y]
        ratio = ce_s / ce_t if ce_t > 0 else (math.inf if ce_s > 0 else 0.0)
        total += (1 - math.exp(-ratio)) * kd(s[None], t[None], temperature)
    return total / len(student)


def tfkd(logits: np.ndarray, labels: np.ndarray, label_probability: float, temperature: float) -> float:
    """Yuan et al. 2020: kd from p^d, softened as p(k)^(1/T) / Σ p(j)^(1/T)."""
    total, classes = 0.0, logits.shape[1]
    for row, y in zip(logits, labels, strict=True):
        p = [label_probability if k == y else (1 - label_probability) / (classes - 1) for k in range(classes)]
        powers = [x ** (1 / temperature) for x in p]
        log_p = [math.log(x / math.fsum(powers)) for x in powers]
        total += _kl(log_p, _log_softmax(row, temperature))
    return total / len(logits) * temperature**2


def z_scores(logits: np.ndarray) -> np.ndarray:
    """Sun et al. 2024: (z − mean) / σ of each row, σ² = Σ (z − mean)² / K."""
    return np.array([(row - row.mean()) / row.std() for row in logits])
