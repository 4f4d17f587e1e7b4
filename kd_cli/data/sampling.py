"""Which images make which batch: a pure function of (seed, epoch), and the stratified splits. N images, B per batch."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from kd_cli.data.common import Common
from kd_cli.errors import DataError, listed, offer
from kd_cli.seeds import derive_seed

log = logging.getLogger("kd")


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator whose stream depends on nothing but its arguments."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))


def permutation(size: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch: [N], int64."""
    return torch.randperm(size, generator=generator(seed, "order", epoch))


def views_in(epoch: int, repeats: int, cycle: int | None) -> tuple[int, ...]:
    """The views of an image that an epoch shows: those that R epochs would show it one by one.

    Args:
        cycle: different views that there are; None: no end of them.
    """
    first = epoch - epoch % repeats
    return tuple(view % cycle if cycle else view for view in range(first, first + repeats))


def balanced(labels: Tensor, seed: int, epoch: int) -> Tensor:
    """An order of an epoch in which each class comes equally often, give or take one: [N], int64.

    Images of large classes are left out, those of small ones repeated, none again before all of its class were there.

    Args:
        labels: [N], int64.
    """
    size, random = len(labels), generator(seed, "balanced", epoch)
    shuffled = permutation(size, seed, epoch)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    counts = labels.bincount()
    classes = counts.nonzero().flatten()
    classes = classes[torch.randperm(len(classes), generator=random)]  # the first have one image more than the others
    turn = torch.arange(size)
    drawn = classes[turn % len(classes)]
    first = counts.cumsum(0) - counts
    ids = by_class[first[drawn] + (turn // len(classes)) % counts[drawn]]
    return ids[torch.randperm(size, generator=random)]


def count_steps(size: int, batch_size: int, limit: int | None = None) -> int:
    """Batches per epoch. A last batch of one image is not counted: batch normalisation cannot train on it."""
    full, rest = divmod(size, batch_size)
    steps = full + (rest > 1 or (rest == 1 and full == 0))
    return steps if limit is None else min(steps, limit)


def cut(order: Tensor, batch_size: int, steps: range, shard: tuple[int, int] = (0, 1)) -> list[Tensor]:
    """Cuts an order [N] into global batches and takes from each the rows of one process.

    Args:
        steps: which of the batches.
        shard: (rank, world). A last batch smaller than `world` leaves nothing to the highest ranks; theirs is empty.
    """
    rank, world = shard
    return [order[step * batch_size : (step + 1) * batch_size][rank::world] for step in steps]


def partners(values: Tensor) -> Tensor:
    """What each row of a global batch is mixed with: that of the row half a batch further. [B, …]"""
    return values.roll(-(len(values) // 2), 0)


def partner_ids(batches: Sequence[Tensor], size: int) -> Tensor:
    """For each training image [N] the one that it is mixed with in an epoch; those not shown, with themselves."""
    found = torch.arange(size)
    for ids in batches:
        found[ids] = partners(ids)
    return found


def divide(labels: Tensor, own: Tensor | None, common: Common) -> tuple[Tensor, Tensor]:
    """Positions of the training images that train, and of those that validate.

    Args:
        labels: [N], int64.
        own: those that validate, where the data set itself says so.

    Raises:
        DataError: as `stratified_split`.
    """
    pool = torch.arange(len(labels)) if own is None else others(len(labels), own)
    used = pool[draw_per_class(labels[pool], common.images_per_class, common.split_seed)]
    if own is not None:
        return used, own
    key = "dataset.val_fraction"
    kept, taken = stratified_split(labels[used], common.val_fraction, common.split_seed, key=key)
    return used[kept], used[taken]


def draw_per_class(labels: Tensor, count: int | None, seed: int) -> Tensor:
    """Positions of `count` images of each class, or of all where it has fewer; none: of all. Ascending.

    Args:
        labels: [N], int64.
    """
    if count is None:
        return torch.arange(len(labels))
    members, places = _by_class(labels, generator(seed, "dataset.images_per_class"))
    return members[places < count].sort().values


def _by_class(labels: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Positions in random order, class after class, and the place of each within its class, from 0.

    Args:
        labels: [N], int64.
    """
    shuffled = torch.randperm(len(labels), generator=random)
    sorted_labels, order = labels[shuffled].sort(stable=True)
    counts = labels.bincount()
    return shuffled[order], torch.arange(len(labels)) - (counts.cumsum(0) - counts)[sorted_labels]


def stratified_split(labels: Tensor, fraction: float, seed: int, *, key: str) -> tuple[Tensor, Tensor]:
    """Divides positions so that each class gives `fraction` of its images, rounded, to the second part.

    Args:
        labels: [N], int64.
        fraction: 0 ≤ fraction < 1.
        key: the option that holds `fraction`, for messages: `dataset.val_fraction`.

    Returns:
        Positions that stay and positions that were taken, each ascending.

    Raises:
        DataError: if a class would lose all its images, or nothing would be taken though fraction > 0.
    """
    members, places = _by_class(labels, generator(seed, key))
    counts = labels.bincount()
    shares = (counts.double() * fraction + 0.5).long()
    emptied = ((shares == counts) & (counts > 0)).nonzero().flatten()
    if len(emptied):
        label = int(emptied[0])
        raise DataError(
            f"{key}={fraction} would take all {counts[label]} images of class {label}; type a smaller {offer(key)}"
        )
    taken = torch.zeros(len(labels), dtype=torch.bool)
    taken[members[places < shares[labels[members]]]] = True
    if fraction > 0 and not taken.any():
        none = f" or {offer(key, 0)}" if key == "dataset.val_fraction" else ""  # something must be tested
        raise DataError(f"{key}={fraction} takes no image: every class is too small; type a larger {offer(key)}{none}")
    return (~taken).nonzero().flatten(), taken.nonzero().flatten()


def others(size: int, rows: Tensor) -> Tensor:
    """The positions 0 … size-1 that are not among `rows`, ascending."""
    left = torch.ones(size, dtype=torch.bool)
    left[rows] = False
    return left.nonzero().flatten()


def tell_rare(name: str, class_names: Sequence[str], train: Tensor, val: Tensor, test: Tensor) -> None:
    """A line for the classes that have no validation images, and one for those without test images.

    Args:
        name: of the data set.
        train, val, test: the labels of the parts.
    """
    learned, *counts = (labels.bincount(minlength=len(class_names)).tolist() for labels in (train, val, test))
    for what, shown in zip(("validation", "test"), counts, strict=True):
        there = zip(class_names, learned, shown, strict=True)
        rare = [f"{one} ({images} for training)" for one, images, count in there if images and not count]
        if rare and any(shown):
            log.warning("%s: no %s image shows %s", name, what, listed(rare))
