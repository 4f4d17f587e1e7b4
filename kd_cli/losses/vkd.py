"""Distillation by an orthogonal projection: Miles, Elezi, Deng 2024 (CVPR), arXiv:2403.06213."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_cli.losses.adapters import as_maps
from kd_cli.losses.base import LOSSES, Features
from kd_cli.losses.common import at_least_float32, inner_products
from kd_cli.ranges import NonNegative
from kd_cli.types import Batch, DataSpec, Outputs

_EPSILON = 1e-5  # of layer normalisation, as in the authors' code


def vkd_loss(projected: Tensor, teacher_embedding: Tensor) -> Tensor:
    """Miles et al. 2024: smooth L1 distance of the projected embedding from the teacher's, normalised.

    Each of the teacher's embeddings has mean 0 and variance 1 over its dimensions (layer normalisation without weights,
    the authors' for classification). Mean over batch and dimensions. (The paper writes the squared distance; the smooth
    L1 distance of the authors' code, followed here, is half of it for differences below 1.)

    Args:
        projected: [B, D], the student's.
        teacher_embedding: [B, D]; no gradient flows into it.

    Raises:
        ValueError: unless both have one shape.
    """
    if projected.shape != teacher_embedding.shape:
        shapes = f"{list(projected.shape)} and {list(teacher_embedding.shape)}"
        raise ValueError(f"taps: the projected embedding and the teacher's must have one shape, not {shapes}")
    theirs = at_least_float32(teacher_embedding.detach())
    wanted = F.layer_norm(theirs, theirs.shape[1:], eps=_EPSILON)
    return F.smooth_l1_loss(at_least_float32(projected), wanted)


class OrthogonalProjection(nn.Module):
    """A linear map [B, D_s] → [B, D_t] that stays orthogonal while it is learned.

    Into more dimensions it keeps every inner product; into fewer its rows are orthonormal. The longer side is turned:
    the matrix is Q · C, or its transpose, with a constant orthogonal Q, drawn anew, and the first columns of
    C = (1 − A)⁻¹ (1 + A), Cayley's map of a learned skew-symmetric A, which is 0 at first. (The authors' code has
    PyTorch's parametrisation: the same matrices, another way to move among them. That one waits for the device.)
    """

    base: Tensor  # Q, [D, D], D the larger of both widths

    def __init__(self, student_width: int, teacher_width: int) -> None:
        super().__init__()
        size, columns = max(student_width, teacher_width), min(student_width, teacher_width)
        self.narrows = student_width > teacher_width
        self.register_buffer("base", torch.linalg.qr(torch.randn(size, size)).Q)
        self.turns = nn.Parameter(torch.zeros(size, columns))  # what turns the columns that are left out is of no use

    def matrix(self) -> Tensor:
        """[D_t, D_s]."""
        size, columns = self.turns.shape
        turns = F.pad(at_least_float32(self.turns), (0, size - columns))
        skew = (turns - turns.mT) / 2
        one = torch.eye(size, dtype=skew.dtype, device=skew.device)
        rotation = torch.linalg.solve_ex(one - skew, (one + skew)[:, :columns]).result
        frame = inner_products(self.base, rotation.mT)
        return frame.mT if self.narrows else frame

    def forward(self, vectors: Tensor) -> Tensor:
        """[B, D_s] → [B, D_t]."""
        return inner_products(vectors, self.matrix())


@LOSSES.register("vkd")
class VKD(Features):
    """Miles, Elezi, Deng 2024, arXiv:2403.06213: the student's embedding, turned and no more, is the teacher's.

    A free projection can learn in the student's place; an orthogonal one keeps the distances and angles between its
    embeddings, so that they must become the teacher's. Of feature maps the average over positions is read. The
    projection is not deployed; weight decay draws it to its first matrix.

    (The authors' students, transformers with a distillation token, also learn the teacher's logits; `loss=combined`
    adds them.)

    Args:
        vkd_weight: ≥ 0; 1 in the authors' code.
        taps: the student's embedding, [B, D] or [B, C, H, W].
    """

    vkd_weight: NonNegative = 1.0
    taps: Sequence[str] = ("embedding",)

    def bind(self, student: Outputs, teacher: Outputs, data: DataSpec) -> None:  # noqa: ARG002
        pairs = self._vectors(student, teacher)
        self.projections = nn.ModuleList(OrthogonalProjection(ours.shape[1], theirs.shape[1]) for ours, theirs in pairs)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        pairs = zip(self.projections, self._vectors(student, teacher), strict=True)
        return (
            self.vkd_weight * torch.stack([vkd_loss(project(ours), theirs) for project, (ours, theirs) in pairs]).sum()
        )

    def _vectors(self, student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
        """Averages over positions, [B, D_s] and [B, D_t]."""
        return [(averaged(ours), averaged(theirs)) for ours, theirs in self.pairs(student, teacher)]


def averaged(feature: Tensor) -> Tensor:
    """Vectors [B, D] as they are, maps [B, C, H, W] averaged over positions; in float32 at least."""
    return as_maps(at_least_float32(feature)).mean(dim=(2, 3))
