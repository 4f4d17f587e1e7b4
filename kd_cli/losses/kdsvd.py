"""Distillation by singular vectors: Lee, Kim, Song 2018, arXiv:1807.06819."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_cli.losses.adapters import Stages, check_channels
from kd_cli.losses.base import LOSSES
from kd_cli.losses.common import at_least_float32, inner_products, self_products, unit
from kd_cli.ranges import Count, NonNegative
from kd_cli.types import Batch, Outputs

BANDWIDTH = 8.0  # β of the radial basis function
MORE_CANDIDATES = 3  # the student's vectors among which the teacher's are looked for: so many more
# In the gradient 1/gap of two eigenvalues becomes gap / (gap² + this²), with eigenvalues that sum to 1: where two
# coincide the vectors are not unique and 1/gap is infinite.
LEAST_GAP = 1e-3


def kdsvd_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], k: int = 1) -> Tensor:
    """Lee et al. 2018: squared difference of the correlations between the singular vectors of successive stages.

    Of an image's feature map, as a matrix [H · W, C], the first k right singular vectors are taken. Each of the
    student's is replaced by the one that is most alike to the teacher's in the same place, with its sign; both are
    weighed by the teacher's singular values, divided by their length. Entry m of a vector and entry n of the vector of
    the next stage are correlated by exp(−(v_m − v_n)² / 8).

    Args:
        student_maps: two or more [B, C, H, W], from shallow to deep.
        teacher_maps: as many, stage by stage of the student's channel counts and of any size; no gradient flows into
            them.
        k: singular vectors of each map, ≥ 1; a map that has less of them has zeros in their place.

    Returns:
        Scalar, mean over the batch, summed over k, m, n and the pairs of stages, as in the authors' code. (That code
        leaves the sign of the teacher's vectors to the solver; here their entries sum to 0 or more.)
    """
    check_channels(student_maps, teacher_maps)
    vectors = [aligned_vectors(*pair, k) for pair in zip(student_maps, teacher_maps, strict=True)]
    student, teacher = zip(*vectors, strict=True)
    steps = zip(pairwise(student), pairwise(teacher), strict=True)
    terms = [(radial_basis(*ours) - radial_basis(*theirs)).square().sum() for ours, theirs in steps]
    return torch.stack(terms).sum() / len(student[0])


def radial_basis(shallow: Tensor, deep: Tensor) -> Tensor:
    """exp(−(v_m − v_n)² / β) of the entries of vectors [B, k, M] and [B, k, N]: [B, k, M, N]."""
    first, second = (vectors / BANDWIDTH**0.5 for vectors in (shallow, deep))
    return torch.exp(-(first[..., :, None] - second[..., None, :]).square())


def aligned_vectors(student_map: Tensor, teacher_map: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The student's and the teacher's weighed singular vectors [B, k, C], the student's chosen and turned to match."""
    with torch.no_grad():
        values, theirs = singular_vectors(teacher_map, k)
        theirs = theirs * unit(values)[..., None] * torch.where(theirs.sum(dim=2, keepdim=True) < 0, -1, 1)
    _, candidates = singular_vectors(student_map, k + MORE_CANDIDATES)
    cosines = inner_products(theirs, candidates).detach()  # [B, k, candidates]
    best = cosines.abs().argmax(dim=2, keepdim=True)
    ours = candidates.gather(1, best.expand(-1, -1, candidates.shape[2])) * cosines.gather(2, best).sign()
    return ours * unit(values)[..., None], theirs


def singular_vectors(maps: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest singular values and right singular vectors of maps [B, C, H, W] as matrices [H · W, C].

    Computed from the smaller of the two Gram matrices, [C, C] or [H · W, H · W]. On a GPU the host waits for it: the
    solver reports whether it converged.

    Returns:
        Values [B, count], of maps scaled to length 1 and without gradient, and vectors [B, count, C]. Beyond the rank
        of a map both are 0.
    """
    channels = at_least_float32(maps).flatten(2)
    if channels.shape[1] <= channels.shape[2]:
        squares, vectors = eigenvectors(gram(channels), count)
    else:
        squares, left = eigenvectors(gram(channels.mT), count)
        vectors = unit(inner_products(left, channels))
    # By a product, and not by a choice, so that a map that is not finite gives a loss that is not finite either.
    exist = squares > min(channels.shape[1:]) * torch.finfo(squares.dtype).eps
    values, vectors = squares.clamp(min=0).sqrt() * exist, vectors * exist[..., None]
    missing = count - values.shape[1]
    return F.pad(values, (0, missing)), F.pad(vectors, (0, 0, 0, missing))


def gram(rows: Tensor) -> Tensor:
    """Inner products [B, N, N] of rows [B, N, D] that are scaled to have a length of 1 together; zeros stay zeros."""
    products = self_products(rows)
    products = (products + products.mT) / 2  # what is made of them need not treat (i, j) and (j, i) alike
    total = products.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None]
    return products * torch.where(total == 0, 0, 1 / torch.where(total == 0, 1, total))


def eigenvectors(matrices: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues [B, count] and eigenvectors [B, count, N] of symmetric [B, N, N]; fewer if count > N.

    The gradient is that of perturbation theory, dv_i = Σ_j v_j · (v_j · dA v_i) / (λ_i − λ_j), with bounded quotients
    and only for the vectors that are asked for. (torch's own divides by the gap of every two eigenvalues, of which a
    map of low rank has many that are 0.) The values have none.
    """
    with torch.no_grad():
        # The solver raises at a number that is not finite; it is in the gradient's term below, and so in the loss.
        values, columns = torch.linalg.eigh(torch.where(matrices.isfinite(), matrices, 0))
        values, basis = values.flip(1), columns.mT.flip(1)
        gaps = values[:, :count, None] - values[:, None, :]
        rates = gaps / (gaps.square() + LEAST_GAP**2)
    couplings = inner_products(inner_products(basis[:, :count], matrices), basis)
    turns = rates * (couplings - couplings.detach())
    return values[:, :count], basis[:, :count] + inner_products(turns, basis.mT)


@LOSSES.register("kdsvd")
class KDSVD(Stages):
    """Lee et al. 2018, arXiv:1807.06819: singular vectors of feature maps change over the stages as the teacher's do.

    Where a stage has not the teacher's channels, a learned 1×1 convolution gives them to it; sizes need not agree. The
    decompositions take some 10 · B · min(C, H · W)³ operations for each stage of each network. (The paper also bounds
    the gradient of this loss by that of the labels; that is not done here.)

    Args:
        k: singular vectors of each map, ≥ 1.
        kdsvd_weight: ≥ 0.
        taps: the student's feature maps, two stages at least.
    """

    k: Count = 1
    kdsvd_weight: NonNegative = 1.0
    taps: Sequence[str] = ("stages",)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        projected, theirs = self.stages(student, teacher)
        return self.kdsvd_weight * kdsvd_loss(projected, theirs, self.k)
