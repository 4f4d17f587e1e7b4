"""Several teachers that speak as one: an ensemble of equals, or a generalist with specialists."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from kd_cli.config.plan import check_groups, check_weights
from kd_cli.errors import ConfigError

Weights = Sequence[float] | Literal["confidence"] | None


class Ensemble(nn.Module):
    """Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 3: the members' logits, averaged.

    (The mean of the logits is, after the softmax, the geometric mean of the members' probabilities.)

    Args:
        members: networks from images [B, C, H, W] to logits [B, K].
        weights: None: all the same; one number ≥ 0 per member, normalised to the sum 1; `confidence`: per image, in
            proportion to the probability of each member's own first choice.

    Raises:
        ValueError: weights that do not fit the members.
    """

    def __init__(self, members: Sequence[nn.Module], weights: Weights = None) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.by_confidence = weights == "confidence"
        check_weights(weights, len(members))
        shares = (
            [1.0] * len(members) if weights in (None, "confidence") else [float(weight) for weight in weights or ()]
        )
        self.register_buffer("shares", torch.tensor(shares) / sum(shares), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] → [B, K]."""
        logits = torch.stack([member(images) for member in self.members])  # [M, B, K]
        shares = cast(Tensor, self.shares).to(logits)[:, None]  # [M, 1]
        if self.by_confidence:
            confidence = logits.softmax(dim=2).amax(dim=2)  # [M, B]
            shares = confidence / confidence.sum(dim=0)
        return (shares[..., None] * logits).sum(dim=0)


class Specialists(nn.Module):
    """Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 5: a generalist and specialists for confusable classes.

    A specialist knows the classes of its group and one more that stands for all others. Where the generalist's first
    choice is in a specialist's group, the answer q minimises KL(p_generalist ‖ q) + KL(p_specialist ‖ q) (Eq. 5),
    elsewhere it is the generalist's. The paper descends the gradient of Eq. 5 for every image; groups without common
    classes, as here, have a closed form: q is the mean of the two on each class of the group and on all other classes
    together, which share theirs as the generalist says.

    Args:
        generalist: images [B, C, H, W] → logits [B, K].
        specialists: images → logits [B, n + 1] of the n classes of a group and of all others.
        groups: the classes of each specialist; no class is in two of them.

    Raises:
        ValueError: a class is in two groups, or a group has all classes.
    """

    def __init__(
        self, generalist: nn.Module, specialists: Sequence[nn.Module], groups: Sequence[Sequence[int]], num_classes: int
    ) -> None:
        super().__init__()
        chosen = [label for group in groups for label in group]
        if len(set(chosen)) != len(chosen) or any(len(group) >= num_classes for group in groups):
            raise ValueError(f"groups: the classes {[list(group) for group in groups]} overlap or leave no other class")
        self.generalist = generalist
        self.specialists = nn.ModuleList(specialists)
        inside = torch.zeros(len(groups), num_classes, dtype=torch.bool)
        for row, group in zip(inside, groups, strict=True):
            row[list(group)] = True
        self.register_buffer("inside", inside, persistent=False)
        self.groups = [list(group) for group in groups]

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] → log-probabilities [B, K]."""
        said = torch.log_softmax(self.generalist(images), dim=1)
        first, answer = said.argmax(dim=1), said
        for specialist, inside, group in zip(self.specialists, cast(Tensor, self.inside), self.groups, strict=True):
            corrected = _joined(said, torch.log_softmax(specialist(images), dim=1), inside, group)
            answer = torch.where(inside[first][:, None], corrected, answer)
        return answer


def _joined(said: Tensor, special: Tensor, inside: Tensor, group: Sequence[int]) -> Tensor:
    """Log-probabilities [B, K] that minimise Eq. 5 for one specialist [B, n + 1]."""
    others = said.masked_fill(inside, -math.inf)
    mass = others.logsumexp(dim=1, keepdim=True)
    joined = others - mass + torch.logaddexp(mass, special[:, -1:]) - math.log(2)
    joined[:, group] = torch.logaddexp(said[:, group], special[:, :-1]) - math.log(2)
    return joined


def confusable_groups(confusion: Tensor, count: int, size: int) -> list[list[int]]:
    """Groups of classes that are taken for each other, most confused first; no class is in two of them.

    Each group starts with the pair that is confused most often, both ways together, and takes in the class that is
    confused most often with its members until it is full. (The paper clusters the covariance of predictions online;
    the confusion matrix of the validation images needs no training labels.)

    Args:
        confusion: [K, K], how often an image of class i was taken for class j.
        count: of groups, ≥ 1.
        size: classes per group, ≥ 2.

    Raises:
        ValueError: there are not so many classes.
    """
    classes = len(confusion)
    check_groups(count, size, classes)
    mutual = (confusion + confusion.T).double().fill_diagonal_(-1)
    groups = []
    for _ in range(count):
        group = sorted(divmod(int(mutual.argmax()), classes))
        while len(group) < size:
            with_group = mutual[group].clamp(min=0).sum(dim=0)
            with_group[mutual.amax(dim=0) < 0] = -1  # taken already
            with_group[group] = -1
            group.append(int(with_group.argmax()))
        groups.append(sorted(group))
        mutual[group], mutual[:, group] = -1, -1
    return groups


def join_teachers(
    loaded: Sequence[tuple[nn.Module, Sequence[int] | None]], weights: Weights, num_classes: int
) -> nn.Module:
    """One teacher alone, specialists behind their generalist, or else an ensemble of equals.

    Args:
        loaded: each network and, of a specialist, the classes that it tells apart.

    Raises:
        ConfigError: they do not fit together.
    """
    plain = [network for network, group in loaded if not group]
    special = [(network, group) for network, group in loaded if group]
    if len(loaded) == 1 and not special:
        return plain[0]
    if special and len(plain) != 1:
        raise ConfigError(
            f"teacher.checkpoint: specialists need one generalist beside them, and there are {len(plain)}; "
            "type teacher.checkpoint=[RUN/teacher,RUN/specialist-1,RUN/specialist-2]"
        )
    try:
        if not special:
            return Ensemble(plain, weights)
        networks, groups = zip(*special, strict=True)
        return Specialists(plain[0], networks, groups, num_classes)
    except ValueError as error:
        raise ConfigError(f"{'teacher.checkpoint: ' if special else 'ensemble.'}{error}") from error
