"""What a data set is to `kd`: uint8 images, a validation split that never moves, batches that are f(seed, epoch).

A component of `DATASETS` returns a `Raw`: the undivided data set. Its signature holds its own options; every data set
also has those of `Common`, and a component that names one of them in its signature is given it.

N training images, B per batch, C channels, H/W size, K classes.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor

from kd_cli.data import sampling as order
from kd_cli.data.augment import build_all, source_crop
from kd_cli.data.common import COMMON, Common
from kd_cli.data.feed import Feed, Order, Rows, in_view
from kd_cli.data.preprocess import Prepare
from kd_cli.data.raw import Raw as Raw
from kd_cli.data.raw import check_raw, fingerprint_of, stores_of
from kd_cli.errors import ConfigError, offer
from kd_cli.out_of_memory import needing_memory
from kd_cli.registry import Registry, bind_options
from kd_cli.types import Batch, DataSpec

Part = Literal["train", "val", "test"]
View = Callable[[Tensor, Tensor], Tensor]  # pixels [B, H, W, C], uint8, and ids [B] → pixels, uint8
F = TypeVar("F", bound="Callable[..., Raw]")


DATASETS: Registry[Raw] = Registry("dataset", "kd_cli.data", injected=tuple(COMMON))


def checked_by(check: Callable[..., None]) -> Callable[[F], F]:
    """Decorator of a component: `check` takes the same own options and raises ValueError, before any data is read."""

    def attach(component: F) -> F:
        vars(component)["check"] = check
        return component

    return attach


def check_dataset(options: Mapping[str, Any]) -> None:
    """Checks a data set's options without reading any data.

    Args:
        options: `{name: …, root: …, val_fraction: …}`: the component's own options and the common ones.

    Raises:
        ConfigError: unknown name or option, a value of the wrong type or out of range.
    """
    _common(options)


@needing_memory("the data set", "Type dataset.in_memory=false (for image files), or take fewer or smaller images.")
def load_dataset(options: Mapping[str, Any]) -> Data:
    """Reads and splits a data set.

    Args:
        options: as `check_dataset`.

    Raises:
        ConfigError: as `check_dataset`, and where mean or std do not fit the channels.
        DataError: data are missing, unreadable or do not fit.
    """
    common = _common(options)
    own = {key: value for key, value in options.items() if key not in COMMON}
    return Data(str(options["name"]), DATASETS.build(own, **vars(common)), common)


def _common(options: Mapping[str, Any]) -> Common:
    """Checks all options and returns the common ones."""
    arguments = DATASETS.check({key: value for key, value in options.items() if key not in COMMON})
    what, shared = f"dataset {options['name']!r}", {key: value for key, value in options.items() if key in COMMON}
    checked = bind_options(Common, shared, where="dataset", what=what)
    try:
        _check_own(DATASETS.component(str(options["name"])), arguments)
        common = Common(**checked)
    except ValueError as error:
        raise ConfigError(f"{what}: {error}") from error
    build_all(common.augment)
    return common


def _check_own(component: Callable[..., Raw], arguments: Mapping[str, Any]) -> None:
    check = vars(component).get("check")
    if check is not None:
        parameters = inspect.signature(component).parameters
        defaults = {name: parameter.default for name, parameter in parameters.items() if name not in COMMON}
        check(**{**defaults, **arguments})


class Data:
    """A data set, split and ready to give batches.

    Args:
        name: the registered name.
        raw: the undivided data set.
        common: how to split, hold, augment and normalise it.

    Raises:
        ConfigError: mean or std do not fit the channels.
        DataError: the parts do not fit together, the validation split is impossible, or later, from whatever gives
            batches, an image cannot be read.
    """

    def __init__(self, name: str, raw: Raw, common: Common) -> None:
        height, width, channels = check_raw(name, raw)
        labels = raw.train_labels
        kept, taken = order.divide(labels, raw.val_rows, common)
        self._crop = source_crop(common.augment) if getattr(raw.train_images, "resizes", False) else None
        train, val, test = stores_of(raw, common, len(taken), cropped=self._crop is not None)
        self._parts: dict[Part, Rows] = {
            "train": Rows(train, kept, labels[kept], common.balanced),
            "val": Rows(val, taken, labels[taken]),
            "test": Rows(test, torch.arange(len(raw.test_labels)), raw.test_labels),
        }
        self._prepare = Prepare(
            common.augment,
            common.mean or (0.0,),
            common.std or (1.0,),
            (height, width, channels),
            cropped=self._crop is not None,
            geometry=raw.geometry,
        )
        self._repeats, self._cycle = common.repeats, common.views
        self.name = name
        normal = tuple(self._prepare.mean), tuple(self._prepare.std)
        self.spec = DataSpec(len(raw.class_names), len(kept), (channels, height, width), raw.class_names, *normal)
        self.preprocessing: dict[str, Any] = self._prepare.record()
        self.fingerprint = fingerprint_of(raw, [taken] if common.images_per_class is None else [kept, taken])
        self.unreadable = raw.unreadable
        self.balanced = common.balanced  # an epoch may show an image several times
        self.augmented = common.augment not in ("none", ())  # training images look different in every epoch
        self._view: View | None = None
        order.tell_rare(name, raw.class_names, *map(self.labels, get_args(Part)))

    def size(self, part: Part) -> int:
        """How many images; 0 for the validation part when `val_fraction` is 0."""
        return len(self._parts[part].rows)

    def labels(self, part: Part) -> Tensor:
        """The labels of a part [n], int64, in its order."""
        return self._parts[part].labels

    def narrowed(self, classes: Sequence[int]) -> Data:
        """The same images for a specialist: `classes` are its classes 0 … n-1, all others together are class n."""
        names = self.spec.class_names
        table = torch.full((len(names),), len(classes))
        table[list(classes)] = torch.arange(len(classes))
        narrow = self._labelled(table, (*(names[label] for label in classes), "other"))
        narrow.fingerprint = hashlib.sha256("\n".join([self.fingerprint, *map(str, classes)]).encode()).hexdigest()
        return narrow

    def known_as(self, names: Sequence[str]) -> Data:
        """The same images with the labels of a network that knows these classes; ValueError: not by these names."""
        own = self.spec.class_names
        if own == tuple(names):
            return self
        if not set(own) <= set(names) or len(set(names)) < len(names):
            raise ValueError("classes differ")
        return self._labelled(torch.tensor([list(names).index(name) for name in own]), tuple(names))

    def _labelled(self, table: Tensor, names: tuple[str, ...]) -> Data:
        """With label `table[i]` instead of label i."""
        other = copy.copy(self)
        other._parts = {part: replace(rows, labels=table[rows.labels]) for part, rows in self._parts.items()}
        other.spec = replace(self.spec, num_classes=len(names), class_names=names)
        return other

    def seen_through(self, view: View, prepare: Prepare | None = None) -> Data:
        """The same images as `view` makes them before they are normalised; for evaluation, not for training.

        Args:
            prepare: the normalisation, where it or the images' shape is another one.
        """
        seen, before = copy.copy(self), self._view
        seen._view = view if before is None else lambda pixels, ids: view(before(pixels, ids), ids)
        if prepare is not None:
            seen._prepare, seen.preprocessing = prepare, prepare.record()
            shape, mean, std = (len(prepare.mean), *prepare.image_size), tuple(prepare.mean), tuple(prepare.std)
            seen.spec = replace(self.spec, image_shape=shape, mean=mean, std=std)
        return seen

    def steps(self, batch_size: int, limit: int | None = None) -> int:
        """Training batches per epoch.

        A last, smaller batch counts; one of a single image does not (batch normalisation cannot train on it), unless
        it is the only one.

        Args:
            batch_size: B of the global batch.
            limit: at most so many.
        """
        if batch_size % self._repeats:
            fitting = offer("trainer.batch_size", -(-batch_size // self._repeats) * self._repeats)
            raise ConfigError(
                f"trainer.batch_size={batch_size} is no multiple of dataset.repeats={self._repeats}, the views of an "
                f"image that a batch has; type {fitting}"
            )
        return order.count_steps(self.shown, batch_size, limit)

    @property
    def shown(self) -> int:
        """Images that an epoch shows, each as often as its views."""
        return self.size("train") // self._repeats * self._repeats

    @property
    def repeatable(self) -> bool:
        """Whether an epoch shows each image once, in the view of its number."""
        return self._repeats == 1 and self._cycle is None and not self.balanced

    @property
    def mixes(self) -> bool:
        """Whether training images are made of two, and have the labels of both."""
        return self._prepare.augmentation.mixes

    def train_batches(self, *, epoch: int, first: int = 0, **options: Any) -> Iterator[Batch]:
        """The batches of an epoch, shuffled and augmented as (seed, epoch) say, whatever the workers and processes.

        Args:
            first: how many of them are left out at the beginning.
            options: as of `feed`.
        """
        feed = self.feed(**options)
        feed.begin(epoch, first)
        for number in range(first, feed.steps):
            yield feed.batch(number)

    def feed(
        self,
        *,
        seed: int,
        batch_size: int,
        device: torch.device,
        limit: int | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> Feed:
        """What gives the batches of one epoch after another.

        Args:
            batch_size: B of the global batch; `steps` says how many there are.
            limit: at most so many batches.
            shard: (rank, world): of each global batch the rows rank, rank + world, … A last batch with fewer images
                than `world` is empty for the highest ranks.
        """
        shown = self._order(seed, batch_size, self.steps(batch_size, limit))
        return Feed(self._parts["train"], self._prepare, shown, device=device, shard=shard)

    def _order(self, seed: int, batch_size: int, steps: int) -> Order:
        return Order(seed, batch_size, steps, self._repeats, self._cycle, self._crop)

    def views_in(self, epoch: int) -> tuple[int, ...]:
        """The views of each training image that an epoch shows, in the order of `Batch.repeat`."""
        return order.views_in(epoch, self._repeats, self._cycle)

    def views(
        self, ids: Sequence[Tensor], *, seed: int, view: int, device: torch.device, batch_size: int | None = None
    ) -> Iterator[Batch]:
        """Training images by their ids, a batch for each item [B], as they are augmented in one view.

        Args:
            batch_size: of the training; mixed images are paired in its batches, and view and epoch are then the same.
        """
        pairing = self._order(seed, batch_size or self._repeats, self.steps(batch_size) if batch_size else 0)
        return in_view(self._parts["train"], self._prepare, pairing, ids, view, device)

    def eval_batches(
        self, part: Part, *, batch_size: int, device: torch.device, shard: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """All images of a part in their fixed order, normalised, not augmented; ids are positions in that part.

        Args:
            shard: (rank, world): of all batches the rank-th of so many parts of about the same length.
        """
        ids = list(torch.arange(self.size(part)).split(batch_size)) if self.size(part) else []
        first, end = (len(ids) * place // shard[1] for place in (shard[0], shard[0] + 1))
        for batch in self.pixels(part, ids[first:end], device):
            pixels = batch.images if self._view is None else self._view(batch.images, batch.ids)
            yield Batch(self._prepare.normalise(pixels), batch.labels, batch.ids)

    def pixels(self, part: Part, ids: Sequence[Tensor], device: torch.device) -> Iterator[Batch]:
        """Images of a part by their ids, a batch for each item [B], as they are: [B, H, W, C], uint8, on `device`."""
        if not ids:
            return
        chosen, sizes = torch.cat(list(ids)), [len(each) for each in ids]
        rows, labels = self._parts[part].rows[chosen], self._parts[part].labels[chosen]
        # One copy to the device per epoch, not three per batch.
        device_rows, device_labels, device_ids = (each.to(device).split(sizes) for each in (rows, labels, chosen))
        pixels = self._parts[part].store.batches(device_rows, device)
        for images, label, number in zip(pixels, device_labels, device_ids, strict=True):
            yield Batch(images, label, number)
