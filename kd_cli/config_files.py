"""Where Hydra finds yaml: in folders, whose files are checked before they are read, and in its own packages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource
from hydra._internal.sources_registry import SourcesRegistry

from kd_cli.errors import ConfigError
from kd_cli.yaml_files import check_file


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
        if path.exists():
            check_file(path)
        return super().load_config(config_path)


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
