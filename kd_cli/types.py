"""The few shapes that everything else is written in.

B batch, C channels, H/W size, D embedding, K classes, N training samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True)
class DataSpec:
    """What a network and a loss need to know of a data set.

    Args:
        num_classes: K.
        num_train: N, after the validation split was taken out.
        image_shape: (C, H, W).
        class_names: K names, in label order.
        mean, std: with which images are normalised, per channel, of values 0 … 1; empty: not at all.
    """

    num_classes: int
    num_train: int
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True)
class Mixed:
    """What the images of a batch are mixed with.

    Args:
        labels: [B], int64, of the images that were mixed in.
        share: [B], that an image's own label has; the other's has the rest.
    """

    labels: Tensor
    share: Tensor


@dataclass(frozen=True)
class Batch:
    """One normalised, augmented batch.

    Args:
        images: [B, C, H, W], floating point.
        labels: [B], int64.
        ids: [B], int64, positions in the training set: 0 … N-1.
        epoch: the pass over the training set that it belongs to: 0, 1, …
        repeat: [B], int64: which of the epoch's views each image shows; None: the first.
        mixed: what the images are mixed with; `labels` are their own then. None: nothing.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    epoch: int = 0
    repeat: Tensor | None = None
    mixed: Mixed | None = None

    def at(self, schedule: Callable[[int], T]) -> T:
        """What a schedule says of this batch's epoch.

        A step that was recorded as a CUDA graph is recorded anew where this has changed; one that reads `epoch` itself,
        in every epoch.
        """
        return schedule(self.epoch)

    def shown(self, network: Callable[[Tensor], T]) -> T:
        """What a network says of its images; where several processes share a batch, of all of them."""
        return network(self.images)


@dataclass(frozen=True)
class Outputs:
    """What a network said.

    Args:
        logits: [B, K].
        features: tap name → [B, C, H, W] or [B, D].
        classifier: the network's own layer that maps its `embedding` [B, D] to the logits, where it publishes one.
    """

    logits: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)
    classifier: nn.Module | None = None


@dataclass(frozen=True)
class Step:
    """What a task made of one batch.

    Args:
        loss: scalar with a gradient.
        logits: [B, K] of the network that is being trained.
        terms: name → detached, weighted scalar; they sum to `loss`.
    """

    loss: Tensor
    logits: Tensor
    terms: Mapping[str, Tensor]
