"""What makes features of two networks comparable: learned layers, the smaller of two sizes, a classifier's word."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_cli.losses.base import Features
from kd_cli.losses.common import at_least_float32, inner_products
from kd_cli.types import DataSpec, Outputs


def projection(feature: Tensor, channels: int) -> nn.Module:
    """A layer without bias that gives `feature` another number of channels; it is learned with the student.

    Args:
        feature: an example, [B, C, H, W] (1×1 convolution) or [B, D] (linear layer).
        channels: that it shall have.

    Raises:
        ValueError: any other shape.
    """
    if feature.ndim == 4:
        return nn.Conv2d(feature.shape[1], channels, 1, bias=False)
    if feature.ndim == 2:
        return nn.Linear(feature.shape[1], channels, bias=False)
    raise ValueError(f"taps: a feature must be [B, C, H, W] or [B, D], not {list(feature.shape)}")


def matching(student_feature: Tensor, teacher_feature: Tensor) -> nn.Module:
    """What gives the student's feature the teacher's channels: a projection, or nothing where it has as many."""
    channels = teacher_feature.shape[1]
    return nn.Identity() if student_feature.shape[1] == channels else projection(student_feature, channels)


def same_size(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Two feature maps [B, C, H, W], averaged over areas to the smaller height and the smaller width of the two.

    Vectors [B, D] are left as they are.
    """
    if one.ndim != 4 or other.ndim != 4 or one.shape[2:] == other.shape[2:]:
        return one, other
    size = (min(one.shape[2], other.shape[2]), min(one.shape[3], other.shape[3]))
    return area_mean(one, size), area_mean(other, size)


