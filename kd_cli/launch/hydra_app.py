"""Runs one Hydra application inside a Typer command, through Hydra's public API."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from kd_cli.config.base import TRIAL, Config, Launch
from kd_cli.config.check import check_config
from kd_cli.config.compose import all_overrides, composed, conf_dir, plain, primary, reference
from kd_cli.config.hydra_checks import check_hydra
from kd_cli.config.overrides import (
    flags,
    option_values,
    override_key,
    override_words,
    typed_overrides,
)
from kd_cli.errors import ConfigError, KDError
from kd_cli.machine import check_single, is_copy
from kd_cli.storage.files import without_empty_folders

_TRAINS = "kd_cli.experiments.experiment:"  # the jobs that do
_Do = Callable[[Config, Launch], Mapping[str, Any]]

if TYPE_CHECKING:
    from kd_cli.config.alike import Pattern
    from kd_cli.sweeps.summary import Swept
    from kd_cli.sweeps.sweep import Sweep


def is_sweep(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for more than one run."""
    return "--multirun" in arguments or "hydra.mode=MULTIRUN" in arguments


def run_once(
    job: str,
    command: str,
    arguments: Sequence[str],
    extends: Path | None = None,
    pattern: Pattern | None = None,
) -> Mapping[str, Any]:
    """Composes the configuration of one run and does the job.

    Args:
        job: `MODULE:FUNCTION`, imported when the configuration is checked; the function is given that and its Launch.
        command: `train-teacher`; its primary configuration is `conf/train_teacher.yaml`.
        arguments: Hydra's own command line: flags and overrides.
        extends: as of `Launch`.
        pattern: what these arguments are alike; None: the configuration is composed.

    Returns:
        What the job returned; nothing where Hydra only printed (`--cfg`, `--info`).

    Raises:
        KDError: what went wrong in the job.
        Exception: whatever Hydra raises; nothing was printed.
    """
    if "--cfg" in arguments or "--info" in arguments:
        check_single()
        return _show(command, arguments)
    if job.startswith(_TRAINS) and is_copy() and any(override_key(word) == "devices" for word in arguments):
        from kd_cli.launch.copies import take_part

        return take_part(job, partial(_run, command, arguments, pattern), extends)
    check_single()
    return _run(command, arguments, pattern, partial(_do, job, extends=extends))


def _run(command: str, arguments: Sequence[str], pattern: Pattern | None, do: _Do) -> Mapping[str, Any]:
    from hydra.core.utils import env_override

    _extend_hydra(arguments)
    with ExitStack() as around:  # the job, too; of Hydra it needs nothing more, and others may compose meanwhile
        made = composed(command, arguments) if pattern is None else _varied(pattern, arguments)
        with _explained(arguments), made as (loader, config), _as_program(command, arguments):
            _check_hydra(config.hydra)
            around.enter_context(without_empty_folders(Path(str(config.hydra.run.dir)).absolute()))
            asked = _asked(command, arguments, loader, config, pattern.yaml if pattern else None)
        around.enter_context(env_override(config.hydra.job.env_set))
        if isinstance(asked, Exception):
            raise asked
        return do(*asked)


@contextmanager
def _varied(pattern: Pattern, arguments: Sequence[str]) -> Iterator[tuple[Any, Any]]:
    """As `composed`; there is no loader, and nobody needs one."""
    from hydra.core.utils import setup_globals

    setup_globals()
    yield None, pattern.config(all_overrides(arguments))


