"""Contrastive representation distillation: Tian, Krishnan, Isola 2020, arXiv:1910.10699."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_cli.losses.base import LOSSES, Features
from kd_cli.losses.common import at_least_float32, inner_products, unit
from kd_cli.ranges import Count, Fraction, NonNegative, Positive
from kd_cli.types import Batch, DataSpec, Outputs


def crd_scores(
    anchors: Tensor, positives: Tensor, negatives: Tensor, excluded: Tensor, temperature: float = 0.07
) -> Tensor:
    """How similar each image is to its own memory, and to the memories of others: inner products / τ.

    Args:
        anchors: [B, D], unit vectors of one network.
        positives: [B, D], what is remembered of the same images' vectors by the other network.
        negatives: [M, D], what is remembered of other images' vectors by the other network.
        excluded: [B, M], bool: negatives that are none, because they are of the anchor's own class.
        temperature: τ > 0.

    Returns:
        [B, 1 + M], the positive first; −∞ where a negative is excluded.
    """
    own, others = _similarities(anchors, positives, negatives, excluded, temperature)
    return torch.cat([own[:, None], others], dim=1)


def _similarities(
    anchors: Tensor, positives: Tensor, negatives: Tensor, excluded: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """`crd_scores` in two parts, [B] and [B, M]: joined they would be copied, and their gradients again."""
    anchors = anchors / temperature
    return (anchors * positives).sum(dim=1), inner_products(anchors, negatives).masked_fill_(excluded, -math.inf)


def log_normalizer(scores: Tensor) -> Tensor:
    """log of the mean of exp(score) over all scores [B, 1 + M] that are not −∞; a scalar, without a gradient."""
    scores = scores.detach()
    return scores.flatten().logsumexp(dim=0) - scores.isfinite().sum().log()


def crd_loss(scores: Tensor, log_z: Tensor) -> Tensor:
    """Tian et al. 2020: −log h(positive) − Σ log(1 − h(negative)), mean over the batch.

    h = e^s / (e^s + M · Z), the probability that a pair with score s is one image seen by both networks, is the
    sigmoid of s − log(M · Z): computed so, nothing overflows. Where a negative is excluded, the sum over the others is
    scaled up to M of them. (The paper's h has the number M/N for M · Z, N being the size of the training set; the
    authors' code, followed here, sets N · Z to N times the mean of e^s in the first batch, and N cancels.)

    Args:
        scores: [B, 1 + M], the positive first; −∞ where a negative is excluded.
        log_z: scalar, log Z.
    """
    counted = (scores[:, 1:] != -math.inf).sum(dim=1)
    return _contrast(scores[:, 0], scores[:, 1:], counted, log_z)


def _contrast(own: Tensor, others: Tensor, counted: Tensor, log_z: Tensor) -> Tensor:
    """`crd_loss` of scores [B] and [B, M], of which so many count for each image, [B]."""
    shift = log_z + math.log(others.shape[1])
    # log(1 − h) is the log-sigmoid of what h is the sigmoid of, turned round; unlike softplus it keeps its powers.
    of_negatives = F.logsigmoid(shift - others).sum(dim=1) * (others.shape[1] / counted.clamp(min=1))
    return -(F.logsigmoid(own - shift) + of_negatives).mean()


def _begin_again(method: CRD, _: object) -> None:
    """A state that was loaded may be that of a beginning."""
    method.begun = False


@LOSSES.register("crd")
class CRD(Features):
    """Tian, Krishnan, Isola 2020, arXiv:1910.10699: an image's two embeddings are told from those of other classes.

    Linear layers bring both embeddings to `dim` numbers of length 1. Each network's vectors are remembered, one row per
    training image, as a moving average. A student's vector (the anchor) is compared with the teacher's memory of the
    same image and of `negatives` images of other classes, and the teacher's vector with the student's memory.

    Negatives. Each step draws one set of distinct rows for the whole batch (the authors' code one set per image: the
    same expectation, but B times the memory). Which of them are of an anchor's class is known from the labels, which
    are remembered when an image is first seen; such a row is left out for that anchor, and the others count for it. A
    row of an image that has not been seen yet is random and belongs to no class.

    Memory. `bank_bytes`: 2 · N · dim · 4 bytes of vectors and N · 8 of labels, on the device and in every checkpoint:
    52 MB for 50,000 images. A step adds 2 · negatives · dim · 4 bytes and a few times B · negatives · 4.

    Vectors, labels and normaliser change in training mode only. All three are buffers: a resumed run has them.

    Args:
        dim: of the common space, ≥ 1.
        negatives: per image, ≥ 1; never more than there are training images.
        temperature: τ > 0.
        momentum: of the memory, in [0, 1); 0 keeps an image's last vector only.
        crd_weight: ≥ 0.
        memory_mb: what the memory may take, in MB (10⁶ bytes), > 0.
        taps: the student's embedding.

    Raises:
        ValueError: a number outside its range, several taps, or a training set whose memory would be too large.
    """

    student_memory: Tensor = field(init=False)  # [N, dim]
    teacher_memory: Tensor = field(init=False)  # [N, dim]
    labels: Tensor = field(init=False)  # [N], −1 until an image was seen
    log_z: Tensor = field(init=False)  # [2], of student's and teacher's anchors; −∞ until the first batch
    begun: bool = field(init=False, default=False)  # both are known, and need not be looked at on the device

    dim: Count = 128
    negatives: Count = 16384
    temperature: Positive = 0.07
    momentum: Fraction = 0.5
    crd_weight: NonNegative = 0.8
    memory_mb: Positive = 1024.0
    taps: Sequence[str] = ("embedding",)

    def bank_bytes(self, num_train: int) -> int:
        """Bytes of what is remembered of so many images."""
        return num_train * (2 * self.dim * 4 + 8)

    def bind(self, student: Outputs, teacher: Outputs, data: DataSpec) -> None:
        size, needed = data.num_train, self.bank_bytes(data.num_train) / 1e6
        if needed > self.memory_mb:
            raise ValueError(
                f"memory_mb: {size} training images take {needed:.0f} MB, on the device and in every checkpoint, and "
                f"{self.memory_mb:g} are allowed; type loss.memory_mb={math.ceil(needed)}, or a smaller loss.dim"
            )
        ours, theirs = self._pair(student, teacher)
        self.student_layer = nn.Linear(ours.shape[1], self.dim)
        self.teacher_layer = nn.Linear(theirs.shape[1], self.dim)
        self.register_buffer("student_memory", unit(torch.randn(size, self.dim)))
        self.register_buffer("teacher_memory", unit(torch.randn(size, self.dim)))
        self.register_buffer("labels", torch.full((size,), -1))
        self.register_buffer("log_z", torch.full((2,), -math.inf))
        self.register_load_state_dict_post_hook(_begin_again)  # type: ignore[no-untyped-call] # PyTorch's is not typed

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        ours, theirs = self._pair(student, teacher)
        of_student = unit(at_least_float32(self.student_layer(ours)))
        of_teacher = unit(at_least_float32(self.teacher_layer(theirs.detach())))
        drawn = torch.randperm(len(self.labels), device=self.labels.device)[: self.negatives]
        excluded = (drawn == batch.ids[:, None]) | (self.labels[drawn] == batch.labels[:, None])  # [B, M]
        among = drawn, excluded, (~excluded).sum(dim=1)
        loss = self._side(0, of_student, self.teacher_memory, batch.ids, *among)
        loss = loss + self._side(1, of_teacher, self.student_memory, batch.ids, *among)
        if self.training:
            self.labels[batch.ids] = batch.labels
            self._remember(self.student_memory, of_student, batch.ids)
            self._remember(self.teacher_memory, of_teacher, batch.ids)
            self.begun = True
        return self.crd_weight * loss

    def _pair(self, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
        """The two embeddings [B, D]."""
        pairs = self.pairs(student, teacher)
        if len(pairs) != 1:
            raise ValueError(f"taps: {list(self.taps)} are {len(pairs)} features; one embedding can be contrasted")
        ours, theirs = pairs[0]
        return at_least_float32(ours).flatten(1), at_least_float32(theirs).flatten(1)

    def _side(
        self, side: int, anchors: Tensor, memory: Tensor, ids: Tensor, drawn: Tensor, excluded: Tensor, counted: Tensor
    ) -> Tensor:
        positives, negatives = (memory.index_select(0, rows).to(anchors.dtype) for rows in (ids, drawn))
        own, others = _similarities(anchors, positives, negatives, excluded, self.temperature)
        if self.begun:
            return _contrast(own, others, counted, self.log_z[side])
        first = log_normalizer(torch.cat([own[:, None], others], dim=1))
        log_z = torch.where(self.log_z[side].isneginf(), first, self.log_z[side])
        if self.training:
            self.log_z[side] = log_z
        return _contrast(own, others, counted, log_z)

    @torch.no_grad()
    def _remember(self, memory: Tensor, vectors: Tensor, ids: Tensor) -> None:
        moved = self.momentum * memory[ids] + (1 - self.momentum) * vectors
        memory[ids] = unit(moved).to(memory.dtype)
