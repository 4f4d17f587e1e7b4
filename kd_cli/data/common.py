"""The options that every data set has."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

InMemory = Literal["auto", True, False]


@dataclass(frozen=True)
class Common:
    """The options of every data set.

    Args:
        val_fraction: share of each class's training images kept for validation, 0 … 0.9; 0: no validation.
        split_seed: fixes that share; not the run's seed, so that a teacher of another seed never saw these images.
        images_per_class: training images used of each class, those for validation among them, drawn by `split_seed`;
            none: all.
        balanced: an epoch shows each class equally often, as many images as ever in all: those of large classes in
            part, those of small ones several times. Otherwise each image once.
        augment: what is done to training images: `none`, a name, or a list of names and of {name: NAME, option: value}.
        repeats: R views of an image in one batch, ≥ 1. An epoch then shows an R-th of the images, R epochs all of them.
        views: different views that an image has, cycled; none: another in every epoch.
        mean: per channel, of values 0 … 1; one number serves all channels; none: 0.
        std: likewise, > 0; none: 1.
        in_memory: hold the decoded images in memory; `auto`: up to `memory_limit_gb`.
        memory_limit_gb: 10⁹ bytes of pixels.
        workers: processes that decode; results do not depend on it.

    Raises:
        ValueError: a value is out of range.
    """

    val_fraction: float = 0.1
    split_seed: int = 0
    images_per_class: int | None = None
    balanced: bool = False
    augment: str | tuple[str | Mapping[str, Any], ...] = "none"
    repeats: int = 1
    views: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    in_memory: InMemory = "auto"
    memory_limit_gb: float = 4.0
    workers: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction <= 0.9:
            raise ValueError(f"val_fraction={self.val_fraction} is outside 0 … 0.9; type dataset.val_fraction=0.1")
        if self.images_per_class is not None and self.images_per_class < 1:
            raise ValueError(
                f"images_per_class={self.images_per_class} must be 1 or more; type dataset.images_per_class=50"
            )
        self._check_views()
        self._check_normalisation()
        if not 0 < self.memory_limit_gb < math.inf:
            raise ValueError(f"memory_limit_gb={self.memory_limit_gb} must be above 0; type dataset.memory_limit_gb=4")
        if self.workers < 0:
            raise ValueError(f"workers={self.workers} must be 0 or more; type dataset.workers=2")

    def _check_views(self) -> None:
        for option, value in (("repeats", self.repeats), ("views", self.views)):
            if value is not None and value < 1:
                raise ValueError(f"{option}={value} must be 1 or more; type dataset.{option}=4")
        if self.views is not None and self.views % self.repeats:
            fitting = -(-self.views // self.repeats) * self.repeats
            raise ValueError(
                f"views={self.views} is no multiple of repeats={self.repeats}; type dataset.views={fitting}"
            )

    def _check_normalisation(self) -> None:
        if self.mean == () or self.std == ():
            raise ValueError("mean and std need at least one number; type dataset.mean=[0.5] dataset.std=[0.5]")
        if self.std is not None and not all(0 < value < math.inf for value in self.std):
            raise ValueError(f"std={list(self.std)} divides: each must be a number above 0; type dataset.std=[1.0]")
        if self.mean is not None and not all(map(math.isfinite, self.mean)):
            raise ValueError(f"mean={list(self.mean)} must be finite; type dataset.mean=[0.5]")


COMMON = frozenset(field.name for field in dataclasses.fields(Common))
