"""Knowledge distillation via softmax regression representation learning: Yang et al. 2021 (ICLR)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from kd_cli.losses.adapters import makes_logits, projection
from kd_cli.losses.base import LOSSES, Features
from kd_cli.losses.common import at_least_float32, check_logits, inner_products
from kd_cli.ranges import NonNegative
from kd_cli.types import Batch, DataSpec, Outputs


def feature_matching_loss(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """Yang et al. 2021, L_FM: mean squared difference of the embeddings, over batch and dimensions.

    Args:
        student_embedding: [B, D], as the connector made it.
        teacher_embedding: [B, D].
    """
    return (at_least_float32(student_embedding) - at_least_float32(teacher_embedding)).square().mean()


def srrl_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Yang et al. 2021, L_SR: mean squared difference of the logits that one classifier gives both embeddings.

    (The paper's norm is a sum over the classes; the authors' code, followed here, takes the mean.)

    Args:
        student_logits: [B, K], of the teacher's classifier for the student's embedding.
        teacher_logits: [B, K].
    """
    check_logits(student_logits, teacher_logits)
    return (at_least_float32(student_logits) - at_least_float32(teacher_logits)).square().mean()


def frozen_logits(embedding: Tensor, classifier: nn.Linear) -> Tensor:
    """Logits [B, K] of embeddings [B, D]: the gradient passes the classifier and leaves its weights alone."""
    logits = inner_products(embedding, classifier.weight.detach())
    return logits if classifier.bias is None else logits + classifier.bias.detach()


@LOSSES.register("srrl")
class SRRL(Features):
    """Yang et al. 2021 (ICLR): the teacher's classifier shall say of the student's embedding what it says of its own.

    A linear connector brings the student's embedding into the teacher's space. (The authors' connector ends with batch
    normalisation and a ReLU; here it has neither, because an embedding can be negative and a batch one image.)

    Args:
        fm_weight: of L_FM, the distance of the embeddings, ≥ 0.
        sr_weight: of L_SR, the distance of the logits, ≥ 0.
        taps: the student's embedding, [B, D].
        teacher_taps: the input of the teacher's classifier; null: the same name.

    Raises:
        ValueError: a number outside its range, or a teacher whose linear classifier does not read that tap.
    """

    fm_weight: NonNegative = 1.0
    sr_weight: NonNegative = 1.0
    taps: Sequence[str] = ("embedding",)
    whole_logits = True

    def bind(self, student: Outputs, teacher: Outputs, data: DataSpec) -> None:  # noqa: ARG002
        pairs = self.pairs(student, teacher)
        if len(pairs) != 1 or pairs[0][0].ndim != 2 or pairs[0][1].ndim != 2:
            raise ValueError(f"taps: {list(self.taps)} must be one embedding [B, D]; type loss.taps=[embedding]")
        ours, theirs = pairs[0]
        if not makes_logits(teacher, theirs):
            raise ValueError(
                f"teacher_taps: {list(self.teacher_taps or ())} is not what a linear classifier of the teacher makes "
                "its logits of; the teacher must publish its `embedding`"
            )
        self.connector = projection(ours, theirs.shape[1])

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        ((ours, theirs),) = self.pairs(student, teacher)
        connected, classifier = self.connector(ours), teacher.classifier
        assert isinstance(classifier, nn.Linear)  # bind saw to it
        matching = feature_matching_loss(connected, theirs.detach())
        regression = srrl_loss(frozen_logits(connected, classifier), teacher.logits.detach())
        return self.fm_weight * matching + self.sr_weight * regression
