"""The losses of features once more, written from the papers as plain loops over float64 numbers, without kd_cli.

Feature maps are [B, C, H, W] arrays, vectors [B, D]; every function returns a Python float.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np


def _pool(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """[C, H, W] → [C, height, width]: cell i averages the rows from ⌊i·H/h⌋ up to ⌈(i + 1)·H/h⌉, columns likewise."""
    channels, rows, columns = image.shape
    pooled = np.empty((channels, height, width))
    for i in range(height):
        top, bottom = i * rows // height, -(-(i + 1) * rows // height)
        for j in range(width):
            left, right = j * columns // width, -(-(j + 1) * columns // width)
            for c in range(channels):
                cell = [float(image[c, y, x]) for y in range(top, bottom) for x in range(left, right)]
                pooled[c, i, j] = math.fsum(cell) / len(cell)
    return pooled


def _same_size(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    height, width = min(one.shape[1], other.shape[1]), min(one.shape[2], other.shape[2])
    return _pool(one, height, width), _pool(other, height, width)


def _normalised(vector: Sequence[float]) -> list[float]:
    length = math.sqrt(math.fsum(x * x for x in vector))
    return [x / length if length else 0.0 for x in vector]


def _dot(one: Sequence[float], other: Sequence[float]) -> float:
    return math.fsum(float(x) * float(y) for x, y in zip(one, other, strict=True))


def fitnet(student: np.ndarray, teacher: np.ndarray) -> float:
    """Romero et al. 2015, eq. 3, without the half and as a mean."""
    squares = [(float(s) - float(t)) ** 2 for s, t in zip(student.flat, teacher.flat, strict=True)]
    return math.fsum(squares) / len(squares)


def _attention(image: np.ndarray, power: float) -> list[float]:
    channels, height, width = image.shape
    powers = [
        math.fsum(abs(float(image[c, y, x])) ** power for c in range(channels))
        for y in range(height)
        for x in range(width)
    ]
    return _normalised(powers)


def at(student: np.ndarray, teacher: np.ndarray, power: float) -> float:
    """Zagoruyko & Komodakis 2017: Q = vec(Σ_c |A_c|^p), mean of (Q_s/‖Q_s‖ − Q_t/‖Q_t‖)²."""
    squares = []
    for one, other in zip(student, teacher, strict=True):
        maps = [_attention(image, power) for image in _same_size(one, other)]
        squares += [(s - t) ** 2 for s, t in zip(*maps, strict=True)]
    return math.fsum(squares) / len(squares)


def _similarities(features: np.ndarray) -> list[list[float]]:
    vectors = [[float(x) for x in image.flat] for image in features]
    return [_normalised([_dot(one, other) for other in vectors]) for one in vectors]


def sp(student: np.ndarray, teacher: np.ndarray) -> float:
    """Tung & Mori 2019: 1/b² · ‖G_t − G_s‖²_F with rows of length 1."""
    rows = zip(_similarities(student), _similarities(teacher), strict=True)
    total = math.fsum((s - t) ** 2 for one, other in rows for s, t in zip(one, other, strict=True))
    return total / len(student) ** 2


def _conditional(features: np.ndarray) -> list[list[float]]:
    vectors = [_normalised([float(x) for x in image.flat]) for image in features]
    kernel = [[(_dot(one, other) + 1) / 2 for other in vectors] for one in vectors]
    return [[k / math.fsum(row) for k in row] for row in kernel]


def pkt(student: np.ndarray, teacher: np.ndarray) -> float:
    """Passalis & Tefas 2018: Σ p_t log(p_t / p_s) of cosine kernels; mean over pairs."""
    total = 0.0
    for ours, theirs in zip(_conditional(student), _conditional(teacher), strict=True):
        total += math.fsum(t * math.log(t / s) for s, t in zip(ours, theirs, strict=True) if t > 0)
    return total / len(student) ** 2


def nst(student: np.ndarray, teacher: np.ndarray) -> float:
    """Huang & Wang 2017: MMD² between channels of length 1, with the kernel (x·y)²; mean over images."""
    total = 0.0
    for one, other in zip(student, teacher, strict=True):
        ours, theirs = ([_normalised(channel.ravel()) for channel in image] for image in _same_size(one, other))
        total += math.fsum(_dot(x, y) ** 2 for x in theirs for y in theirs) / len(theirs) ** 2
        total += math.fsum(_dot(x, y) ** 2 for x in ours for y in ours) / len(ours) ** 2
        total -= 2 * math.fsum(_dot(x, y) ** 2 for x in ours for y in theirs) / (len(ours) * len(theirs))
    return total / len(student)


def _flow(shallow: np.ndarray, deep: np.ndarray) -> list[float]:
    """Yim et al. 2017, eq. 1: G_ij = Σ_xy F1_ixy · F2_jxy / (h · w)."""
    first, second = _same_size(shallow, deep)
    return [_dot(one.ravel(), other.ravel()) / one.size for one in first for other in second]


def fsp(student: Sequence[np.ndarray], teacher: Sequence[np.ndarray]) -> float:
    """Yim et al. 2017, eq. 2, as a mean over the entries of each matrix."""
    total = 0.0
    for stage in range(len(student) - 1):
        squares = []
        for b in range(len(student[0])):
            ours, theirs = (_flow(network[stage][b], network[stage + 1][b]) for network in (student, teacher))
            squares += [(s - t) ** 2 for s, t in zip(ours, theirs, strict=True)]
        total += math.fsum(squares) / len(squares)
    return total


def vid(mean: np.ndarray, variance: np.ndarray, teacher: np.ndarray) -> float:
    """Ahn et al. 2019: log σ_c + (t − μ)² / 2σ_c², mean over everything."""
    total = 0.0
    for index in np.ndindex(*mean.shape):
        sigma = math.sqrt(float(variance[index[1]]))
        total += math.log(sigma) + (float(teacher[index]) - float(mean[index])) ** 2 / (2 * sigma**2)
    return total / mean.size


def _singular(image: np.ndarray, count: int) -> tuple[list[float], list[np.ndarray]]:
    """Singular values and right singular vectors of [C, H, W] as a matrix whose rows are positions."""
    channels, height, width = image.shape
    matrix = np.array([[image[c, y, x] for c in range(channels)] for y in range(height) for x in range(width)])
    _, values, rows = np.linalg.svd(matrix, full_matrices=False)
    return [float(value) for value in values[:count]], list(rows[:count])


def _aligned(student: np.ndarray, teacher: np.ndarray, k: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    values, theirs = _singular(teacher, k)
    weights = _normalised(values)
    candidates = _singular(student, k + 3)[1]
    chosen, turned = [], []
    for weight, vector in zip(weights, theirs, strict=True):
        wanted = -vector if vector.sum() < 0 else vector
        closest = max(candidates, key=lambda candidate: abs(_dot(candidate, wanted)))
        chosen.append(weight * math.copysign(1.0, _dot(closest, wanted)) * closest)
        turned.append(weight * wanted)
    absent = [np.zeros(len(teacher))] * (k - len(theirs))
    return chosen + absent, turned + absent


def kdsvd(student: Sequence[np.ndarray], teacher: Sequence[np.ndarray], k: int) -> float:
    """Lee et al. 2018: (exp(−(v_m − v_n)²/8) of the student − that of the teacher)², summed; mean over the batch."""
    total = 0.0
    for b in range(len(student[0])):
        stages = [_aligned(ours[b], theirs[b], k) for ours, theirs in zip(student, teacher, strict=True)]
        for (shallow_s, shallow_t), (deep_s, deep_t) in pairwise(stages):
            for i in range(k):
                for m, n in np.ndindex(len(shallow_s[i]), len(deep_s[i])):
                    ours = math.exp(-((shallow_s[i][m] - deep_s[i][n]) ** 2) / 8)
                    theirs = math.exp(-((shallow_t[i][m] - deep_t[i][n]) ** 2) / 8)
                    total += (ours - theirs) ** 2
    return total / len(student[0])
