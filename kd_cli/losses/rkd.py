"""Relations between the images of a batch: Park et al. 2019, arXiv:1904.05068."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_cli.losses.base import LOSSES, Features
from kd_cli.losses.common import at_least_float32, self_products
from kd_cli.ranges import NonNegative
from kd_cli.types import Batch, Outputs


def rkd_distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Park et al. 2019, section 3.2.1: Huber's loss of the two networks' relative distances between images.

    Args:
        student: [B, ...]; everything but the batch is one vector.
        teacher: [B, ...], of any other width; no gradient flows into it.

    Returns:
        Scalar, mean over all B² ordered pairs, an image with itself included. (The paper sums over the pairs of
        different images; the mean is that of the authors' code, and the usual weights are made for it.)
    """
    with torch.no_grad():
        wanted = relative_distances(teacher)
    return F.smooth_l1_loss(relative_distances(student), wanted)


def rkd_angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Park et al. 2019, section 3.2.2: Huber's loss of the cosines of all angles between three images.

    It takes B² · D + B³ numbers for each network, which in float32 are 13 MB for B = 128 and D = 64; the backward pass
    needs the student's twice.

    Args:
        student: [B, ...]; everything but the batch is one vector.
        teacher: [B, ...], of any other width; no gradient flows into it.

    Returns:
        Scalar, mean over all B³ ordered triplets, degenerate ones included, as in the authors' code.
    """
    with torch.no_grad():
        wanted = angles(teacher)
    return F.smooth_l1_loss(angles(student), wanted)


def relative_distances(embeddings: Tensor) -> Tensor:
    """Euclidean distances [B, B] of embeddings [B, ...], divided by their mean; all 0 if all images coincide.

    The mean is over pairs that do not coincide, as in the authors' code. (The paper takes it over all pairs of
    different images: the same, unless two of them have the same embedding.) The gradient of a distance of 0 is 0.
    """
    vectors = at_least_float32(embeddings).flatten(1)
    # Through inner products it would be faster, and cancellation would make a distance of what is none.
    distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distances.sum() / (distances > 0).sum().clamp(min=1)
    return distances / torch.where(mean > 0, mean, 1)


def angles(embeddings: Tensor) -> Tensor:
    """Cosines [B, B, B] of embeddings [B, ...]: entry j, i, k is of the angle at j between i and k.

    It is 0, without a gradient, where i or k coincides with j.
    """
    vectors = at_least_float32(embeddings).flatten(1)
    products = self_products(vectors[None, :] - vectors[:, None])  # entry j, i, k: of i − j and k − j
    squares = products.diagonal(dim1=1, dim2=2)
    empty = squares == 0
    shares = torch.where(empty, 0, torch.where(empty, 1, squares).rsqrt())  # of length 1, had they been divided first
    return products * shares[:, :, None] * shares[:, None, :]


@LOSSES.register("rkd")
class RKD(Features):
    """Park et al. 2019, arXiv:1904.05068: distances and angles between the embeddings of a batch.

    A batch of one image has no distance, one of two no angle: the term is 0 there.

    Args:
        distance_weight: of the distances, ≥ 0.
        angle_weight: of the angles, ≥ 0.
        taps: the student's embeddings.
    """

    distance_weight: NonNegative = 25.0
    angle_weight: NonNegative = 50.0
    taps: Sequence[str] = ("embedding",)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        terms = [
            self.distance_weight * rkd_distance_loss(ours, theirs) + self.angle_weight * rkd_angle_loss(ours, theirs)
            for ours, theirs in self.pairs(student, teacher)
        ]
        return torch.stack(terms).sum()
