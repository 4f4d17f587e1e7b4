"""Runs one Hydra application inside a Typer command, through Hydra's public API."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from kd_cli.config import Config, Launch, check_config, override_key, winning_overrides
from kd_cli.errors import ConfigError

if TYPE_CHECKING:
    from kd_cli.sweep import Sweep

Job = Callable[[Config, Launch], Mapping[str, Any]]


def conf_dir() -> Path:
    """`conf/` inside the package of a wheel, beside the package in a checkout."""
    here = Path(__file__).resolve().parent
    packaged = here / "conf"
    return packaged if packaged.is_dir() else here.parent / "conf"


def run_hydra(job: Job, command: str, arguments: Sequence[str]) -> Mapping[str, Any] | Sequence[Mapping[str, Any]]:
    """Lets Hydra compose the configuration and call `job`, once or for every point of a sweep.

    Args:
        command: `train-teacher`; its primary configuration is `conf/train_teacher.yaml`.
        arguments: Hydra's own command line: flags and overrides.

    Returns:
        What `job` returned; a list of that for a sweep; nothing where Hydra only printed (`--cfg`, `--info`).

    Raises:
        KDError: what went wrong in a job. In a sweep it is in the point's record instead.
        Exception: whatever Hydra raises; nothing was printed.
    """
    install_search_path(option_values(arguments, "--config-dir"))
    _name_points(lambda: "point")  # --cfg hydra --resolve asks for it without a sweep
    launchers = [word for word in arguments if word.startswith("hydra/launcher=") and word != "hydra/launcher=basic"]
    if launchers:
        raise ConfigError(f"{launchers[0]} is not possible yet: the points of a sweep run one after the other")
    if "--multirun" not in arguments and "hydra.mode=MULTIRUN" not in arguments:
        return _call_hydra(lambda config: _start(job, command, arguments, config), command, arguments)
    sweep = _make_sweep(arguments)
    points: list[Mapping[str, Any]] = list(sweep.failures)

    def run_point(config: Any) -> Mapping[str, Any]:
        points.append(sweep.guard(lambda: _start(job, command, arguments, config)))
        return points[-1]

    _name_points(lambda _root_: sweep.folder(_root_.hydra.overrides.task))
    _call_hydra(run_point, command, sweep.arguments)
    return points


def _call_hydra(task: Callable[[Any], Mapping[str, Any]], command: str, arguments: Sequence[str]) -> Mapping[str, Any]:
    import hydra

    results: list[Mapping[str, Any]] = [{}]
    errors: list[Exception] = []

    def guarded(config: Any) -> None:
        try:
            results.append(task(config))
        except Exception as error:  # Hydra would print lines of its own about it
            errors.append(error)

    name = command.replace("-", "_")
    arguments = [*_without_option(arguments, "--config-dir"), *winning_overrides(arguments)]
    entry = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=name)(guarded)
    with _as_program([f"kd {command}", *arguments]):
        entry()
    if errors:
        raise errors[0]
    return results[-1]


def _make_sweep(arguments: Sequence[str]) -> Sweep:
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from kd_cli.sweep import Sweep

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return Sweep(arguments, GlobalHydra.instance().config_loader())


def _name_points(name: Callable[..., str]) -> None:
    """Defines `${kd_point:}`, the folder of a point inside its sweep's folder."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("kd_point", name, replace=True)


