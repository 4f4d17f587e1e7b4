"""What a configuration may say to Hydra itself: nothing of it names code, wherever it was written."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from kd_cli.config.overrides import override_key, words_of
from kd_cli.errors import ConfigError

_LOG_FILE = "${hydra.runtime.output_dir}/${hydra.job.name}.log"
_ANY, _TEXT = r"(?s:.*)", r"(?!.*(://|\$\{)).*"
_LOGGING, _CORE = r"(job|hydra)_logging\.", r"hydra\._internal\.core_plugins\."
_OURS = r"hydra_plugins\.kd_cli\."

# The keys that may stand under `hydra`, and what each may be. Launcher and sweeper are resolved, the others as written.
_MAY: Mapping[str, str] = {
    r"(run|sweep)\..+|(job|verbose|searchpath|env|help|hydra_help|runtime|overrides)(\..+)?": _ANY,
    r"mode": r"None|(RunMode\.)?RUN",
    r"output_subdir": r"(?!\.{1,2}$)[^/]*",
    r"launcher\._target_": rf"{_OURS}(Process|Submitit|Ray)Launcher|{_CORE}basic_launcher\.BasicLauncher",
    r"sweeper\._target_": rf"{_OURS}OptunaSweeper|{_CORE}basic_sweeper\.BasicSweeper",
    r"launcher\.(setup|additional_parameters)": r"None",
    r"launcher\.(?!setup|additional_parameters)((?!_target_)[ -~])+": r"[^\x00-\x1f\x7f]*",
    r"sweeper\.((?!_target_)(?!params\..*hydra)[ -~])+": r"[^\x00-\x1f\x7f]*",
    rf"{_LOGGING}(version|disable_existing_loggers|(root|loggers\.[\w.]+)(\.(level|propagate|handlers\.\d+))?)": _TEXT,
    rf"{_LOGGING}(formatters\.\w+\.(format|datefmt|style)|handlers\.\w+\.(formatter|level))": _TEXT,
    rf"{_LOGGING}handlers\.\w+\.class": r"logging\.(Stream|Null|File)Handler",
    rf"{_LOGGING}handlers\.\w+\.stream": r"ext://sys\.std(out|err)",
    rf"{_LOGGING}handlers\.\w+\.filename": re.escape(_LOG_FILE),
}
_HINTS = {
    "callbacks": "kd calls no code that a configuration names; a component of your own is registered in a file that "
    "you name with plugins=[./mine.py]",
    "launcher": "type hydra/launcher=process and the options that --cfg hydra -p hydra.launcher shows; lines of a "
    "cluster's script (setup, additional_parameters) are not taken from a file: if you trust them, type them, "
    "'hydra.launcher.setup=…'",
    "sweeper": "type hydra/sweeper=optuna and the options that --cfg hydra -p hydra.sweeper shows; a sweep is over "
    "options of kd: type those of Hydra on the command line",
    "mode": "a file makes no sweep of a command: type -m",
    "output_subdir": "it must be the name of a folder inside the run's folder",
} | dict.fromkeys(
    ("job_logging", "hydra_logging"),
    "logging runs Python's own handlers, which write to the screen or into the run's folder; type "
    f"hydra/job_logging=default, stdout or none; a file is filename: {_LOG_FILE}",
)
_VARIABLES = re.compile(r"KD_\w+|\w+_NUM_THREADS|CUDA_VISIBLE_DEVICES|CUBLAS_WORKSPACE_CONFIG|NCCL_DEBUG|TORCH_LOGS")


def check_hydra(hydra: Any) -> None:
    """Looks at the composed node `hydra` before Hydra does what it says.

    Raises:
        ConfigError: it names code, a command, or a file to write; the message says what to do instead.
    """
    from omegaconf import OmegaConf

    node = dict(OmegaConf.to_container(hydra, resolve=False))  # type: ignore[arg-type]
    for name in ("launcher", "sweeper", "output_subdir"):
        node[name] = (
            OmegaConf.to_container(hydra[name], resolve=True) if OmegaConf.is_config(hydra[name]) else hydra[name]
        )
    typed = [override_key(word).removeprefix("hydra.") for word in words_of(hydra)["hydra"]]
    for key, value in _leaves(node):
        mine = key == "mode" and key in typed
        mine |= key.startswith(("launcher.setup", "launcher.additional_parameters")) and any(map(key.startswith, typed))
        rules = [rule for pattern, rule in _MAY.items() if re.fullmatch(pattern, key)]
        if not mine and not any(re.fullmatch(rule, str(value)) for rule in rules):
            hint = _HINTS.get(key.partition(".")[0], "leave it out")
            raise ConfigError(f"hydra.{key}: {str(value)!r} is not possible: {hint}")
    _check_variables(OmegaConf.to_container(hydra.job.env_set, resolve=True))


def _leaves(node: Any) -> list[tuple[str, Any]]:
    """Every value that is no collection, with its path."""
    left, found = [("", node)], []
    while left:
        path, value = left.pop()
        if isinstance(value, Mapping | list):
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            left += [(f"{path}.{key}" if path else str(key), each) for key, each in items]
        else:
            found.append((path, value))
    return found


def _check_variables(variables: Any) -> None:
    for name, value in variables.items():
        if not _VARIABLES.fullmatch(name) and os.environ.get(name) != value:
            raise ConfigError(
                f"hydra.job.env_set.{name}: a configuration may set how many threads and which devices, and no other "
                f"variable; type it before kd: {name}=… kd …"
            )