def _asked(
    command: str, arguments: Sequence[str], loader: Any, config: Any, yaml: Config | None
) -> tuple[Config, Launch] | Exception:
    """What Hydra gives to the job of one run, whose folder it makes, or what is wrong with it."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.utils import configure_log, run_job

    def look(composed: Any) -> None:
        try:
            found.append(_prepared(command, arguments, composed, HydraConfig.get(), yaml))
        except Exception as error:  # Hydra would print lines of its own about it
            found.append(error)

    found: list[tuple[Config, Launch] | Exception] = []
    config.hydra.mode = "RUN"
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    run_job(look, config, "hydra.run.dir", None, _hydra_context(loader))
    return found[0]


def _show(command: str, arguments: Sequence[str]) -> Mapping[str, Any]:
    """Has Hydra print what `--cfg` and `--info` ask for, without its own parser, which Python 3.14 does not start."""
    from hydra.core.global_hydra import GlobalHydra

    _extend_hydra(arguments)
    name, words = primary(command, arguments), all_overrides(arguments)
    package = next(iter(option_values(arguments, "--package")), None)
    with _explained(arguments), composed(command, arguments) as (_, config):
        _check_hydra(config.hydra)
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        for kind in option_values(arguments, "--cfg"):
            hydra.show_cfg(name, words, kind, package, resolve="--resolve" in arguments)
        for kind in option_values(arguments, "--info"):
            hydra.show_info(kind, name, words)
    return {}


def run_sweep(job: str, command: str, arguments: Sequence[str], *, writes: bool = True, detach: bool = False) -> Swept:
    """Does a job for every point of a sweep; what goes wrong in one is in its record.

    Args:
        job, command, arguments: as of `run_once`.
        writes: whether the job does; if not, the sweep leaves nothing, and its points run here.
        detach: submit the points, and do not wait for them.

    Raises:
        KDError: the sweep cannot be begun.
        Exception: whatever Hydra raises; nothing was printed.
    """
    from kd_cli.sweeps.launchers import start_sweep
    from kd_cli.sweeps.points import Points, recorded
    from kd_cli.sweeps.summary import Swept

    check_single()
    _extend_hydra(arguments)
    with _explained(arguments):
        sweep, study = _make_sweep(command, arguments)
    here, alone = partial(_start, job, command, sweep.asked), partial(run_once, job, command)
    points = Points(sweep, study, command, sweep.asked, here, alone, writes=writes, detach=detach)
    _name_folders(sweep.name, lambda _root_: sweep.folder(_root_.hydra.overrides.task))
    words = [*sweep.arguments, "hydra.mode=MULTIRUN"]
    with _explained(words), composed(command, words, sweeps=True) as (loader, config):
        _check_hydra(config.hydra)
        with recorded(Path(str(config.hydra.sweep.dir)), points):
            start_sweep(_hydra_context(loader), points, config)
    return Swept([*sweep.failures, *points.records], points.folder, points.found)


def _extend_hydra(arguments: Sequence[str]) -> None:
    from kd_cli.config.search_path import install_search_path

    install_search_path(option_values(arguments, "--config-dir"))
    _name_folders("sweep", lambda: "point")  # until a sweep is known, which names them
    if is_sweep(arguments) or "--info" in arguments:  # a single run has nothing to do with launchers
        from kd_cli.sweeps.launchers import install_launchers

        install_launchers()


def _check_hydra(hydra: Any) -> None:
    """Raises a ConfigError for a launcher that kd has not, and for what a file may not say to Hydra."""
    launcher = hydra.runtime.choices["hydra/launcher"]
    if launcher not in ("process", "basic"):
        from kd_cli.sweeps.launchers import check_launcher

        check_launcher(launcher)
    check_hydra(hydra)


@contextmanager
def _explained(arguments: Sequence[str]) -> Iterator[None]:
    """Says better what Hydra complains of while it composes these words."""
    try:
        yield
    except KDError:
        raise
    except Exception as error:
        from kd_cli.launch.hydra_errors import explain

        folders = [*map(Path, option_values(arguments, "--config-dir")), conf_dir()]
        better = explain(error, override_words(arguments), folders)
        if better is None:
            raise
        raise better from error


def _make_sweep(command: str, arguments: Sequence[str]) -> tuple[Sweep, Any]:
    """The sweep that the arguments and their presets ask for, and the study that it is, if it is one."""
    from omegaconf import OmegaConf

    from kd_cli.sweeps.sweep import Sweep

    with composed(command, arguments, sweeps=True) as (loader, config):
        _check_hydra(config.hydra)
        sweep = Sweep(arguments, loader, config.hydra.sweeper.get("params") or {})
    if config.hydra.runtime.choices["hydra/launcher"] == "basic":
        sweep.arguments += ["hydra/launcher=process", "hydra.launcher.n_jobs=1"]  # which looks at each point, too
    study = config.get("study")
    return sweep, OmegaConf.to_container(study, resolve=True) if study else None


def _name_folders(sweep: str, point: Callable[..., str]) -> None:
    """Defines `${kd_sweep:}`, a sweep's folder, and `${kd_point:}`, the folder of a point inside it."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("kd_sweep", lambda: sweep, replace=True)
    OmegaConf.register_new_resolver("kd_point", point, replace=True)


def _start(job: str, command: str, arguments: Sequence[str], composed: Any) -> Mapping[str, Any]:
    """One point: checks the configuration, loads plugins, calls the job."""
    from hydra.core.hydra_config import HydraConfig

    return _do(job, *_prepared(command, arguments, composed, HydraConfig.get()))


def _do(job: str, config: Config, launch: Launch, extends: Path | None = None) -> Mapping[str, Any]:
    launch = replace(launch, extends=extends)
    if config.get("devices", 1) != 1 and job.startswith(_TRAINS):
        from kd_cli.launch.train_on import train_on

        return train_on(job, config, launch)
    record: Mapping[str, Any] = resolve_name(job)(config, launch)
    return record


def _prepared(
    command: str, arguments: Sequence[str], composed: Any, hydra: Any, yaml: Config | None = None
) -> tuple[Config, Launch]:
    from hydra.types import RunMode

    from kd_cli.plugins import load_plugins

    config = plain(composed)
    config.pop("study", None)  # what a study asks is the sweep's affair
    overrides = typed_overrides(arguments, hydra)
    if hydra.job.chdir:
        raise ConfigError(
            "hydra.job.chdir: true is not possible, since relative paths are meant from where kd was started; "
            "type hydra.job.chdir=false"
        )
    check_config(config, yaml or reference(hydra))
    load_plugins(config["plugins"])
    named = any(override_key(override) == "hydra.run.dir" for override in hydra.overrides.hydra)
    launch = Launch(
        command=command,
        arguments=(*flags(arguments), *overrides),
        given=frozenset(override_key(override) for override in overrides),
        folder=Path(hydra.runtime.output_dir),
        exact=named or hydra.mode == RunMode.MULTIRUN,
        trial=os.environ.get(TRIAL),
    )
    return config, launch


def _hydra_context(loader: Any) -> Any:
    """What Hydra gives to whoever calls a task: no callbacks, which would be code."""
    from hydra._internal.callbacks import Callbacks
    from hydra.types import HydraContext

    return HydraContext(loader, Callbacks())


@contextmanager
def _as_program(command: str, words: Sequence[str]) -> Iterator[None]:
    """sys.argv for Hydra, and HYDRA_FULL_ERROR, which makes it raise instead of printing and leaving."""
    old_argv, old_value = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = [f"kd {command}", *words], "1"
    try:
        yield
    finally:
        sys.argv = old_argv
        if old_value is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = old_value
