"""Yaml from anywhere: read without running anything, and refused before it grows; and our own, written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
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
_OTHERWISE = re.compile(r"[-+]?(0[0-7_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")  # octal, and base 60
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is fifteen times faster than OmegaConf
_DUMPER: Any = type("_Dumper", (getattr(yaml, "CSafeDumper", yaml.SafeDumper),), {"ignore_aliases": id})  # true of all
# A number or a truth value in yaml 1.1, yaml 1.2 or to OmegaConf: `1e3`, `0o17`, `y`; what else fits is quoted in vain.
_QUOTED = re.compile(r"[yn]|[-+]?(0[box][0-9a-f_]+|[0-9_.]+(e[-+]?[0-9_]+)?|\.?inf|\.?nan|infinity)", re.IGNORECASE)


def check_file(path: Path) -> None:
    """Whether a file of a folder of configurations can be given to OmegaConf.

    Raises:
        ConfigError: it is no yaml, would become larger than any configuration is, or has a number that means another.
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


def yaml_text(values: Mapping[str, Any]) -> str:
    """Plain values as yaml that `parse_record`, OmegaConf and readers of yaml 1.2 understand alike."""
    text: str = yaml.dump(dict(values), Dumper=_DUMPER, sort_keys=False, allow_unicode=True)
    return text


def _represented(dumper: Any, text: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'" if _QUOTED.fullmatch(text) else None)


_DUMPER.add_representer(str, _represented)


def _check(text: str, *, aliases: bool) -> None:
    """Counts the values that a text becomes when each alias is replaced by what it stands for; nothing is built."""
    nodes, sizes = 0, dict[Any, int]()  # of what an anchor names
    opened: list[tuple[Any, int]] = []  # lists and mappings, with the nodes before them
    for event in _events(text):
        if isinstance(event, yaml.AliasEvent):
            nodes += _size_of(event, sizes if aliases else {})
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            sizes[anchor] = nodes - before
        elif isinstance(event, yaml.NodeEvent):
            nodes, sizes[event.anchor] = nodes + 1, 1
            _check_node(event)
            if isinstance(event, yaml.CollectionStartEvent):
                del sizes[event.anchor]
                opened.append((event.anchor, nodes - 1))
        if nodes > MOST_NODES or len(opened) > MOST_LEVELS:
            raise ValueError(
                f"it becomes more than {MOST_NODES:,} values or {MOST_LEVELS} levels; no configuration is so large"
            )


def _check_node(event: Any) -> None:
    if getattr(event, "tag", None) not in _TAGS:
        raise ValueError(f"line {event.start_mark.line + 1}: the tag {event.tag!r} is not possible here")
    if isinstance(event, yaml.ScalarEvent) and not event.style and _OTHERWISE.fullmatch(event.value):
        raise ValueError(f"line {event.start_mark.line + 1}: {_number_text(event.value)}")


def _number_text(text: str) -> str:
    """Yaml 1.1 reads such numbers as nobody means them, and typed they are text."""
    number, plain = yaml.load(text, Loader=_LOADER), text.lstrip("+-0") or "0"
    other = "" if ":" in text else f", {'-' * text.startswith('-')}{plain} for that number"
    return f"yaml would read {text} as {number}; write {number} for that{other}, or quotes around it for a text"


def _size_of(alias: Any, sizes: Mapping[Any, int]) -> int:
    if alias.anchor not in sizes:  # or inside of what it stands for
        raise ValueError(f"line {alias.start_mark.line + 1}: the alias *{alias.anchor} is not possible here")
    return sizes[alias.anchor]


def _events(text: str) -> Iterator[Any]:
    if len(text) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
    try:
        yield from yaml.parse(text, Loader=_LOADER)
    except yaml.YAMLError as error:
        raise ValueError(_line(error)) from error


def _line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = " ".join(str(getattr(error, "problem", None) or error).split())
    return f"{f'line {mark.line + 1}: ' if mark else ''}{problem}"
