"""How training images are augmented: a list of augmentations, one after another, each a file of its own.

The random numbers of an epoch are drawn for all images at once and a batch takes its rows, so what becomes of an image
is a function of (seed, view, id): it depends on neither batch nor process, and is known to whoever asks again.

N training images, B per batch, [B, H, W, C] pixels, uint8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias, Union, cast

import torch
from torch import Tensor

from kd_cli.data.sampling import generator
from kd_cli.errors import ConfigError
from kd_cli.registry import Registry

Shape = tuple[int, int, int]  # (H, W, C)
# A name, or a list of names and of mappings {name: NAME, option: value}.
Spec: TypeAlias = Union[str, Sequence[Union[str, Mapping[str, Any]]]]  # noqa: UP007


class Augmentation(Protocol):
    """One thing that is done to training images. A component of `AUGMENTATIONS` may have `box` or `mix` instead.

    One whose views differ in kind has `of_view` too: a table and the view's number → the table of that view.
    """

    def draw(self, size: int, shape: Shape, random: torch.Generator) -> Tensor:
        """All that is random about `size` images: [N, columns], float32."""

    def apply(self, pixels: Tensor, table: Tensor) -> Tensor:
        """[B, H, W, C] and their rows of the table [B, columns] → pixels of the same shape, uint8."""


class Mixing(Protocol):
    """What makes an image of two (`mixup`, `cutmix`); after all augmentations, on normalised images."""

    def draw(self, size: int, shape: Shape, random: torch.Generator) -> Tensor:
        """As an augmentation's; a row that is `unmixed` leaves an image as it is."""

    def unmixed(self) -> Sequence[float]:
        """The row of the table that leaves an image as it is."""

    def mix(self, images: Tensor, others: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, H, W] and what each is mixed with → mixed images, and the share [B] of their own labels."""


AUGMENTATIONS: Registry[Any] = Registry("augmentation", "kd_cli.data.augmentations")


class Augment:
    """The augmentations of a data set, in their order, but for those that mix.

    Args:
        spec: what is configured: `none`, a name or a list.
        shape: (H, W, C) of the images.
        cropped: whether `random_resized_crop` is done where files are decoded, and not here.

    Raises:
        ConfigError: unknown names or options, or an order in which they cannot be done.
    """

    def __init__(self, spec: Spec, shape: Shape, *, cropped: bool = False) -> None:
        self.spec, self.shape = spec, shape
        built = build_all(spec)
        self._numbered = [
            (number, each)
            for number, each in enumerate(built)
            if not is_mixing(each) and not (cropped and hasattr(each, "box"))
        ]
        self._mixings = [(number, each) for number, each in enumerate(built) if is_mixing(each)]
        self._widths = [each.draw(0, shape, torch.Generator()).shape[1] for _, each in self._numbered]
        self._mixing_widths = [len(each.unmixed()) for _, each in self._mixings]

    @property
    def mixes(self) -> bool:
        """Whether an image is made of two."""
        return bool(self._mixings)

    @property
    def recorded(self) -> Any:
        """What is configured, as plain JSON values."""
        return (
            self.spec
            if isinstance(self.spec, str)
            else [dict(each) if isinstance(each, Mapping) else each for each in self.spec]
        )

    def draw(self, size: int, seed: int, view: int) -> Tensor:
        """The table of a view: a row for each training image, [N, columns], float32."""
        tables = [each.draw(size, self.shape, _stream(seed, view, number)) for number, each in self._numbered]
        tables = [
            each.of_view(table, view) if hasattr(each, "of_view") else table
            for table, (_, each) in zip(tables, self._numbered, strict=True)
        ]
        return torch.cat([torch.zeros(size, 0), *tables, *self._draw_mixing(size, seed, view)], dim=1)

    def _draw_mixing(self, size: int, seed: int, view: int) -> list[Tensor]:
        """Of several mixings each image has one, drawn evenly."""
        tables = [each.draw(size, self.shape, _stream(seed, view, number)) for number, each in self._mixings]
        if len(tables) > 1:
            chosen = torch.randint(len(tables), (size,), generator=generator(seed, "mix", view))
            for number, (table, (_, each)) in enumerate(zip(tables, self._mixings, strict=True)):
                table[chosen != number] = torch.tensor(list(each.unmixed()))
        return tables

    def apply(self, pixels: Tensor, table: Tensor) -> Tensor:
        """[B, H, W, C] and their rows of the table → [B, H, W, C], uint8, augmented and not yet mixed."""
        if not len(pixels):
            return pixels
        own = table[:, : sum(self._widths)].split(self._widths, dim=1) if self._widths else ()
        for (_, each), columns in zip(self._numbered, own, strict=True):
            pixels = each.apply(pixels, columns)
        return pixels

    def mix(self, images: Tensor, others: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images [B, C, H, W], those they are mixed with, and the former's rows of the table.

        Returns:
            The mixed images, and the share [B] that an image's own label has.
        """
        share = torch.ones(len(images), device=images.device)
        first = sum(self._widths)
        for (_, each), columns in zip(self._mixings, table[:, first:].split(self._mixing_widths, 1), strict=True):
            images, its = each.mix(images, others, columns)
            share = share * its
        return images, share


def is_mixing(augmentation: Augmentation | Mixing) -> bool:
    """Whether it makes an image of two."""
    return hasattr(augmentation, "mix")


def listed_parts(spec: Spec) -> list[Mapping[str, Any]]:
    """Each augmentation's name and options.

    Raises:
        ConfigError: `none` in a list.
    """
    parts = [spec] if isinstance(spec, str) else list(spec)
    if parts == ["none"]:
        return []
    named = [part if isinstance(part, Mapping) else {"name": part} for part in parts]
    if any(part.get("name") == "none" for part in named):
        raise ConfigError(
            "dataset.augment: 'none' stands alone; type dataset.augment=none, or leave it out of the list"
        )
    return named


def build_all(spec: Spec) -> list[Any]:
    """The augmentations, checked.

    Raises:
        ConfigError: unknown names or options, or an order in which they cannot be done.
    """
    parts = listed_parts(spec)
    single = isinstance(spec, str)
    built = []
    for number, part in enumerate(parts):
        built.append(AUGMENTATIONS.build(part, where="dataset.augment" if single else f"dataset.augment[{number}]"))
    names = [part["name"] for part in parts]
    crops = [name for name, each in zip(names, built, strict=True) if hasattr(each, "box")]
    if crops and (len(crops) > 1 or names[0] != crops[0]):
        raise ConfigError(
            f"dataset.augment: {crops[0]} cuts its window out of the whole image, so it stands first, and once; type "
            f"dataset.augment=[{','.join([crops[0], *(name for name in names if name not in crops)])}]"
        )
    return built


def source_crop(spec: Spec) -> Any:
    """The augmentation that cuts windows out of whole images, if there is one."""
    first = build_all(spec)[:1]
    return cast(Any, first[0]) if first and hasattr(first[0], "box") else None


def _stream(seed: int, view: int, number: int) -> torch.Generator:
    return generator(seed, "augment", view, *([number] if number else []))
