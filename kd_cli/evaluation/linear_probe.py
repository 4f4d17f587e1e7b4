"""A linear probe: how well a linear classifier tells classes apart by a network's frozen features.

In the manner of Kornblith, Shlens and Le 2019, arXiv:1805.08974: multinomial logistic regression with an L2 penalty,
found by L-BFGS. The penalty is chosen on validation images; then the classifier is fitted again, on training and
validation images together, and tested. N images, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_cli.data.base import Data, Part
from kd_cli.metrics.evaluate import evaluating
from kd_cli.metrics.scores import accuracy
from kd_cli.taps import Tapped, published_taps

PENALTIES = tuple(10.0**exponent for exponent in range(1, -7, -1))  # from strong to weak
_ITERATIONS = 1000
_GRADIENT = 1e-4  # largest entry at which a fit counts as done, as scikit-learn has it; ten times less is aimed at

Images = tuple[Tensor, Tensor]  # features [N, D] and labels [N]


def features(
    network: nn.Module, data: Data, part: Part, *, tap: str | None, batch_size: int, device: torch.device
) -> Images:
    """A network's features [N, D], float64, and the labels [N] of a whole part, not augmented, on the CPU.

    Args:
        tap: of the network; feature maps are averaged over their positions. None: its published `embedding`, or else
            what `final` is (see taps.Tapped).

    Raises:
        ValueError: the network has no such tap, or it is neither [B, D] nor [B, C, H, W].
    """
    tap = tap or ("embedding" if "embedding" in published_taps(network) else "final")
    tapped, rows, labels = Tapped(network, [tap]), [], []
    with evaluating(network):
        for batch in data.eval_batches(part, batch_size=batch_size, device=device):
            rows.append(_pooled(next(iter(tapped(batch.images).features.values())), tap).cpu())
            labels.append(batch.labels.cpu())
    return torch.cat(rows).double(), torch.cat(labels)


def linear_probe(parts: Mapping[Part, Images], num_classes: int) -> dict[str, Any]:
    """Fits and chooses a linear classifier, and tests it once.

    Features are standardised by the mean and deviation of the training images.

    Args:
        parts: `train`, `val` and `test`, none of them empty.
        num_classes: K.

    Returns:
        As `scores.accuracy` on the test images; `penalty`, the chosen one (ties: the stronger); `val_top1` of each
        penalty; `features`, D; `converged`, whether the last fit came to rest.
    """
    chosen = choose_probe(parts["train"], parts["val"], num_classes)
    standard = {part: (chosen.standardised(rows), labels) for part, (rows, labels) in parts.items()}
    rows, labels = (torch.cat(each) for each in zip(standard["train"], standard["val"], strict=True))
    weights, converged = fit_logistic(rows, labels, num_classes, chosen.penalty)
    scores = accuracy(logits_of(weights, standard["test"][0]), standard["test"][1])
    return scores | chosen.facts() | {"converged": converged}


@dataclass(frozen=True)
class Probe:
    """A linear classifier that was fitted to training images, and whose penalty validation images have chosen.

    Args:
        penalty: the chosen one (ties: the stronger).
        val_top1: of each penalty.
        weights: [D + 1, K], of standardised features; the last row are the biases.
        mean, deviation: [D], of the training images' features.
        converged: whether the fit came to rest.
    """

    penalty: float
    val_top1: Mapping[float, float]
    weights: Tensor
    mean: Tensor
    deviation: Tensor
    converged: bool

    def standardised(self, rows: Tensor) -> Tensor:
        """[N, D] → [N, D]."""
        return (rows - self.mean) / self.deviation

    def linear(self) -> tuple[Tensor, Tensor]:
        """The weights [K, D] and biases [K] of a layer that does the same to features that are not standardised."""
        weights = self.weights[:-1] / self.deviation[:, None]
        return weights.T, self.weights[-1] - self.mean @ weights

    def facts(self) -> dict[str, Any]:
        """What is on record of it, as plain JSON values."""
        tops = {f"{penalty:g}": top for penalty, top in self.val_top1.items()}
        return {"penalty": self.penalty, "val_top1": tops, "features": len(self.mean), "converged": self.converged}


def choose_probe(train: Images, val: Images, num_classes: int) -> Probe:
    """Fits a linear classifier with each penalty, and takes the best on validation images."""
    mean, deviation = _moments(train[0])
    rows, seen = ((each[0] - mean) / deviation for each in (train, val))
    tops: dict[float, float] = {}
    fits: dict[float, tuple[Tensor, bool]] = {}
    weights = None
    for penalty in PENALTIES:  # each fit starts where the stronger penalty's ended
        weights, converged = fit_logistic(rows, train[1], num_classes, penalty, weights)
        fits[penalty] = weights, converged
        tops[penalty] = accuracy(logits_of(weights, seen), val[1])["top1"]
    chosen = max(tops, key=lambda penalty: (tops[penalty], penalty))
    return Probe(chosen, tops, fits[chosen][0], mean, deviation, fits[chosen][1])


def fit_logistic(
    rows: Tensor, labels: Tensor, num_classes: int, penalty: float, start: Tensor | None = None
) -> tuple[Tensor, bool]:
    """The minimum of mean cross-entropy + penalty / 2 · (sum of squared weights, without the biases).

    (scikit-learn's C is 1 / (penalty · N).)

    Args:
        rows: [N, D], float64.
        labels: [N].
        penalty: > 0.
        start: weights to start from; None: zeros.

    Returns:
        Weights [D + 1, K], whose last row are the biases, and whether the gradient vanished.
    """
    zeros = rows.new_zeros(rows.shape[1] + 1, num_classes)
    weights = (zeros if start is None else start).clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights],
        max_iter=_ITERATIONS,
        tolerance_grad=_GRADIENT / 10,
        tolerance_change=1e-14,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits_of(weights, rows), labels) + penalty / 2 * weights[:-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    objective()
    assert weights.grad is not None
    return weights.detach(), bool(weights.grad.abs().max() <= _GRADIENT)


def logits_of(weights: Tensor, rows: Tensor) -> Tensor:
    """[N, D] → [N, K]."""
    return rows @ weights[:-1] + weights[-1]


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each feature; 1 where it never changes."""
    deviation = rows.std(dim=0, correction=0)
    return rows.mean(dim=0), torch.where(deviation > 1e-12, deviation, torch.ones_like(deviation))


def _pooled(feature: Tensor, tap: str) -> Tensor:
    if feature.dim() not in (2, 4):
        raise ValueError(f"{tap} is {list(feature.shape)}, neither [B, D] nor [B, C, H, W]; take another one")
    return feature if feature.dim() == 2 else feature.mean(dim=(2, 3))
