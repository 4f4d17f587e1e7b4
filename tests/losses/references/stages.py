"""The losses of stages and heads once more, as plain loops over float64 numbers. Nothing of kd_cli is used.

Feature maps are [B, C, H, W] arrays, embeddings [B, D], logits [B, K].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def average(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """Each pixel of the result is the mean of all pixels that its area touches."""
    rows, columns = maps.shape[2:]
    result = np.empty((*maps.shape[:2], height, width))
    for i in range(height):
        for j in range(width):
            top, bottom = i * rows // height, -(-(i + 1) * rows // height)
            left, right = j * columns // width, -(-(j + 1) * columns // width)
            result[:, :, i, j] = maps[:, :, top:bottom, left:right].mean(axis=(2, 3))
    return result


def negative_mean(maps: np.ndarray) -> np.ndarray:
    """Heo et al. 2019 (overhaul), eq. of the margin: E[x | x < 0] of each channel; 0 where no value is negative."""
    result = np.zeros(maps.shape[1])
    for c in range(maps.shape[1]):
        negative = [float(x) for x in maps[:, c].ravel() if x < 0]
        if negative:
            result[c] = math.fsum(negative) / len(negative)
    return result


def ofd(student: np.ndarray, teacher: np.ndarray, margin: np.ndarray) -> float:
    """Heo et al. 2019 (overhaul): d_p(σ_m(t), s), where d_p is 0 if s ≤ σ_m(t) ≤ 0, else the squared difference."""
    total = 0.0
    for b, c, i, j in np.ndindex(teacher.shape):
        target = max(float(teacher[b, c, i, j]), float(margin[c]))
        s = float(student[b, c, i, j])
        if not s <= target <= 0:
            total += (target - s) ** 2
    return total / len(student)


def ab(student: np.ndarray, teacher: np.ndarray, margin: float) -> float:
    """Heo et al. 2019 (boundaries): ‖ρ(t) ∘ σ(μ − s) + (1 − ρ(t)) ∘ σ(μ + s)‖², ρ(t) = [t > 0], σ = ReLU."""
    total = 0.0
    for t, s in zip(teacher.ravel(), student.ravel(), strict=True):
        rho = 1.0 if t > 0 else 0.0
        total += (rho * max(0.0, margin - float(s)) + (1 - rho) * max(0.0, margin + float(s))) ** 2
    return total / len(student)


def _direction(numbers: Sequence[float]) -> list[float]:
    length = math.sqrt(math.fsum(x * x for x in numbers))
    return [x / length if length else 0.0 for x in numbers]


def ft(student: np.ndarray, teacher: np.ndarray, power: int) -> float:
    """Kim et al. 2018: ‖ F_t/‖F_t‖₂ − F_s/‖F_s‖₂ ‖_p, as the mean of |difference|^p."""
    terms = []
    for ours, theirs in zip(student, teacher, strict=True):
        pairs = zip(_direction(ours.ravel().tolist()), _direction(theirs.ravel().tolist()), strict=True)
        terms += [abs(a - b) ** power for a, b in pairs]
    return math.fsum(terms) / len(terms)


def hcl(student: np.ndarray, teacher: np.ndarray) -> float:
    """Chen et al. 2021: maps, then 4×4, 2×2, 1×1 averages; weights 1, ½, ¼, ⅛ of those that exist, normalised."""
    total, weights, weight = mse(student, teacher), 1.0, 1.0
    for level in (4, 2, 1):
        if level >= min(student.shape[2:]):
            continue
        weight /= 2
        total += weight * mse(average(student, level, level), average(teacher, level, level))
        weights += weight
    return total / weights


def mse(one: np.ndarray, other: np.ndarray) -> float:
    return math.fsum(float(a - b) ** 2 for a, b in zip(one.ravel(), other.ravel(), strict=True)) / one.size


def convolve(maps: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """Stride 1, zeros around, so that the size stays; weight [C_out, C_in, k, k] with odd k."""
    out, _, k, _ = weight.shape
    padded = np.pad(maps, ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    result = np.zeros((len(maps), out, *maps.shape[2:]))
    for b, o, i, j in np.ndindex(result.shape):
        result[b, o, i, j] = (padded[b, :, i : i + k, j : j + k] * weight[o]).sum() + (0 if bias is None else bias[o])
    return result


def fuse(own: np.ndarray, deeper: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Chen et al. 2021, figure 3a: two attention maps of both features together, one for each of them."""
    result = np.empty_like(own)
    deeper = average(deeper, *own.shape[2:])
    for b, i, j in np.ndindex(len(own), *own.shape[2:]):
        both = [*own[b, :, i, j], *deeper[b, :, i, j]]
        heeded = [1 / (1 + math.exp(-(math.fsum(w * x for w, x in zip(weight[n], both, strict=True)) + bias[n])))
                  for n in (0, 1)]  # fmt: skip
        result[b, :, i, j] = heeded[0] * own[b, :, i, j] + heeded[1] * deeper[b, :, i, j]
    return result


def simkd(projected: np.ndarray, teacher: np.ndarray) -> float:
    """Chen et al. 2022: ‖f_t − P(f_s)‖² as a mean, after the teacher's map was averaged to the student's size."""
    return mse(projected, average(teacher, *projected.shape[2:]))


def linear(vectors: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """W x + b of each row."""
    return np.array(
        [[math.fsum(w * x for w, x in zip(row, v, strict=True)) + (0 if bias is None else bias[k])
          for k, row in enumerate(weight)] for v in vectors]
    )  # fmt: skip


def srrl(
    student: np.ndarray, teacher: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, fm: float, sr: float
) -> float:
    """Yang et al. 2021: α ‖h_t − h_s‖² + β ‖W_t h_t − W_t h_s‖², both as means."""
    return fm * mse(student, teacher) + sr * mse(linear(student, weight, bias), linear(teacher, weight, bias))


def class_maps(feature: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Guo et al. 2023: the map of class k at (x, y) is Σ_c w_kc · f_c(x, y)."""
    result = np.zeros((len(feature), len(weight), *feature.shape[2:]))
    for b, k, i, j in np.ndindex(result.shape):
        result[b, k, i, j] = math.fsum(w * f for w, f in zip(weight[k], feature[b, :, i, j], strict=True))
    return result


def catkd(student: np.ndarray, teacher: np.ndarray, resolution: int) -> float:
    """Guo et al. 2023: Σ_k ‖ φ(A_s)/‖φ(A_s)‖ − φ(A_t)/‖φ(A_t)‖ ‖² / K; here also divided by the positions."""
    ours, theirs = average(student, resolution, resolution), average(teacher, resolution, resolution)
    total = 0.0
    for b in range(len(ours)):
        for k in range(ours.shape[1]):
            pair = _direction(ours[b, k].ravel().tolist()), _direction(theirs[b, k].ravel().tolist())
            total += math.fsum((s - t) ** 2 for s, t in zip(*pair, strict=True))
    return total / (len(ours) * ours.shape[1] * resolution**2)
