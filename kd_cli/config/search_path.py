"""Where Hydra finds yaml: in folders, whose files are checked before they are read, and in its own packages."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from kd_cli.config.base import OPEN
from kd_cli.config.compose import conf_dir
from kd_cli.errors import ConfigError
from kd_cli.plugins import plugin_conf_dirs

SUBMITIT = ("submitit_local", "submitit_slurm")  # launchers


class Folder(FileConfigSource):
    """A folder of yaml.

    Raises:
        ConfigError: for a file that is no yaml or would grow, or that is not below the folder.
    """

    def load_config(self, config_path: str) -> Any:
        name = self._normalize_file_name(config_path)
        if ".." in Path(name).parts:
            raise ConfigError(f"{name}: a choice is a name in its group, not a path; --config-dir DIR adds a folder")
        path = Path(os.path.realpath(Path(self.path, name)))
        if path.exists() and Path(self.path) != conf_dir():  # ours are sound
            from kd_cli.storage.yaml import check_file

            check_file(path)
        result = super().load_config(config_path)
        _open(result.config)
        return result


def _open(config: Any) -> None:
    """Lets mappings that hold whatever somebody's function takes have new keys without Hydra's `+`."""
    for key in config if isinstance(config, DictConfig) else ():
        node = config._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none() and (not len(node) or key == OPEN):
            OmegaConf.set_struct(node, False)


class Package(ImportlibResourcesConfigSource):
    """The yaml of Hydra and of its installed plugins.

    Raises:
        ConfigError: for a package of `hydra.searchpath`: looking into it would run its code.
    """

    def __init__(self, provider: str, path: str) -> None:
        if provider.startswith("hydra.searchpath"):
            raise ConfigError(
                f"hydra.searchpath: {path} would be imported, which runs its code; type the folder of its yaml "
                "instead: --config-dir DIR"
            )
        super().__init__(provider, path)


def install_sources() -> None:
    """Makes Hydra read through these; its own registry keeps the classes that it knows already."""
    SourcesRegistry.instance().types |= {"file": Folder, "pkg": Package}


class UserFolders(SearchPathPlugin):
    """Makes users' folders shadow ours, and installed plugins' folders follow them."""

    # Hydra makes its own instance of the plugin and keeps the class for good.
    users: ClassVar[list[Path]] = []
    plugins: ClassVar[list[Path]] = []

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in reversed(self.users):
            search_path.prepend(provider="kd --config-dir", path=f"file://{folder}", anchor="main")
        for folder in self.plugins:
            search_path.append(provider="kd plugin", path=f"file://{folder}")


def install_search_path(folders: Sequence[str]) -> None:
    """Makes Hydra search these folders for yaml, too, each file checked, and know `${kd_complement:x}`, 1 − x.

    Raises:
        ConfigError: a folder that is not there.
    """
    missing = [folder for folder in folders if not Path(folder).is_dir()]
    if missing:
        raise ConfigError(f"--config-dir: there is no folder {missing[0]}; type the path of a folder with yaml groups")
    UserFolders.users, UserFolders.plugins = [Path(folder).resolve() for folder in folders], list(plugin_conf_dirs())
    OmegaConf.register_new_resolver("kd_complement", lambda share: round(1 - float(share), 12), replace=True)
    if UserFolders not in Plugins.instance().discover(SearchPathPlugin):
        Plugins.instance().register(UserFolders)
        install_sources()
        _take_plugins()


def _take_plugins() -> None:
    """Where Hydra's own plugins are installed: submitit's options start our launcher, since the plugin's loses points,
    and the options of its Optuna, which Hydra would hold ours to, are not there.
    """
    store = ConfigStore.instance()
    store.repo["hydra"].get("sweeper", {}).pop("optuna.yaml", None)
    for name in SUBMITIT:
        if f"{name}.yaml" in store.list("hydra/launcher"):
            node = OmegaConf.create(store.load(f"hydra/launcher/{name}.yaml").node)
            node._target_ = "hydra_plugins.kd_cli.SubmititLauncher"
            store.store(group="hydra/launcher", name=name, node=node, provider="kd")
