"""Knowledge distillation with the reused teacher classifier: Chen et al. 2022, arXiv:2203.14001."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_cli.losses.adapters import Norm, area_mean, as_maps, makes_logits
from kd_cli.losses.base import LOSSES, Features
from kd_cli.losses.common import at_least_float32
from kd_cli.ranges import Count, NonNegative
from kd_cli.taps import Tapped, classifier_of, published_taps, select
from kd_cli.types import Batch, DataSpec, Outputs


def simkd_loss(projected: Tensor, teacher_feature: Tensor) -> Tensor:
    """Chen et al. 2022: mean squared difference, over batch, channels and positions.

    Args:
        projected: [B, C, H, W], what the projector made of the student's feature.
        teacher_feature: [B, C, H_t, W_t], H_t ≥ H, W_t ≥ W; averaged over areas to H × W.
    """
    target = area_mean(at_least_float32(teacher_feature), (projected.shape[2], projected.shape[3]))
    return (at_least_float32(projected) - target).square().mean()


class Projector(nn.Module):
    """1×1, 3×3 and 1×1 convolution, each with batch normalisation and ReLU; the outer channels are the networks'.

    It ends with a ReLU only if the teacher's feature has no negative value; the paper's networks all have none.

    Args:
        student_maps: an example, [B, C_s, H_s, W_s]; larger maps than the teacher's are averaged to its size first.
        teacher_maps: an example, [B, C_t, H_t, W_t].
        reduction: the inner channels are C_t / reduction.
    """

    rectified: Tensor  # a buffer, because it is seen in a feature: a rebuilt projector must not see something else

    def __init__(self, student_maps: Tensor, teacher_maps: Tensor, reduction: int) -> None:
        super().__init__()
        ours, theirs = student_maps.shape, teacher_maps.shape
        self.size = min(ours[2], theirs[2]), min(ours[3], theirs[3])
        middle, kernel = max(1, theirs[1] // reduction), 3 if max(self.size) > 1 else 1
        self.layers = nn.Sequential(
            *_conv_norm(ours[1], middle, 1),
            nn.ReLU(),
            *_conv_norm(middle, middle, kernel),
            nn.ReLU(),
            *_conv_norm(middle, theirs[1], 1),
        )
        self.register_buffer("rectified", (teacher_maps >= 0).all())

    def forward(self, feature: Tensor) -> Tensor:
        """[B, C_s, H_s, W_s] or [B, D_s] → [B, C_t, H, W], the smaller of both networks' sizes."""
        projected = self.layers(area_mean(as_maps(feature), self.size))
        return torch.where(self.rectified, F.relu(projected), projected)


class Grafted(nn.Module):
    """The deployed network: the student without its classifier, the projector, an average, the teacher's classifier.

    Args:
        student: its modules are shared, not copied, so that the deployed network is the one that is trained.
        projector: likewise.
        classifier: of the teacher; it is copied.
        taps: the student's features.
        tap: which of them is projected, counted from the deepest: −1, −2, …
    """

    def __init__(
        self, student: nn.Module, projector: Projector, classifier: nn.Module, taps: Sequence[str], tap: int
    ) -> None:
        super().__init__()
        self.body = headless(student)
        self.projector = projector
        self.classifier = copy.deepcopy(classifier).requires_grad_(False)
        self._tapped = Tapped(self.body, taps)
        self._taps, self._tap = tuple(taps), tap
        inside = {name: f"body.{path}" for name, path in published_taps(student).items() if name != "embedding"}
        self.taps = inside | {"embedding": "classifier:in"}  # so that it can teach in its turn

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] → [B, K]."""
        feature = select(self._tapped(images).features, self._taps)[self._tap]
        logits: Tensor = self.classifier(self.projector(feature).mean(dim=(2, 3)))
        return logits


def headless(network: nn.Module) -> nn.Module:
    """The network with nothing in the place of its published classifier. All other modules are the very same."""
    path = published_taps(network).get("embedding", "").removesuffix(":in")
    if classifier_of(network) is None:
        return network
    *parents, name = path.split(".")
    body = parent = _own_children(network)
    for part in parents:
        child = _own_children(parent.get_submodule(part))
        setattr(parent, part, child)
        parent = child
    setattr(parent, name, nn.Identity())
    return body


def _own_children(module: nn.Module) -> nn.Module:
    """A copy that shares parameters, buffers and children with the original, and can be given other children."""
    copied = copy.copy(module)
    copied._modules = dict(module._modules)
    return copied


def _conv_norm(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False), Norm(outputs)]


@LOSSES.register("simkd")
class SimKD(Features):
    """Chen et al. 2022, arXiv:2203.14001: the student learns the teacher's last feature, and is given its classifier.

    What is evaluated and saved is the student with a projector and a frozen copy of the teacher's classifier. The
    student's own classifier learns from the labels if `ce_weight` is not 0, and is not deployed.

    The first of the taps is projected of which the teacher's classifier, given its average over positions, makes the
    teacher's logits: the deepest feature map, as in the paper, or the embedding where another layer stands between.
    A network without feature maps needs taps=[embedding].

    Args:
        reduction: the projector's inner channels are the teacher's divided by it, ≥ 1.
        simkd_weight: ≥ 0.
        taps: the student's features, [B, C, H, W] or [B, D].

    Raises:
        ValueError: a number outside its range, or a teacher whose linear classifier reads none of the taps.
    """

    reduction: Count = 2
    simkd_weight: NonNegative = 1.0
    taps: Sequence[str] = ("final", "embedding")

    def bind(self, student: Outputs, teacher: Outputs, data: DataSpec) -> None:  # noqa: ARG002
        pairs = self.pairs(student, teacher)
        reused = [i for i, (_, theirs) in enumerate(pairs) if makes_logits(teacher, theirs)]
        if not reused:
            raise ValueError(
                f"teacher_taps: of none of {list(self.teacher_taps or ())} the teacher's classifier makes its logits; "
                "it must be linear, its input published as `embedding`, and that be one of the taps: "
                "loss.taps=[embedding]"
            )
        self.tap = reused[0] - len(pairs)  # from the deepest: the student may have more stages
        ours, theirs = pairs[self.tap]
        self.projector = Projector(as_maps(ours), as_maps(theirs), self.reduction)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        ours, theirs = self.pairs(student, teacher)[self.tap]
        return self.simkd_weight * simkd_loss(self.projector(ours), as_maps(theirs).detach())

    def deploy(self, student: nn.Module, teacher: nn.Module | None) -> nn.Module:
        assert teacher is not None  # its classifier was used in bind
        classifier = classifier_of(teacher)
        assert classifier is not None
        return Grafted(student, self.projector, classifier, self.taps, self.tap)