def area_mean(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [B, C, H, W] as means over areas, [B, C, *size]: adaptive average pooling, of larger sizes too.

    Its gradient has a kernel on CUDA that adds in any order. There it is done otherwise, and rounded otherwise.
    """
    height, width = maps.shape[2:]
    if maps.device.type == "cpu" or size == (1, 1):  # the mean of all positions is no pooling
        return F.adaptive_avg_pool2d(maps, size)
    if maps.shape[2:] == size:
        return maps
    if height % size[0] == 0 and width % size[1] == 0:
        return F.avg_pool2d(maps, (height // size[0], width // size[1]))
    return means_by_products(maps, size)


def means_by_products(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """`area_mean` as products with a matrix for the rows and one for the columns."""
    rows, columns = (_shares(old, new, maps) for old, new in zip(maps.shape[2:], size, strict=True))
    return inner_products(inner_products(maps, columns).mT, rows).mT.to(maps.dtype)


def _shares(old: int, new: int, like: Tensor) -> Tensor:
    """How much of the mean of each area is each of its pixels: [new, old]."""
    pixel, area = torch.arange(old, device=like.device), torch.arange(new, device=like.device)[:, None]
    first, end = area * old // new, ((area + 1) * old + new - 1) // new
    return at_least_float32(((pixel >= first) & (pixel < end)).to(like.dtype)) / (end - first)


def check_maps(*features: Tensor) -> None:
    """Refuses vectors where feature maps are needed. Raises ValueError: unless every feature is [B, C, H, W]."""
    for feature in features:
        if feature.ndim != 4:
            raise ValueError(f"taps: the method reads feature maps [B, C, H, W], not {list(feature.shape)}")


def check_same_kind(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Raises a ValueError unless student and teacher have as many dimensions in every pair."""
    for ours, theirs in pairs:
        if ours.ndim != theirs.ndim:
            raise ValueError(
                f"taps: {list(ours.shape)} of the student cannot be compared with {list(theirs.shape)} of the teacher; "
                "take two feature maps or two vectors"
            )


def check_positions(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Refuses maps of which normalising over positions would leave nothing: those of a single pixel.

    Raises:
        ValueError: unless all features are [B, C, H, W] and one pair at least has more than one position in common.
    """
    check_maps(*(feature for pair in pairs for feature in pair))
    if all(min(ours.shape[i], theirs.shape[i]) == 1 for ours, theirs in pairs for i in (2, 3)):
        raise ValueError(
            "taps: all maps are compared at a single pixel, where they are always alike; take shallower ones"
        )


class Stages(Features):
    """A method that compares successive stages, once the student's have the teacher's channels."""

    def bind(self, student: Outputs, teacher: Outputs, data: DataSpec) -> None:  # noqa: ARG002
        pairs = self.pairs(student, teacher)
        check_maps(*(feature for pair in pairs for feature in pair))
        if len(pairs) < 2:
            raise ValueError(
                f"taps: successive stages are compared, and both networks need two of them, not {len(pairs)}"
            )
        self.projections = nn.ModuleList(matching(ours, theirs) for ours, theirs in pairs)

    def stages(self, student: Outputs, teacher: Outputs) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """The student's maps, projected, and the teacher's."""
        ours, theirs = zip(*self.pairs(student, teacher), strict=True)
        return [project(at_least_float32(maps)) for project, maps in zip(self.projections, ours, strict=True)], theirs


def check_channels(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> None:
    """Raises a ValueError unless every two maps of the same place have as many channels."""
    for ours, theirs in zip(student_maps, teacher_maps, strict=True):
        if ours.shape[1] != theirs.shape[1]:
            raise ValueError(
                f"taps: stages are compared entry by entry, and {ours.shape[1]} channels are not {theirs.shape[1]}"
            )


def as_maps(feature: Tensor) -> Tensor:
    """Feature maps [B, C, H, W] as they are, vectors [B, D] as maps of one pixel [B, D, 1, 1].

    Raises:
        ValueError: any other shape.
    """
    if feature.ndim not in (2, 4):
        raise ValueError(f"taps: a feature must be [B, C, H, W] or [B, D], not {list(feature.shape)}")
    return feature if feature.ndim == 4 else feature[:, :, None, None]


class Norm(nn.BatchNorm2d):
    """Batch normalisation of maps [B, C, H, W]; one image with a map of one pixel is possible too.

    One value per channel has no variance, and PyTorch refuses it in training mode. Here the running statistics
    normalise it, as in eval mode.
    """

    def forward(self, maps: Tensor) -> Tensor:
        if self.training and maps.numel() == maps.shape[1]:
            return F.batch_norm(maps, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(maps)


def connector(maps: Tensor, channels: int) -> nn.Module:
    """1×1 convolution and batch normalisation: example maps [B, C, H, W] → [B, channels, H, W]."""
    return nn.Sequential(projection(maps, channels), Norm(channels))


class ConnectedMaps(Features):
    """Compares maps [B, C, H, W] whose channels a connector makes as many as the teacher's; sizes need not agree."""

    def bind(self, student: Outputs, teacher: Outputs, data: DataSpec) -> None:  # noqa: ARG002
        pairs = self.pairs(student, teacher)
        check_maps(*(feature for pair in pairs for feature in pair))
        self.connectors = nn.ModuleList(connector(ours, theirs.shape[1]) for ours, theirs in pairs)

    def connected(self, student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
        """As `pairs`, the student's through their connectors."""
        pairs = zip(self.connectors, self.pairs(student, teacher), strict=True)
        return [(connect(at_least_float32(ours)), theirs) for connect, (ours, theirs) in pairs]


def halving(losses: Sequence[Tensor]) -> Tensor:
    """The sum of the losses of taps from shallow to deep, where each counts half as much as the next deeper one."""
    return torch.stack([loss / 2**back for back, loss in enumerate(reversed(losses))]).sum()


def makes_logits(outputs: Outputs, feature: Tensor) -> bool:
    """Whether a network's linear classifier makes its logits of the average over positions of `feature`.

    Args:
        outputs: an example of what the network says, in eval mode.
        feature: of the same pass, [B, C, H, W], or [B, D] without positions.
    """
    vectors = as_maps(feature).mean(dim=(2, 3))
    classifier = outputs.classifier
    if not isinstance(classifier, nn.Linear) or classifier.in_features != vectors.shape[1]:
        return False
    wanted = outputs.logits.detach()
    with torch.no_grad():
        logits = classifier(vectors)
    # far more than rounding, far less than what another layer would do
    return torch.allclose(logits, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


def check_classified(method: Features, student: Outputs, teacher: Outputs) -> None:
    """Refuses networks that do not end with an average over positions and a linear classifier behind the tapped map.

    Raises:
        ValueError: more than one tap, or a feature that is not the map whose average the classifier reads.
    """
    pairs = method.pairs(student, teacher)
    if len(pairs) != 1:
        raise ValueError(f"taps: {list(method.taps)} are {len(pairs)} features; type loss.taps=[final]")
    for option, outputs, feature in zip(("taps", "teacher_taps"), (student, teacher), pairs[0], strict=True):
        if feature.ndim != 4 or not makes_logits(outputs, feature):
            raise ValueError(
                f"{option}: {list(getattr(method, option))} is not the feature map whose average over positions the "
                f"{'student' if option == 'taps' else 'teacher'}'s linear classifier reads; if there is one, name "
                f"it by a module's path: loss.{option}=[pool:in] is what goes into the module `pool`"
            )
