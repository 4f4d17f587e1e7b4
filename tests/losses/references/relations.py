"""The losses of relations and procedures once more, as plain loops over float64 numbers. Nothing of kd_cli is used."""

from __future__ import annotations

import math

import numpy as np

from tests.losses.references.basic import cross_entropy, kd


def _length(vector: np.ndarray) -> float:
    return math.sqrt(math.fsum(float(x) ** 2 for x in vector.ravel()))


def _direction(vector: np.ndarray) -> np.ndarray:
    length = _length(vector)
    return vector / length if length > 0 else np.zeros_like(vector)


def _dot(one: np.ndarray, other: np.ndarray) -> float:
    return math.fsum(float(x) * float(y) for x, y in zip(one, other, strict=True))


def _huber(difference: float) -> float:
    """Park et al. 2019: half the square within 1, the absolute value minus a half beyond."""
    return 0.5 * difference**2 if abs(difference) <= 1 else abs(difference) - 0.5


def rkd_distance(student: np.ndarray, teacher: np.ndarray) -> float:
    """Park et al. 2019, section 3.2.1: distances over their mean; mean over all ordered pairs."""

    def potentials(x: np.ndarray) -> np.ndarray:
        size = len(x)
        distances = np.array([[_length(x[i] - x[j]) for j in range(size)] for i in range(size)])
        positive = [d for d in distances.ravel() if d > 0]
        return distances / (sum(positive) / len(positive)) if positive else distances

    ours, theirs = potentials(student), potentials(teacher)
    return float(np.mean([_huber(a - b) for a, b in zip(ours.ravel(), theirs.ravel(), strict=True)]))


def rkd_angle(student: np.ndarray, teacher: np.ndarray) -> float:
    """Park et al. 2019, section 3.2.2: cos ∠ t_i t_j t_k; mean over all ordered triplets."""
    size, total = len(student), 0.0
    for i in range(size):
        for j in range(size):
            for k in range(size):
                ours, theirs = (_dot(_direction(x[i] - x[j]), _direction(x[k] - x[j])) for x in (student, teacher))
                total += _huber(ours - theirs)
    return total / size**3


def cc(student: np.ndarray, teacher: np.ndarray, gamma: float, order: int) -> float:
    """Peng et al. 2019: Σ_p exp(−2γ) (2γ)^p / p! · (x·y)^p of unit vectors; mean square of the differences."""

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        cosine = _dot(_direction(x), _direction(y))
        return math.fsum(
            math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * cosine**p for p in range(order + 1)
        )

    pairs = [(i, j) for i in range(len(student)) for j in range(len(student))]
    squares = [(kernel(student[i], student[j]) - kernel(teacher[i], teacher[j])) ** 2 for i, j in pairs]
    return math.fsum(squares) / len(pairs)


def ickd(student: np.ndarray, teacher: np.ndarray) -> float:
    """Liu et al. 2021: rows of the matrices of inner products between channels, each of length 1."""
    batch, channels = student.shape[:2]
    total = 0.0
    for b in range(batch):
        for c in range(channels):
            rows = []
            for maps in (student[b], teacher[b]):
                rows.append(_direction(np.array([_dot(maps[c].ravel(), maps[d].ravel()) for d in range(channels)])))
            total += _length(rows[0] - rows[1]) ** 2
    return total / (batch * channels)


def crd(
    anchors: np.ndarray,
    memory: np.ndarray,
    ids: np.ndarray,
    labels: np.ndarray,
    negatives: list[int],
    memory_labels: np.ndarray,
    temperature: float,
    z: float | None = None,
) -> float:
    """Tian et al. 2020, one direction: h = p / (p + M/N) with p = exp(a·m/τ) / (N · z).

    Args:
        anchors: [B, D], any length.
        memory: [N, D].
        ids: [B].
        labels: [B].
        negatives: M positions in the memory; those of the anchor's class, and itself, are left out, and the others
            weighed up to M.
        memory_labels: [N].
        temperature: τ.
        z: mean of exp(a·m/τ); None: over this batch.
    """
    size, m = len(memory), len(negatives)
    positives, others = [], []
    for anchor, own, label in zip(anchors, ids, labels, strict=True):
        direction = _direction(anchor)
        positives.append(math.exp(_dot(direction, memory[own]) / temperature))
        valid = [n for n in negatives if n != own and memory_labels[n] != label]
        others.append([math.exp(_dot(direction, memory[n]) / temperature) for n in valid])
    everything = [*positives, *(power for row in others for power in row)]
    big_z = size * (math.fsum(everything) / len(everything) if z is None else z)
    total = 0.0
    for positive, row in zip(positives, others, strict=True):
        total -= math.log(positive / big_z / (positive / big_z + m / size))
        logs = [math.log(1 - power / big_z / (power / big_z + m / size)) for power in row]
        total -= m * math.fsum(logs) / len(logs) if logs else 0.0
    return total / len(anchors)


def dml(student: np.ndarray, peer: np.ndarray, labels: np.ndarray) -> float:
    """Zhang et al. 2017: KL(peer ‖ student) for the student; cross-entropy and KL(student ‖ peer) for the peer."""
    return kd(student, peer, 1.0) + cross_entropy(peer, labels) + kd(peer, student, 1.0)


def byot_exit(
    logits: np.ndarray, feature: np.ndarray, deepest_logits: np.ndarray, deepest_feature: np.ndarray, labels: np.ndarray
) -> float:
    """Zhang et al. 2019, one exit: (1 − α) CE + α KL + λ ‖F_i − F_C‖², with α = 0.3, λ = 0.03 and T = 3."""
    distances = [_length(one - other) ** 2 for one, other in zip(feature, deepest_feature, strict=True)]
    hint = math.fsum(distances) / len(distances)
    return 0.7 * cross_entropy(logits, labels) + 0.3 * kd(logits, deepest_logits, 3.0, scale_by_t2=False) + 0.03 * hint


def _log_sigmoid(score: float) -> float:
    return -math.log1p(math.exp(-score)) if score > 0 else score - math.log1p(math.exp(score))


def discriminator(student_scores: np.ndarray, teacher_scores: np.ndarray) -> float:
    """Goodfellow et al. 2014: −log D(teacher) − log(1 − D(student)); 1 − σ(x) = σ(−x)."""
    real = [_log_sigmoid(float(score)) for score in teacher_scores]
    fake = [_log_sigmoid(-float(score)) for score in student_scores]
    return -math.fsum(real) / len(real) - math.fsum(fake) / len(fake)


def fooling(student_scores: np.ndarray) -> float:
    """−log D(student)."""
    return -math.fsum(_log_sigmoid(float(score)) for score in student_scores) / len(student_scores)
