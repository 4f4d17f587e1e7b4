"""Deep mutual learning: Zhang et al. 2017, arXiv:1706.00384."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kd_cli.losses.base import LOSSES, Method
from kd_cli.losses.common import at_least_float32
from kd_cli.losses.kd import kd_loss
from kd_cli.ranges import NonNegative, Positive
from kd_cli.types import Batch, Outputs


def dml_loss(learner_logits: Tensor, peer_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Zhang et al. 2017: T² · KL(peer ‖ learner), mean over the batch.

    (The paper knows no temperature: its T is 1. T² keeps the size of the gradient for any other.)

    Args:
        learner_logits: [B, K].
        peer_logits: [B, K]; no gradient flows into them, or each network would also be pulled towards the other's
            mistakes from the target's side.
        temperature: T > 0.
    """
    return kd_loss(learner_logits, peer_logits.detach(), temperature)


@LOSSES.register("dml")
class DML(Method):
    """Zhang et al. 2017, arXiv:1706.00384: student and peer learn beside each other and from each other.

    The peer is a network of the teacher's architecture. Its own loss is part of this one, the student's cross-entropy
    is `ce_weight` of the mix. (The paper updates one network after the other; here both move in the same step, each
    taught by what the other said before it.)

    Args:
        temperature: T > 0.
        kl_weight: of both divergences, ≥ 0.
        peer_ce_weight: of the peer's cross-entropy with the labels, ≥ 0.
    """

    teacher = "trained"

    temperature: Positive = 1.0
    kl_weight: NonNegative = 1.0
    peer_ce_weight: NonNegative = 1.0

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        of_student = dml_loss(student.logits, teacher.logits, self.temperature)
        of_peer = dml_loss(teacher.logits, student.logits, self.temperature)
        labels = F.cross_entropy(at_least_float32(teacher.logits), batch.labels)
        return self.kl_weight * (of_student + of_peer) + self.peer_ce_weight * labels
