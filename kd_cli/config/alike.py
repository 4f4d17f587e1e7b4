"""Command lines that differ only in plain values: Hydra composes one of them, and sets the values of the others in it.

Hydra composes the chosen yaml files, then sets one value after the other, and resolves no interpolation meanwhile. So
the order does not matter where no word sets a part of what another one sets, and none is led elsewhere by an
interpolation: what is different can then be set last, again and again.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from typing import Any, Generic, TypeVar

from omegaconf import ListConfig, OmegaConf

from kd_cli.config.base import Config
from kd_cli.config.overrides import name_by_overrides, override_key, words_of

T = TypeVar("T")

_MOST = 32  # kinds of command lines that are kept; a configuration takes some 1 MB
_FOLDER = "hydra.run.dir"  # the only option of Hydra that may differ: Hydra itself does nothing with it


@dataclass(frozen=True)
class Pattern:
    """A configuration for processes whose command lines are alike.

    Args:
        words: what it was composed of.
        composed: itself, of which each takes a copy: several may share a process.
        yaml: what `kd_cli.config.compose.reference` gives of it.
    """

    words: tuple[str, ...]
    composed: Any
    yaml: Config

    def config(self, words: Sequence[str]) -> Any:
        """What Hydra would compose of other words of the same kind, in this folder."""
        config = copy.deepcopy(self.composed)
        vary(config, self.words, words)
        config.hydra.runtime.cwd = os.getcwd()  # noqa: PTH109 - as Hydra
        return config


class Kinds(Generic[T]):
    """Something of each kind of command lines; those that were not asked for, for longest, are forgotten.

    Args:
        loader: Hydra's, which knows the groups.
    """

    def __init__(self, loader: Any) -> None:
        self._is_group = lru_cache(maxsize=1000)(lambda key: bool(loader.get_group_options(key.partition("@")[0])))
        self._there: dict[tuple[str, ...], T] = {}

    def kind(self, words: Sequence[str]) -> tuple[str, ...]:
        """What words that are alike share: all but plain values."""
        return tuple(self._same(word) for word in words)

    def take(self, kind: tuple[str, ...]) -> T | None:
        return self._there.pop(kind, None)

    def keep(self, kind: tuple[str, ...], what: T) -> None:
        self._there[kind] = what
        if len(self._there) > _MOST:
            del self._there[next(iter(self._there))]

    def _same(self, word: str) -> str:
        key = override_key(word)
        varies = (not key.startswith("hydra") or key == _FOLDER) and _is_plain(word) and not self._is_group(key)
        return f"{key}=" if varies else word


@dataclass(frozen=True)
class _Composed:
    """A configuration of which the next point's is made.

    Args:
        words: what it is composed of.
        known: what resolvers that are asked once (`now`) had said when Hydra composed it.
    """

    words: Sequence[str]
    config: Any
    known: Any


class Alike:
    """Composes the points of a sweep.

    Args:
        compose: by Hydra.
    """

    def __init__(self, loader: Any, compose: Callable[[list[str]], Any]) -> None:
        self._compose = compose
        self._kinds: Kinds[_Composed] = Kinds(loader)

    def __call__(self, words: Sequence[str]) -> Any:
        """What Hydra composes of these words; the next call may change it."""
        kind = self._kinds.kind(words)
        config = self._varied(kind, words)
        if config is None:
            return self._composed(kind, words)
        return config

    def _composed(self, kind: tuple[str, ...], words: Sequence[str]) -> Any:
        config = self._compose(list(words))
        name_by_overrides(config.hydra)
        known = copy.deepcopy(OmegaConf.get_cache(config))
        if is_settled(config, kind):
            self._kinds.keep(kind, _Composed(list(words), config, known))
        return config

    def _varied(self, kind: tuple[str, ...], words: Sequence[str]) -> Any:
        from hydra.errors import HydraException

        found = self._kinds.take(kind)
        if found is None:
            return None
        try:
            vary(found.config, found.words, words)
        except HydraException:  # Hydra says it of the words as they were typed
            return None
        OmegaConf.set_cache(found.config, found.known)  # a time (`now`) is each point's own
        self._kinds.keep(kind, replace(found, words=list(words)))
        return found.config


class Patterns:
    """Finds the Pattern of a command line; None for the first of its kind, and for those that have none.

    Args:
        compose: by Hydra.
        reference: as `kd_cli.config.compose.reference`.
    """

    def __init__(self, loader: Any, compose: Callable[[list[str]], Any], reference: Callable[[Any], Config]) -> None:
        self._compose, self._reference = compose, reference
        self._kinds: Kinds[Pattern | str] = Kinds(loader)

    def __call__(self, words: Sequence[str]) -> Pattern | None:
        kind = self._kinds.kind(words)
        found = self._kinds.take(kind)
        kept = self._made(words, kind) if found == "seen" else found or "seen"
        self._kinds.keep(kind, kept)
        return kept if isinstance(kept, Pattern) else None

    def _made(self, words: Sequence[str], kind: tuple[str, ...]) -> Pattern | str:
        try:
            config = self._compose(list(words))
            if is_settled(config, kind):
                return Pattern(tuple(words), config, dict(self._reference(config.hydra)))
        except Exception:  # its process says what is wrong
            pass
        return "none"


def vary(config: Any, before: Sequence[str], words: Sequence[str]) -> None:
    """Makes what Hydra composed of some words what it composes of others of the same kind.

    Args:
        before: the words of which `config` is.

    Raises:
        HydraException: a value that is not possible there; some may be set.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    new = dict(zip(before, words, strict=True))
    changed = [_parsed(word) for old, word in new.items() if old != word]
    ConfigLoaderImpl._apply_overrides_to_config(changed, config)
    hydra = config.hydra
    typed = {name: [new.get(word, word) for word in words] for name, words in words_of(hydra).items()}
    hydra.overrides.hydra, hydra.overrides.task = typed["hydra"], typed["task"]
    name_by_overrides(hydra)


