"""From yaml and overrides to one plain configuration, outside of any job."""

from __future__ import annotations

import os
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from kd_cli.config.base import Config
from kd_cli.config.overrides import name_by_overrides, option_values, override_words, winning_overrides
from kd_cli.turns import once

VARIABLES = ("KD_DATA", "TMPDIR", "USER")  # of the environment, that our yaml files ask for


class _Plain(dict[str, Any]):
    """A dict that weak references can be made of."""


_there: MutableMapping[tuple[str | None, ...], _Plain] = WeakValueDictionary()  # what `compose` gave and somebody has


def conf_dir() -> Path:
    """`conf/` inside the package of a wheel, beside the package in a checkout."""
    here = Path(__file__).resolve().parent.parent
    packaged = here / "conf"
    return packaged if packaged.is_dir() else here.parent / "conf"


@contextmanager
def composed(command: str, arguments: Sequence[str], *, sweeps: bool = False) -> Iterator[tuple[Any, Any]]:
    """Hydra's loader, and the configuration with its node `hydra`, of which nothing was done yet."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        mode = RunMode.MULTIRUN if sweeps else RunMode.RUN
        config = loader.load_configuration(primary(command, arguments), all_overrides(arguments), mode)
        name_by_overrides(config.hydra)
        yield loader, config


def primary(command: str, arguments: Sequence[str]) -> str:
    """The name of the primary configuration: `run`."""
    return (option_values(arguments, "--config-name") or [command.replace("-", "_")])[-1]


def all_overrides(arguments: Sequence[str]) -> list[str]:
    """What is typed, and what makes it win."""
    return [*override_words(arguments), *winning_overrides(arguments)]


def compose(overrides: Sequence[str], *, config_name: str = "run", config_dirs: Sequence[str] = ()) -> Config:
    """The resolved configuration that `overrides` make, outside of any job.

    Who asks for what somebody has is given that: a command opens many networks. Nobody changes anything of it.

    Raises:
        Exception: whatever Hydra raises of a wrong override.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    from kd_cli.config.search_path import install_search_path

    install_search_path(config_dirs)
    key = config_name, *overrides, *map(os.environ.get, VARIABLES)
    may_share = not config_dirs and not any("${" in word for word in overrides)  # files of the user, and resolvers
    found = _there.get(key) if may_share else None
    if found is None:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            found = _Plain(plain(hydra_compose(config_name, list(overrides))))
        if may_share:
            _there[key] = found
    return found


def plain(config: Any) -> Config:
    """An OmegaConf node as plain values, resolved.

    Raises:
        OmegaConfBaseException: an interpolation that leads nowhere, or a missing value.
    """
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def reference(hydra: Any) -> Config:
    """The same choices of groups and nothing else: what the yaml files themselves say."""
    from hydra import compose as hydra_compose

    choices = {group: choice for group, choice in hydra.runtime.choices.items() if not group.startswith("hydra/")}
    presets = {"experiment", "study"}  # they only choose and set; they list no options
    overrides = [
        f"{group}={choice}" for group, choice in choices.items() if group not in presets and choice is not None
    ]
    name = hydra.job.config_name
    return once(("reference", name, *overrides), lambda: _Plain(plain(hydra_compose(name, overrides))))
