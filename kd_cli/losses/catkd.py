"""Class attention transfer based knowledge distillation: Guo et al. 2023 (CVPR), arXiv:2304.12777."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from torch import Tensor, nn

from kd_cli.losses.adapters import area_mean, check_classified, check_positions
from kd_cli.losses.base import LOSSES, Features
from kd_cli.losses.common import at_least_float32, inner_products, unit
from kd_cli.ranges import NonNegative, within
from kd_cli.types import Batch, DataSpec, Outputs


def class_activation_maps(feature: Tensor, weight: Tensor) -> Tensor:
    """Where a network sees each class: its feature map, weighed by the class's row of the classifier.

    Args:
        feature: [B, C, H, W], of which the classifier reads the average over positions.
        weight: [K, C], of the classifier.

    Returns:
        [B, K, H, W]. The average over positions is the logit without its bias.
    """
    maps = inner_products(weight, feature.flatten(2).mT)  # [B, K, H·W]
    return maps.view(*maps.shape[:2], *feature.shape[2:])


def catkd_loss(student_maps: Tensor, teacher_maps: Tensor, resolution: int = 2) -> Tensor:
    """Guo et al. 2023, L_CAT: mean squared difference of class activation maps, each divided by its length.

    The maps are averaged to `resolution` × `resolution` first. Mean over batch, classes and positions. (The paper's
    norm is a sum over the positions; the authors' code, followed here, takes the mean.)

    Args:
        student_maps: [B, K, H_s, W_s].
        teacher_maps: [B, K, H_t, W_t].
        resolution: ≥ 2, pixels. (With 1 only the signs of the logits would be compared.)
    """
    student, teacher = (
        unit(area_mean(at_least_float32(maps), (resolution, resolution)).flatten(2))
        for maps in (student_maps, teacher_maps)
    )
    return (student - teacher).square().mean()


@LOSSES.register("catkd")
class CATKD(Features):
    """Guo et al. 2023, arXiv:2304.12777: the student looks where the teacher looks, for every class.

    Needs two networks whose linear classifier reads the average over positions of the tapped feature map. `final` is
    that map in kd's convolutional networks, also where other layers follow the last stage.

    Args:
        resolution: of the compared maps, ≥ 2, pixels.
        cat_weight: ≥ 0. (The authors' code takes 15 to 600 for different pairs. For networks of one family it leaves
            the maps' lengths as they are, and weighs by 0.7 to 15.)
        taps: the student's feature map in front of the global average, [B, C, H, W].

    Raises:
        ValueError: a number outside its range, a network that ends otherwise, or maps of a single pixel.
    """

    resolution: Annotated[int, within(low=2)] = 2
    cat_weight: NonNegative = 400.0
    taps: Sequence[str] = ("final",)

    def bind(self, student: Outputs, teacher: Outputs, data: DataSpec) -> None:  # noqa: ARG002
        check_classified(self, student, teacher)
        check_positions(self.pairs(student, teacher))

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        ((ours, theirs),) = self.pairs(student, teacher)
        assert isinstance(student.classifier, nn.Linear)  # bind saw to both
        assert isinstance(teacher.classifier, nn.Linear)
        of_student = class_activation_maps(ours, student.classifier.weight)
        of_teacher = class_activation_maps(theirs, teacher.classifier.weight).detach()
        return self.cat_weight * catkd_loss(of_student, of_teacher, self.resolution)
