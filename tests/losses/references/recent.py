"""Losses of 2023 to 2024 that read features or areas, as plain loops over float64 numbers. Nothing of kd_cli is used.

Feature maps are [B, C, H, W] arrays, embeddings [B, D], logits [B, K] or, of R areas, [B, R, K].
"""

from __future__ import annotations

import math

import numpy as np

from tests.losses.references.basic import _log_softmax, _softmax, kd


def areas(maps: np.ndarray, grid: int) -> list[np.ndarray]:
    """Of maps cut into grid × grid areas, row by row, the pixels [B, C, n] of each: all that an area touches."""
    rows, columns = maps.shape[2:]
    cut = []
    for i in range(grid):
        for j in range(grid):
            top, bottom = i * rows // grid, -(-(i + 1) * rows // grid)
            left, right = j * columns // grid, -(-(j + 1) * columns // grid)
            cut.append(maps[:, :, top:bottom, left:right].reshape(*maps.shape[:2], -1))
    return cut


def gaussian(pixels: np.ndarray) -> tuple[float, float]:
    """Lv et al. 2024, section 3.2: mean and standard deviation of the most likely normal distribution."""
    mean = math.fsum(pixels) / len(pixels)
    return mean, math.sqrt(math.fsum((float(x) - mean) ** 2 for x in pixels) / len(pixels) + 1e-5)


def wkd_f(student: np.ndarray, teacher: np.ndarray, mean_weight: float, std_weight: float, grid: int) -> float:
    """Lv et al. 2024: γ ‖μ_t − μ_s‖² + ‖δ_t − δ_s‖², mean over batch and areas."""
    total = 0.0
    for ours, theirs in zip(areas(student, grid), areas(teacher, grid), strict=True):
        for b, c in np.ndindex(ours.shape[:2]):
            (mean_s, std_s), (mean_t, std_t) = gaussian(ours[b, c]), gaussian(theirs[b, c])
            total += mean_weight * (mean_t - mean_s) ** 2 + std_weight * (std_t - std_s) ** 2
    return total / (len(student) * grid**2)


def sdd(student: np.ndarray, teacher: np.ndarray, labels: np.ndarray, beta: float, temperature: float) -> float:
    """Wei et al. 2024: D_con + β D_com, as the mean over all areas of all images."""
    total = 0.0
    for b, label in enumerate(labels):
        right = [int(np.argmax(area)) == label for area in teacher[b]]
        for r in range(teacher.shape[1]):
            divergence = kd(student[b, r][None], teacher[b, r][None], temperature)
            total += divergence if right[r] == right[0] else beta * divergence
    return total / (teacher.shape[0] * teacher.shape[1])


def area_logits(maps: np.ndarray, weight: np.ndarray, bias: np.ndarray, scales: list[int]) -> np.ndarray:
    """The classifier's word on the mean of each area: [B, R, K]."""
    said = [
        [pixels[b].mean(axis=1) @ weight.T + bias for grid in scales for pixels in areas(maps, grid)]
        for b in range(len(maps))
    ]
    return np.array(said)


def ofa(student: np.ndarray, teacher: np.ndarray, labels: np.ndarray, epsilon: float, temperature: float) -> float:
    """Hao et al. 2023, of the authors: −Σ_c [(p_t + 1{c = y})^ε − 1{c = y}] log p_s, mean over the batch."""
    total = 0.0
    for student_row, teacher_row, label in zip(student, teacher, labels, strict=True):
        log_p_s = _log_softmax(student_row, temperature)
        for k, p_t in enumerate(_softmax(teacher_row, temperature)):
            hit = 1.0 if k == label else 0.0
            total -= ((p_t + hit) ** epsilon - hit) * log_p_s[k]
    return total / len(student)


def vkd(projected: np.ndarray, teacher: np.ndarray) -> float:
    """Miles et al. 2024: Huber's distance from (z − mean z) / std z of each image's embedding."""
    total = 0.0
    for ours, theirs in zip(projected, teacher, strict=True):
        mean = math.fsum(theirs) / len(theirs)
        spread = math.sqrt(math.fsum((float(z) - mean) ** 2 for z in theirs) / len(theirs) + 1e-5)
        for s, t in zip(ours, theirs, strict=True):
            gap = abs(float(s) - (float(t) - mean) / spread)
            total += gap**2 / 2 if gap < 1 else gap - 0.5
    return total / projected.size


def encoder(projected: np.ndarray, teacher: np.ndarray, distance: str) -> float:
    """1 − cosine of the two vectors of each image and position, or the mean square of all differences."""
    if distance == "mse":
        return math.fsum((float(s) - float(t)) ** 2 for s, t in zip(projected.flat, teacher.flat, strict=True)) / (
            projected.size
        )
    ours, theirs = (np.moveaxis(side, 1, -1).reshape(-1, side.shape[1]) for side in (projected, teacher))
    gaps = []
    for s, t in zip(ours, theirs, strict=True):
        lengths = math.sqrt(math.fsum(x * x for x in s) * math.fsum(x * x for x in t))
        gaps.append(1 - (math.fsum(a * b for a, b in zip(s, t, strict=True)) / lengths if lengths else 0.0))
    return math.fsum(gaps) / len(gaps)
