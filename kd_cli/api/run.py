"""kd.run: the training commands."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from os import PathLike
from typing import Any, Literal, overload

from kd_cli.api.called import called
from kd_cli.api.results import Comparison, Trained, compared, trained
from kd_cli.config.overrides import hydra_quote
from kd_cli.errors import ConfigError, suggest
from kd_cli.launch.hydra_app import run_once

Folder = str | PathLike[str]

_COMMANDS = ("run", "train-teacher", "train-baseline", "distill")


@overload
def run(
    overrides: Sequence[str] = (),
    *,
    command: Literal["run"] = "run",
    folder: Folder | None = None,
    config_dirs: Sequence[Folder] = (),
    quiet: bool = False,
) -> Comparison: ...


@overload
def run(
    overrides: Sequence[str] = (),
    *,
    command: Literal["train-teacher", "train-baseline", "distill"],
    folder: Folder | None = None,
    config_dirs: Sequence[Folder] = (),
    quiet: bool = False,
) -> Trained: ...


def run(
    overrides: Sequence[str] = (),
    *,
    command: str = "run",
    folder: Folder | None = None,
    config_dirs: Sequence[Folder] = (),
    quiet: bool = False,
) -> Comparison | Trained:
    """Does in this process what `kd run`, or another training command, does: the same folders, bits and errors.

    Args:
        overrides: as they are typed: `["loss=dkd", "trainer.epochs=5"]`.
        command: `run`, `train-teacher`, `train-baseline` or `distill`.
        folder: of the run; given again, it goes on there, or gives the result that is there. None: a new one.
        config_dirs: folders whose yaml shadows kd's.
        quiet: nothing but notices is printed.

    Raises:
        ConfigError, DataError, KDError: what the command line says, with the exit code that it has.
    """
    if command not in _COMMANDS:
        raise ConfigError(f"command: {command!r} is not possible{suggest(command, _COMMANDS)}")
    arguments = [word for path in config_dirs for word in ("--config-dir", str(path))]
    arguments += [*checked_words(overrides), *folder_word(folder)]
    with called(quiet=quiet):
        job = import_module(f"kd_cli.commands.{command.replace('-', '_')}").JOB
        record = run_once(job, command, arguments)
    return compared(record) if command == "run" else trained(record)


def checked_words(overrides: Sequence[str]) -> list[str]:
    """Raises a ConfigError for what is no list of overrides of one run."""
    if isinstance(overrides, str) or not all(isinstance(word, str) for word in overrides):
        raise ConfigError(f"overrides: {overrides!r} is not a list of texts; type ['loss=dkd', 'seed=1']")
    flag = next((word for word in overrides if word.startswith("-") or word.startswith("hydra.mode=")), None)
    if flag is not None:
        raise ConfigError(
            f"overrides: {flag} is an option of the command line; a sweep is a loop over calls here, and a folder of "
            "yaml is config_dirs=[…]"
        )
    return list(overrides)


def folder_word(folder: Folder | None) -> list[str]:
    """The override that names a run's folder."""
    return [] if folder is None else [f"hydra.run.dir={hydra_quote(str(folder))}"]


def as_word(key: str, value: Any) -> str:
    """`key=value`, as Hydra's grammar has it; ConfigError: it has no such value."""
    return f"{key}={_written(value, key)}"


def _written(value: Any, key: str) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    if isinstance(value, str):
        return hydra_quote(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(_written(item, key) for item in value)}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{hydra_quote(str(name))}:{_written(item, key)}" for name, item in value.items()) + "}"
    raise ConfigError(f"{key}: {value!r} is no number, text, list or mapping of them")
