"""Label smoothing, the control that a claim about distillation needs: Szegedy et al. 2016, arXiv:1512.00567."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kd_cli.losses.base import LOSSES, Method
from kd_cli.losses.common import log_probabilities
from kd_cli.ranges import Fraction
from kd_cli.types import Batch, Outputs


def label_smoothing_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.1) -> Tensor:
    """Szegedy et al. 2016, section 7: what smoothing adds to the cross-entropy, mean over the batch.

    Cross-entropy plus this is the cross-entropy with the target (1 − ε) · one-hot + ε/K. It can be negative.

    Args:
        logits: [B, K].
        labels: [B], int64.
        smoothing: ε in [0, 1).
    """
    log_probs = log_probabilities(logits)
    uniform = -log_probs.mean(dim=1)
    return smoothing * (uniform - F.nll_loss(log_probs, labels, reduction="none")).mean()


@LOSSES.register("label_smoothing")
class LabelSmoothing(Method):
    """Szegedy et al. 2016, arXiv:1512.00567: smoothed labels, no teacher.

    Args:
        smoothing: ε in [0, 1); with ce_weight=1 the step's loss is the label-smoothed cross-entropy.
    """

    teacher = "none"

    smoothing: Fraction = 0.1

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        return label_smoothing_loss(student.logits, batch.labels, self.smoothing)
