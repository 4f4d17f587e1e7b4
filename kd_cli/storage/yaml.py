"""Yaml from anywhere: read without running anything, and refused before it grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from kd_cli.errors import ConfigError
from kd_cli.storage.files import read_text

# Far above anything that kd or a person writes; one more level or node costs time and memory only.
MOST_BYTES = 1_000_000
MOST_NODES = 10_000
MOST_LEVELS = 40

_TAGS = {None, "!", *(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map"))}
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is fifteen times faster than OmegaConf


def check_file(path: Path) -> None:
    """Whether a file of a folder of configurations can be given to OmegaConf.

    Raises:
        ConfigError: it is no yaml, or would become larger than any configuration is.
    """
    try:
        _check(read_text(path, MOST_BYTES), aliases=True)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} cannot be read: {error}; save it as UTF-8") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def parse_record(text: str) -> Any:
    """What kd once wrote as yaml, as plain values.

    Raises:
        ValueError: no yaml, or something that kd does not write: aliases, tags, too much.
    """
    _check(text[: MOST_BYTES + 1], aliases=False)
    try:
        return yaml.load(text, Loader=_LOADER)
    except yaml.YAMLError as error:
        raise ValueError(_line(error)) from error


def _check(text: str, *, aliases: bool) -> None:
    if len(text) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
    size = _Size(aliases=aliases)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            size.add(event)
    except yaml.YAMLError as error:
        raise ValueError(_line(error)) from error


class _Size:
    """How many values a text becomes when each alias is replaced by what it stands for; nothing is built."""

    def __init__(self, *, aliases: bool) -> None:
        self._aliases = aliases
        self._nodes = 0
        self._open: list[tuple[str | None, int]] = []  # lists and mappings, with the nodes before them
        self._sizes: dict[str, int] = {}  # of what an anchor names

    def add(self, event: Any) -> None:
        if isinstance(event, yaml.AliasEvent):
            self._nodes += self._size_of(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = self._open.pop()
            self._name(anchor, self._nodes - before)
        elif isinstance(event, yaml.NodeEvent):
            self._nodes += 1
            if getattr(event, "tag", None) not in _TAGS:
                raise ValueError(f"line {event.start_mark.line + 1}: the tag {event.tag!r} is not possible here")
            if isinstance(event, yaml.CollectionStartEvent):
                self._open.append((event.anchor, self._nodes - 1))
            else:
                self._name(event.anchor, 1)
        if self._nodes > MOST_NODES or len(self._open) > MOST_LEVELS:
            raise ValueError(
                f"it becomes more than {MOST_NODES:,} values or {MOST_LEVELS} levels; no configuration is so large"
            )

    def _name(self, anchor: str | None, size: int) -> None:
        if anchor:
            self._sizes[anchor] = size

    def _size_of(self, alias: Any) -> int:
        if not self._aliases or alias.anchor not in self._sizes:  # the second: inside of what it stands for
            raise ValueError(f"line {alias.start_mark.line + 1}: the alias *{alias.anchor} is not possible here")
        return self._sizes[alias.anchor]


def _line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = " ".join(str(getattr(error, "problem", None) or error).split())
    return f"{f'line {mark.line + 1}: ' if mark else ''}{problem}"
