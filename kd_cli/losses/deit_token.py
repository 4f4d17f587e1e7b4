"""Distillation through attention, by a token: Touvron et al. 2021 (ICML), arXiv:2012.12877."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from kd_cli.losses.base import LOSSES, Method
from kd_cli.losses.common import at_least_float32, check_logits
from kd_cli.losses.kd import kd_loss
from kd_cli.ranges import NonNegative, Positive
from kd_cli.taps import select
from kd_cli.types import Batch, DataSpec, Outputs

Form = Literal["hard", "soft"]


def deit_token_loss(
    distill_logits: Tensor, teacher_logits: Tensor, form: Form = "hard", temperature: float = 3.0
) -> Tensor:
    """Touvron et al. 2021: what the head of the distillation token learns; mean over the batch.

    `hard` (eq. 3): cross-entropy with the class that the teacher finds likeliest, as if it were the label. `soft`
    (eq. 2): T² · KL, which is `kd`. (The authors' code divides the latter by B · K and not by B, a factor K less.)

    Args:
        distill_logits: [B, K], of the student's second head.
        teacher_logits: [B, K]; no gradient flows into them.
        form: `hard` or `soft`.
        temperature: T > 0, of `soft`.
    """
    check_logits(distill_logits, teacher_logits)
    teacher_logits = teacher_logits.detach()
    if form == "soft":
        return kd_loss(distill_logits, teacher_logits, temperature)
    return F.cross_entropy(at_least_float32(distill_logits), teacher_logits.argmax(dim=1))


@LOSSES.register("deit_token")
class DeiTToken(Method):
    """Touvron et al. 2021, arXiv:2012.12877: a head of its own learns from the teacher, and the other from the labels.

    The student publishes the logits of that head: a transformer with a distillation token (student=vit_tiny
    student.distilled=true), whose own logits are those of the class token in training and the mean of both heads
    afterwards. The weights of one half are eq. 3's; for `soft` the paper has ce_weight 0.9 and token_weight 0.1.

    Args:
        form: `hard`, the paper's choice, learns the teacher's likeliest class, `soft` its probabilities.
        temperature: T > 0, of `soft`.
        token_weight: ≥ 0.
        taps: the logits of the student's second head.

    Raises:
        ValueError: a number outside its range, or a tap that is no logits of the teacher's classes.
    """

    form: Form = "hard"
    temperature: Positive = 3.0
    token_weight: NonNegative = 0.5
    taps: Sequence[str] = ("distill_logits",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.teacher_taps = ()  # of the teacher its logits are enough

    def bind(self, student: Outputs, teacher: Outputs, data: DataSpec) -> None:  # noqa: ARG002
        shapes = [list(feature.shape) for feature in select(student.features, self.taps)]
        if shapes != [list(teacher.logits.shape)]:
            raise ValueError(
                f"taps: {list(self.taps)} must be logits of the teacher's classes, {list(teacher.logits.shape)}, and "
                f"is {', '.join(map(str, shapes))}; type loss.taps=[distill_logits]"
            )

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        (distilled,) = select(student.features, self.taps)
        return self.token_weight * deit_token_loss(distilled, teacher.logits, self.form, self.temperature)
