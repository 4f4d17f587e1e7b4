"""What a configuration may say to Hydra itself: nothing of it names code, wherever it was written."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kd_cli.config.overrides import override_key
from kd_cli.errors import ConfigError

_USUAL = re.compile(
    r"hydra\.(run\.dir|mode|verbose|sweep\.(dir|subdir)|launcher\.n_jobs|sweeper\.\w+)|hydra/(launcher|sweeper)"
)
_CALLBACKS = {"footprint": {"_target_": "kd_cli.launch.empty_folders.Watch"}}  # of run.yaml
_LAUNCHERS = ("hydra_plugins.", "hydra._internal.core_plugins.")
_LOGGED_TO = {"logging.StreamHandler", "logging.NullHandler", "logging.FileHandler"}
_LOG_FILE = "${hydra.runtime.output_dir}/${hydra.job.name}.log"
_STREAMS = {"ext://sys.stdout", "ext://sys.stderr"}
_VARIABLES = re.compile(r"KD_\w+|\w+_NUM_THREADS|CUDA_VISIBLE_DEVICES|CUBLAS_WORKSPACE_CONFIG|NCCL_DEBUG|TORCH_LOGS")
_SHELL = ("setup", "additional_parameters")  # of Slurm's launcher: lines of its script


def says_more(arguments: Sequence[str]) -> bool:
    """Whether a command line says to Hydra more than where and how often, or lets files of the user's say it."""
    return any(
        word in ("--config-dir", "--config-name")
        or ("=" in word and "hydra" in override_key(word) and not _USUAL.fullmatch(override_key(word)))
        or "_target_" in word
        for word in arguments
    )


def check_hydra(hydra: Any) -> None:
    """Looks at the composed node `hydra` before Hydra does what it says.

    Raises:
        ConfigError: it names code, a command, or a file to write; the message says what to do instead.
    """
    from omegaconf import OmegaConf

    for name in ("callbacks", "job_logging", "hydra_logging"):
        _check(name, OmegaConf.to_container(hydra, resolve=False).get(name))  # type: ignore[union-attr]
    for name in ("launcher", "sweeper"):
        _check(name, OmegaConf.to_container(hydra[name], resolve=True))
    typed = [override_key(word) for word in hydra.overrides.hydra]
    for option in _SHELL:
        if hydra.launcher.get(option) and not any(key.startswith(f"hydra.launcher.{option}") for key in typed):
            raise ConfigError(
                f"hydra.launcher.{option}: lines of a shell script are not taken from a file; if you trust them, type "
                f"them on the command line: 'hydra.launcher.{option}=…'"
            )
    _check_variables(OmegaConf.to_container(hydra.job.env_set, resolve=True))
    if os.sep in str(hydra.output_subdir) or str(hydra.output_subdir) in (os.curdir, os.pardir):
        raise ConfigError(f"hydra.output_subdir: {hydra.output_subdir} is no name of a folder inside the run's folder")


def _check(name: str, node: Any) -> None:
    faults = {"callbacks": _callbacks, "launcher": _launcher, "sweeper": _launcher}.get(name, _logging)(node)
    for key, value, hint in faults:
        raise ConfigError(f"hydra.{name}{f'.{key}' if key else ''}: {value!r} is not possible: {hint}")


Faults = Iterator[tuple[str, Any, str]]


def _callbacks(node: Any) -> Faults:
    if node and node != _CALLBACKS:
        yield (
            "",
            node,
            "kd calls no code that a configuration names; a component of your own is registered in a file that you "
            "name with plugins=[./mine.py]",
        )


def _launcher(node: Any) -> Faults:
    if not isinstance(node, Mapping):
        yield "", node, "type hydra/launcher=process or hydra/sweeper=optuna"
        return
    for key, value in _leaves(node):
        last = key.rpartition(".")[2]
        if key.startswith("params.") and "hydra" in key:
            yield key, value, "a sweep is over options of kd; type those of Hydra on the command line"
        elif last == "_target_" and (key != last or not str(value).startswith(_LAUNCHERS)):
            yield key, value, "it would run that code; type hydra/launcher=NAME or hydra/sweeper=NAME, or leave it out"
        elif not f"{key}{value}".isprintable():
            yield key, value, "a line break would begin another line of the job's script"


def _logging(node: Any) -> Faults:
    hint = "it would run other code than Python's own; type hydra/job_logging=default, stdout or none"
    if not isinstance(node, Mapping):
        yield "", node, hint
        return
    for key, value in _leaves(node):
        last = key.rpartition(".")[2]
        named = last in ("()", "_target_", "") or (last == "class" and value not in _LOGGED_TO)
        if named or (isinstance(value, str) and "://" in value and value not in _STREAMS):
            yield key, value, hint
        elif (last == "filename" or "${" in str(value)) and value != _LOG_FILE:
            yield key, value, f"a run logs into its own folder only: filename: {_LOG_FILE}"


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is no collection, with its path; of an empty collection the path as well."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(node, list) and node:
        for place, value in enumerate(node):
            yield from _leaves(value, f"{prefix}.{place}")
    else:
        yield prefix, node


def _check_variables(variables: Any) -> None:
    for name, value in variables.items():
        if not _VARIABLES.fullmatch(name) and os.environ.get(name) != value:
            raise ConfigError(
                f"hydra.job.env_set.{name}: a configuration may set how many threads and which devices, and no other "
                f"variable; type it before kd: {name}=… kd …"
            )
