"""Cross-view consistency regularisation: Zhang et al. 2024 (ACM Multimedia), arXiv:2412.16493."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kd_cli.losses.base import LOSSES, Method
from kd_cli.losses.common import check_logits, log_probabilities
from kd_cli.ranges import NonNegative, Positive, Share
from kd_cli.types import Batch, Outputs


def crld_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    within_weight: float = 2.0,
    cross_weight: float = 0.5,
    temperature: float = 4.0,
    weak_threshold: float = 0.9,
    strong_threshold: float = 0.2,
) -> Tensor:
    """Zhang et al. 2024: `kd` of each view with the teacher's word on it, and on the other view; mean over the images.

    With D(a, b) = T² · KL(teacher on view a ‖ student on view b), w weak and s strong:
    within · [D(w, w) + D(s, s)] · 1(the teacher is sure of w) + cross · [D(w, s) + D(s, w)] · 1(it is sure of s).
    Sure is who gives one class, whichever, at least the threshold, at T = 1. An image of which it is not sure counts as
    0 in the mean. (Which threshold decides about which pair is as the authors' code has it.)

    Args:
        student_logits: [2 B, K]: of each image its weak view, then its strong one.
        teacher_logits: [2 B, K]; no gradient flows into them.
        within_weight: of the pairs that see one view.
        cross_weight: of the pairs that see different views.
        temperature: T > 0.
        weak_threshold: in [0, 1], of the teacher's largest probability for the weak view.
        strong_threshold: in [0, 1], likewise for the strong one.
    """
    check_logits(student_logits, teacher_logits)
    teacher_logits = teacher_logits.detach()
    student, teacher = (log_probabilities(logits, temperature) for logits in (student_logits, teacher_logits))
    surest = log_probabilities(teacher_logits).amax(dim=1).exp()
    sure_of_weak, sure_of_strong = surest[0::2] >= weak_threshold, surest[1::2] >= strong_threshold
    within = _divergences(student, teacher)
    cross = _divergences(student, teacher.unflatten(0, (-1, 2)).flip(1).flatten(0, 1))
    loss = within_weight * (within * sure_of_weak).mean() + cross_weight * (cross * sure_of_strong).mean()
    return loss * temperature**2


def _divergences(student: Tensor, teacher: Tensor) -> Tensor:
    """Of each image, summed over its two views, [B]."""
    return F.kl_div(student, teacher, reduction="none", log_target=True).view(-1, 2 * student.shape[1]).sum(dim=1)


@LOSSES.register("crld")
class CRLD(Method):
    """Zhang et al. 2024, arXiv:2412.16493: a weak and a strong view of each image, and the teacher's word on both.

    It needs `dataset.repeats=2`, and `dataset.augment=weak_strong` for views as in the paper. The numbers are those of
    public copies of the authors' code, for all pairs on CIFAR-100. There the cross-entropies of the two views are
    summed, here their mean is taken: ce_weight=2 is the same. (In a batch with one view of each image, such as an
    example, that view takes the place of both.)

    Args:
        within_weight: ≥ 0, of the pairs that see one view.
        cross_weight: ≥ 0, of the pairs that see different views.
        temperature: T > 0.
        weak_threshold: in [0, 1]: how sure the teacher must be of the weak view for the pairs that see one view.
        strong_threshold: in [0, 1]: of the strong view, for the pairs that see different views.
    """

    views = 2

    within_weight: NonNegative = 2.0
    cross_weight: NonNegative = 0.5
    temperature: Positive = 4.0
    weak_threshold: Share = 0.9
    strong_threshold: Share = 0.2

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        ours, theirs = student.logits, teacher.logits
        if batch.repeat is None:
            ours, theirs = (logits.repeat_interleave(2, dim=0) for logits in (ours, theirs))
        weights = self.within_weight, self.cross_weight, self.temperature
        return crld_loss(ours, theirs, *weights, self.weak_threshold, self.strong_threshold)
