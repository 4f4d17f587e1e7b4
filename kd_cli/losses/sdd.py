"""Scale decoupled distillation: Wei, Luo, Luo 2024 (CVPR), arXiv:2403.13512."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_cli.losses.adapters import area_mean, check_classified, check_positions
from kd_cli.losses.base import LOSSES, Features
from kd_cli.losses.common import at_least_float32, inner_products
from kd_cli.ranges import Count, NonNegative, Positive
from kd_cli.types import Batch, DataSpec, Outputs


def sdd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    complementary_weight: float = 2.0,
    temperature: float = 4.0,
) -> Tensor:
    """Wei et al. 2024, D_con + β · D_com: `kd` in every area of the image, where areas that add something count more.

    An area's knowledge is complementary where the teacher names the label there and not in the whole image, or the
    other way round; elsewhere it is consistent. Mean over areas and batch. (The paper sums over the areas; the mean is
    that of the authors' code, and their weights are made for it.)

    Args:
        student_logits: [B, R, K], of R areas; the first of them is the whole image.
        teacher_logits: [B, R, K]; no gradient flows into them.
        labels: [B], int64.
        complementary_weight: β; that of the consistent areas is 1.
        temperature: T > 0.

    Raises:
        ValueError: unless both are [B, R, K].
    """
    if student_logits.ndim != 3 or student_logits.shape != teacher_logits.shape:
        shapes = f"{list(student_logits.shape)} and {list(teacher_logits.shape)}"
        raise ValueError(f"student and teacher logits must both be [B, R, K], not {shapes}")
    teacher_logits = teacher_logits.detach()
    ours, theirs = ((at_least_float32(z) / temperature).log_softmax(dim=2) for z in (student_logits, teacher_logits))
    divergences = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=2)
    right = teacher_logits.argmax(dim=2) == labels[:, None]
    weights = torch.where(right == right[:, :1], 1.0, complementary_weight).to(divergences.dtype)
    return temperature**2 * (weights * divergences).mean()


def area_logits(maps: Tensor, classifier: nn.Linear, scales: Sequence[int]) -> Tensor:
    """What a classifier says of the areas of maps [B, C, H, W]: [B, R, K], R = Σ scale², scale by scale."""
    areas = [area_mean(at_least_float32(maps), (scale, scale)).flatten(2) for scale in scales]
    logits = inner_products(torch.cat(areas, dim=2).mT, classifier.weight)
    return logits if classifier.bias is None else logits + classifier.bias


@LOSSES.register("sdd")
class SDD(Features):
    """Wei, Luo, Luo 2024, arXiv:2403.13512: the teacher's word on every area of the image, and not on the whole alone.

    Both networks' classifiers are asked about the mean of each area of their last feature map. Needs two networks whose
    linear classifier reads the average over positions of that map; `final` is it in kd's convolutional networks.

    The map is cut into `scales` × `scales` areas. A scale that one of the maps has not the pixels for is left out. (The
    authors' code takes 1 and 2 for pairs of one family and 1, 2 and 4 for others, and the means over 2 × 2 areas of
    those over 4 × 4: the same, where 4 divides the map.) Areas are compared as `kd` compares images; the paper has also
    `dkd` and `nkd` in its place. The authors' code replaces what is not a number by 0; here nothing is hidden.

    Args:
        temperature: T > 0.
        kl_weight: α ≥ 0, of the whole; by default that of `kd`, as in the authors' code.
        complementary_weight: β ≥ 0, of areas where the teacher is right and of the image is not, or the other way.
        scales: areas in each direction, each ≥ 1.
        taps: the student's feature map in front of the global average, [B, C, H, W].

    Raises:
        ValueError: a number outside its range, a network that ends otherwise, or maps of a single pixel.
    """

    temperature: Positive = 4.0
    kl_weight: NonNegative = 0.9
    complementary_weight: NonNegative = 2.0
    scales: Sequence[Count] = (1, 2, 4)
    taps: Sequence[str] = ("final",)

    def bind(self, student: Outputs, teacher: Outputs, data: DataSpec) -> None:  # noqa: ARG002
        check_classified(self, student, teacher)
        pairs = self.pairs(student, teacher)
        check_positions(pairs)
        pixels = min(size for maps in pairs[0] for size in maps.shape[2:])
        self.areas = [1, *sorted({scale for scale in self.scales if 1 < scale <= pixels})]

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        ((ours, theirs),) = self.pairs(student, teacher)
        assert isinstance(student.classifier, nn.Linear)  # bind saw to both
        assert isinstance(teacher.classifier, nn.Linear)
        of_student = area_logits(ours, student.classifier, self.areas)
        of_teacher = area_logits(theirs, teacher.classifier, self.areas)
        options = self.complementary_weight, self.temperature
        return self.kl_weight * sdd_loss(of_student, of_teacher, batch.labels, *options)
