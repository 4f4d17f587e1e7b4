"""Users' components: installed packages by entry point, modules and files by `plugins=[…]`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from kd_cli.errors import ConfigError

GROUP = "kd_cli.plugins"


def load_plugins(names: Iterable[str]) -> None:
    """Imports every installed plugin and every named file or module; each registers its components.

    Raises:
        ConfigError: one that is not there or cannot be imported.
    """
    for entry in _installed():
        _guarded(f"the installed plugin {entry.name!r}", entry.load)
    for name in names:
        if name.endswith(".py"):
            _guarded(f"plugins: {name}", lambda path=Path(name): _load_file(path))
        else:
            _guarded(f"plugins: {name}", lambda name=name: importlib.import_module(name))


def plugin_conf_dirs() -> Iterator[Path]:
    """The `conf` folder of every installed plugin that has one. Imports none of them."""
    for entry in _installed():
        spec = importlib.util.find_spec(entry.module.partition(".")[0])
        for folder in (spec.submodule_search_locations or []) if spec else []:
            if (Path(folder) / "conf").is_dir():
                yield Path(folder) / "conf"


def _installed() -> Iterable[EntryPoint]:
    return entry_points(group=GROUP)


def _guarded(what: str, load: object) -> None:
    assert callable(load)
    try:
        load()
    except ConfigError:
        raise
    except Exception as error:  # a plugin is foreign code: anything can happen in it
        raise ConfigError(f"{what} cannot be imported: {type(error).__name__}: {error}") from error


def _load_file(path: Path) -> None:
    full = path.expanduser().resolve()
    if not full.is_file():
        raise ConfigError(f"plugins: there is no file {path} (looked for {full}); type plugins=[./mine.py]")
    name = f"kd_plugin_{full.stem}_{hashlib.sha256(str(full).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, full)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs, as the import statement does
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
