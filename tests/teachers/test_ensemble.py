"""Several teachers that speak as one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kd_cli.teachers.ensemble import Ensemble, Specialists, confusable_groups


class Says(nn.Module):
    """A network that gives the same logits [B, K] for whatever it sees."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        return self.logits


def random_logits(seed: int, *shape: int) -> Tensor:
    return 3 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


IMAGES = torch.zeros(6, 1, 2, 2)


def test_an_ensemble_says_the_mean_of_its_members() -> None:
    logits = [random_logits(seed, 6, 4) for seed in range(3)]
    torch.testing.assert_close(Ensemble([Says(each) for each in logits])(IMAGES), sum(logits) / 3)


def test_weights_are_normalised() -> None:
    logits = [random_logits(seed, 6, 4) for seed in range(2)]
    said = Ensemble([Says(each) for each in logits], [6.0, 2.0])(IMAGES)
    torch.testing.assert_close(said, 0.75 * logits[0] + 0.25 * logits[1])


def test_by_confidence_each_image_listens_to_who_is_sure_of_it() -> None:
    logits = [random_logits(seed, 6, 4).numpy() for seed in range(3)]
    said = Ensemble([Says(torch.from_numpy(each)) for each in logits], "confidence")(IMAGES)
    for image in range(6):
        rows = [each[image] for each in logits]
        sure = [np.exp(row - row.max()).max() / np.exp(row - row.max()).sum() for row in rows]
        expected = sum(share * row for share, row in zip(sure, rows, strict=True)) / sum(sure)
        np.testing.assert_allclose(said[image], expected, rtol=1e-9)


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, float("nan")], "equal"])
def test_impossible_weights_are_refused(weights: object) -> None:
    with pytest.raises(ValueError, match="weights:"):
        Ensemble([nn.Identity(), nn.Identity()], weights)


GROUPS = [[1, 4], [0, 5]]


def specialists(general: Tensor, *special: Tensor) -> Tensor:
    network = Specialists(Says(general), [Says(each) for each in special], GROUPS, general.shape[1])
    return network(torch.zeros(len(general), 1, 2, 2))


def test_where_no_specialist_is_asked_the_generalist_answers() -> None:
    general = random_logits(0, 6, 7)
    general[:, 3] = 20
    said = specialists(general, random_logits(1, 6, 3), random_logits(2, 6, 3))
    torch.testing.assert_close(said, general.log_softmax(1))


def test_a_specialists_word_minimises_equation_5_of_the_paper() -> None:
    """The closed form against gradient descent on KL(p_g ‖ q) + KL(p_m ‖ q)."""
    general, special = random_logits(0, 4, 7), random_logits(1, 4, 3)
    general[:, 1] = general.amax(dim=1) + 0.5  # class 1 is of the first group
    said = specialists(general, special, random_logits(2, 4, 3)).exp()
    p_general, p_special = general.softmax(1), special.softmax(1)
    z = torch.zeros(4, 7, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([z], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15)

    def descend() -> Tensor:
        optimizer.zero_grad()
        q = z.softmax(1)
        grouped = torch.stack([q[:, 1], q[:, 4], q[:, [0, 2, 3, 5, 6]].sum(1)], dim=1)
        loss = -(p_general * q.log()).sum() - (p_special * grouped.log()).sum()
        loss.backward()
        return loss

    optimizer.step(descend)
    torch.testing.assert_close(said, z.detach().softmax(1), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(said.sum(1), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("groups", [[[0, 1], [1, 2]], [[0, 1, 2]]])
def test_groups_that_overlap_or_leave_nothing_are_refused(groups: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="groups:"):
        Specialists(nn.Identity(), [nn.Identity() for _ in groups], groups, 3)


def test_confusable_classes_are_found_in_the_confusion_matrix() -> None:
    confusion = torch.diag(torch.full((8,), 50))
    confusion[2, 5] = 9
    confusion[5, 7] = 4  # 7 joins 2 and 5
    confusion[0, 6] = 3
    confusion[6, 0] = 3
    confusion[6, 1] = 1
    assert confusable_groups(confusion, 2, 3) == [[2, 5, 7], [0, 1, 6]]


def test_confusion_counts_both_ways() -> None:
    confusion = torch.zeros(5, 5)
    confusion[0, 1] = 5
    confusion[2, 3] = confusion[3, 2] = 3
    assert confusable_groups(confusion, 1, 2) == [[2, 3]]


def test_every_class_may_be_in_a_group_and_none_is_in_two() -> None:
    groups = confusable_groups(torch.zeros(6, 6), 2, 3)
    assert sorted(label for group in groups for label in group) == list(range(6))
    with pytest.raises(ValueError, match="do not fit 6 classes"):
        confusable_groups(torch.zeros(6, 6), 3, 3)