def compose(overrides: Sequence[str], *, config_name: str = "run", config_dirs: Sequence[str] = ()) -> Config:
    """The resolved configuration that `overrides` make, outside of any job.

    Raises:
        Exception: whatever Hydra raises of a wrong override.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    install_search_path(config_dirs)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return plain(hydra_compose(config_name, list(overrides)))


def plain(config: Any) -> Config:
    """An OmegaConf node as plain values, resolved.

    Raises:
        OmegaConfBaseException: an interpolation that leads nowhere, or a missing value.
    """
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def option_values(arguments: Sequence[str], option: str) -> list[str]:
    """The values given to an option in a list of arguments: `--config-dir DIR`."""
    return [value for name, value in itertools.pairwise(arguments) if name == option]


def _without_option(arguments: Sequence[str], option: str) -> list[str]:
    kept = list(arguments)
    while option in kept:
        place = kept.index(option)
        del kept[place : place + 2]
    return kept


def _start(job: Job, command: str, arguments: Sequence[str], composed: Any) -> Mapping[str, Any]:
    """One point: checks the configuration, loads plugins, calls the job."""
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    try:
        config, launched = _prepared(command, arguments, composed, hydra, folder)
        return job(config, launched)
    finally:
        if not any(override_key(override) == "hydra.run.dir" for override in hydra.overrides.hydra):
            _remove_if_empty(folder)  # Hydra made it before anything was checked


def _prepared(command: str, arguments: Sequence[str], composed: Any, hydra: Any, folder: Path) -> tuple[Config, Launch]:
    from hydra.types import RunMode

    from kd_cli.plugins import load_plugins

    config = plain(composed)
    added = {override_key(override) for override in winning_overrides(arguments)}  # by key: Hydra resolves the values
    overrides = [override for override in hydra.overrides.task if override_key(override) not in added]
    if hydra.job.chdir:
        raise ConfigError("hydra.job.chdir: true is not possible; relative paths are meant from where kd was started")
    check_config(config, _reference(hydra))
    load_plugins(config["plugins"])
    named = any(override_key(override) == "hydra.run.dir" for override in hydra.overrides.hydra)
    flags = [argument for option in ("--config-dir", "--config-name") for argument in _flag(arguments, option)]
    launch = Launch(
        command=command,
        arguments=(*flags, *overrides),
        given=frozenset(override_key(override) for override in overrides),
        folder=folder,
        exact=named or hydra.mode == RunMode.MULTIRUN,
    )
    return config, launch


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
        folder.parent.rmdir()


def _flag(arguments: Sequence[str], option: str) -> list[str]:
    return [part for value in option_values(arguments, option) for part in (option, str(_absolute(option, value)))]


def _absolute(option: str, value: str) -> str:
    return str(Path(value).resolve()) if option == "--config-dir" else value


def _reference(hydra: Any) -> Config:
    """The same choices of groups and nothing else: what the yaml files themselves say."""
    from hydra import compose as hydra_compose

    choices = {group: choice for group, choice in hydra.runtime.choices.items() if not group.startswith("hydra/")}
    presets = {"experiment"}  # they only choose and set; they list no options
    overrides = [
        f"{group}={choice}" for group, choice in choices.items() if group not in presets and choice is not None
    ]
    return plain(hydra_compose(hydra.job.config_name, overrides))


def install_search_path(folders: Sequence[str]) -> None:
    """Makes users' folders shadow ours, and installed plugins' folders follow them."""
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    from kd_cli.plugins import plugin_conf_dirs

    missing = [folder for folder in folders if not Path(folder).is_dir()]
    if missing:
        raise ConfigError(f"--config-dir: there is no folder {missing[0]}; type the path of a folder with yaml groups")
    _Folders.user, _Folders.plugins = [Path(folder).resolve() for folder in folders], list(plugin_conf_dirs())

    class UserFolders(SearchPathPlugin):
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            for folder in reversed(_Folders.user):
                search_path.prepend(provider="kd --config-dir", path=f"file://{folder}", anchor="main")
            for folder in _Folders.plugins:
                search_path.append(provider="kd plugin", path=f"file://{folder}")

    if not _Folders.installed:
        Plugins.instance().register(UserFolders)
        _Folders.installed = True


class _Folders:
    """What the search-path plugin adds. Hydra makes its own instance of the plugin and keeps the class for good."""

    user: ClassVar[list[Path]] = []
    plugins: ClassVar[list[Path]] = []
    installed: ClassVar[bool] = False


@contextmanager
def _as_program(argv: Sequence[str]) -> Iterator[None]:
    """sys.argv for Hydra, and HYDRA_FULL_ERROR, which makes it raise instead of printing and leaving."""
    old_argv, old_value = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = list(argv), "1"
    try:
        yield
    finally:
        sys.argv = old_argv
        if old_value is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = old_value
