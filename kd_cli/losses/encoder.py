"""A frozen encoder's embeddings and maps, as in AM-RADIO: Ranzinger et al. 2024 (CVPR), arXiv:2312.06709."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_cli.losses.adapters import check_same_kind, projection, same_size
from kd_cli.losses.base import LOSSES, Features
from kd_cli.losses.common import at_least_float32, unit
from kd_cli.ranges import Count, NonNegative
from kd_cli.types import Batch, DataSpec, Outputs


def encoder_loss(projected: Tensor, teacher_feature: Tensor, distance: Literal["cosine", "mse"] = "cosine") -> Tensor:
    """How far the student's projected feature is from the encoder's: 1 − cosine of the channels, or mean square.

    Args:
        projected: [B, D] or [B, C, H, W].
        teacher_feature: of the same shape; no gradient flows into it.
        distance: `cosine` compares the directions of each embedding, of maps those of each position, and is blind to
            length; `mse` compares number by number.

    Returns:
        Scalar, mean over batch and positions, for `mse` over channels too. Where a vector is all zeros the cosine is 0.

    Raises:
        ValueError: two shapes, or another distance.
    """
    if projected.shape != teacher_feature.shape:
        shapes = f"{list(projected.shape)} and {list(teacher_feature.shape)}"
        raise ValueError(f"taps: the projected feature and the encoder's must have one shape, not {shapes}")
    ours, theirs = at_least_float32(projected), at_least_float32(teacher_feature.detach())
    if distance == "mse":
        return F.mse_loss(ours, theirs)
    if distance != "cosine":
        raise ValueError(f"distance: {distance} is not possible; it must be cosine or mse")
    return 1 - (unit(ours, dim=1) * unit(theirs, dim=1)).sum(dim=1).mean()


class Projector(nn.Module):
    """To the encoder's channels, at every position alike: a projection, or two with a GELU between them.

    Args:
        student_feature: an example, [B, D] or [B, C, H, W].
        channels: of the encoder's.
        hidden: of the layer between; None: there is none.
    """

    def __init__(self, student_feature: Tensor, channels: int, hidden: int | None) -> None:
        super().__init__()
        layers: list[nn.Module] = [projection(student_feature, hidden or channels)]
        if hidden:
            like = student_feature.new_empty(1, hidden, *student_feature.shape[2:])
            layers += [nn.GELU(), projection(like, channels)]
        self.layers = nn.Sequential(*layers)

    def forward(self, feature: Tensor) -> Tensor:
        projected: Tensor = self.layers(feature)
        return projected


@LOSSES.register("encoder")
class Encoder(Features):
    """Ranzinger et al. 2024, arXiv:2312.06709, for one teacher: the student's features become those of an encoder.

    The encoder is a network that was made without these labels (DINO, CLIP, …) and stays frozen: its logits are not
    read. Each tap has a projector of its own, which is not deployed; the larger of two maps is averaged to the size of
    the smaller. With loss.ce_weight=0 no label is read either: the student's embedding is learned alone, and its
    classifier, which then learns nothing, from a linear probe afterwards (`kd transfer`).

    The paper has the cosine for embeddings, and for maps 0.9 of the cosine's distance and 0.1 of the smooth L1
    distance; both projectors are of two layers there.

    Args:
        distance: `cosine` or `mse`.
        hidden: width of the projector's inner layer, ≥ 1; null: the projector is linear.
        encoder_weight: of the sum over the taps, ≥ 0; 1 in the paper.
        taps: the student's embedding, maps, or both: [embedding, final].
        teacher_taps: the encoder's; null: the same names.

    Raises:
        ValueError: a number outside its range, another distance, or a map beside a vector.
    """

    distance: Literal["cosine", "mse"] = "cosine"
    hidden: Count | None = None
    encoder_weight: NonNegative = 1.0
    taps: Sequence[str] = ("embedding",)

    def bind(self, student: Outputs, teacher: Outputs, data: DataSpec) -> None:  # noqa: ARG002
        pairs = self.pairs(student, teacher)
        check_same_kind(pairs)
        self.projectors = nn.ModuleList(Projector(ours, theirs.shape[1], self.hidden) for ours, theirs in pairs)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        pairs = [same_size(at_least_float32(ours), theirs) for ours, theirs in self.pairs(student, teacher)]
        terms = [
            encoder_loss(project(ours), theirs, self.distance)
            for project, (ours, theirs) in zip(self.projectors, pairs, strict=True)
        ]
        return self.encoder_weight * torch.stack(terms).sum()
