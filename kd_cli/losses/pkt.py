"""Probabilistic knowledge transfer: Passalis & Tefas 2018, arXiv:1803.10837."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kd_cli.losses.base import LOSSES, Features
from kd_cli.losses.common import at_least_float32, inner_products, unit
from kd_cli.ranges import NonNegative
from kd_cli.types import Batch, Outputs

# Smaller probabilities count as this one in a logarithm. The authors' code adds it, and to all of them; this way the
# divergence of equal distributions is least, exactly.
SMALLEST = 1e-7


def pkt_loss(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """Passalis & Tefas 2018: KL divergence of the conditional probabilities p_t(j | i) and p_s(j | i) of a batch.

    Args:
        student_embedding: [B, ...]; everything but the batch is one vector.
        teacher_embedding: [B, ...], of any other width; no gradient flows into it.

    Returns:
        Scalar, mean over all B² ordered pairs, an image with itself included. (The paper sums, over the pairs of
        different images; the mean is that of the authors' code, and the usual weight is made for it.)
    """
    teacher = conditional_probabilities(teacher_embedding.detach())
    student = conditional_probabilities(student_embedding)
    ratios = teacher.clamp(min=SMALLEST).log() - student.clamp(min=SMALLEST).log()
    return (teacher * ratios).mean()


def conditional_probabilities(embedding: Tensor) -> Tensor:
    """p(j | i) [B, B] of embeddings [B, ...]: the kernel (1 + cosine) / 2 of images i and j, its rows summing to 1."""
    directions = unit(at_least_float32(embedding).flatten(1))
    kernel = (1 + inner_products(directions, directions)).clamp(min=0) / 2  # rounding can take a cosine below −1
    return kernel / kernel.sum(dim=1, keepdim=True)


@LOSSES.register("pkt")
class PKT(Features):
    """Passalis & Tefas 2018, arXiv:1803.10837: the student's embeddings have the neighbours of the teacher's.

    Summed over the features. A batch of one image has no pair: its loss is 0.

    Args:
        pkt_weight: ≥ 0.
        taps: the student's features, maps or vectors.
    """

    pkt_weight: NonNegative = 30000.0
    taps: Sequence[str] = ("embedding",)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        return self.pkt_weight * self.over_pairs(pkt_loss, student, teacher)