def is_settled(config: Any, kind: Sequence[str]) -> bool:
    """Whether the order in which a composed configuration's values were set does not matter.

    Args:
        kind: of its words.
    """
    hydra, choices = config.hydra, set(config.hydra.runtime.choices)
    words = [word for typed in words_of(hydra).values() for word in typed]
    looking = any(word.startswith("~") or re.match(r"\+[^+]", word) for word in words)  # at what is there
    if looking or hydra.job.env_copy or choices & {word.removesuffix("=") for word in kind}:
        return False
    values = [word for word in words if override_key(word) not in choices]
    paths = [_path(override_key(word)) for word in values]
    apart = all(one[: len(other)] != other[: len(one)] for one, other in combinations(paths, 2))
    return apart and all(_is_straight(config, path, word) for path, word in zip(paths, values, strict=True))


def _is_straight(config: Any, path: Sequence[str], word: str) -> bool:
    """Whether a value was set where its key says, and not where an interpolation leads; it may be one itself."""
    for place, name in enumerate(path, 1):
        if not OmegaConf.is_config(config):
            return False
        key = int(name) if isinstance(config, ListConfig) else name
        if OmegaConf.is_interpolation(config, key) and (place < len(path) or "=$" not in word):
            return False
        config = config._get_node(key)
    return True


def _path(key: str) -> tuple[str, ...]:
    return tuple(filter(None, re.split(r"[.\[\]]", key)))


@lru_cache(maxsize=1000)
def _parsed(word: str) -> Any:
    """Raises an OverrideParseException for what is no override."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (override,) = OverridesParser.create().parse_overrides([word])
    return override


@lru_cache(maxsize=1000)
def _is_plain(word: str) -> bool:
    """Whether an override sets a number, a text, true, false or null."""
    from hydra.errors import HydraException

    try:
        override = _parsed(word)
        value = override.value()
    except HydraException:  # who composes it says so
        return False
    simple = isinstance(value, str | int | float | bool | None)
    return simple and override.package is None and not word.startswith(("+", "~"))
