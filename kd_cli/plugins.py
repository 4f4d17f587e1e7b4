"""Users' components: installed packages by entry point, modules and files by `plugins=[…]`.

These are the only code from elsewhere that kd runs, and it says so.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from importlib.machinery import SourceFileLoader
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from kd_cli import console
from kd_cli.errors import ConfigError

GROUP = "kd_cli.plugins"

# What the user has named, and the module that it is: `my_package.losses`, or `mine` for a file mine.py.
_named: dict[str, str] = {}
_code: dict[str, bytes] = {}  # module → of the file that it was made of


def load_plugins(names: Iterable[str]) -> None:
    """Imports every installed plugin and every named file or module; each registers its components.

    Raises:
        ConfigError: one that is not there or cannot be imported.
    """
    for entry in _installed():
        trust(entry.module.partition(".")[0])
        _guarded(f"the installed plugin {entry.name!r}", entry.load)
    for name in names:
        if name.endswith(".py"):
            _guarded(f"plugins: {name}", lambda path=Path(name): _load_file(path))
        else:
            _guarded(f"plugins: {name}", lambda name=name: _load_module(name))


def trust(module: str) -> None:
    """Says that the user has named a module, or one that holds it: `trusted` knows it from now on."""
    _named.setdefault(module, module)


def trusted(path: str) -> str | None:
    """The dotted path of something inside a module that the user has named, as it can be imported; otherwise None.

    Args:
        path: `my_package.models.build`; `mine.build` for what is in mine.py.
    """
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        module = _named.get(".".join(parts[:length]))
        if module is not None:
            return ".".join([module, *parts[length:]])
    return path if any(path == module or path.startswith(f"{module}.") for module in _named.values()) else None


def plugin_conf_dirs() -> Iterator[Path]:
    """The `conf` folder of every installed plugin that has one. Imports none of them."""
    for entry in _installed():
        spec = importlib.util.find_spec(entry.module.partition(".")[0])
        for folder in (spec.submodule_search_locations or []) if spec else []:
            if (Path(folder) / "conf").is_dir():
                yield Path(folder) / "conf"


@lru_cache(maxsize=1)  # it reads the metadata of every installed package: once for all points of a sweep
def _installed() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))


def _guarded(what: str, load: object) -> None:
    assert callable(load)
    try:
        load()
    except ConfigError:
        raise
    except Exception as error:  # a plugin is foreign code: anything can happen in it
        raise ConfigError(f"{what} cannot be imported: {type(error).__name__}: {error}") from error


def _load_module(name: str) -> None:
    if name not in _named:
        console.notice(f"plugins: the code of {name} is run")
    importlib.import_module(name)
    trust(name)


def _load_file(path: Path) -> None:
    full = path.expanduser().resolve()
    if not full.is_file():
        raise ConfigError(f"plugins: there is no file {path} (looked for {full}); type plugins=[./mine.py]")
    name = f"kd_plugin_{full.stem}_{hashlib.sha256(str(full).encode()).hexdigest()[:8]}"
    _named[full.stem] = name
    code, before = full.read_bytes(), sys.modules.get(name)
    if before is not None and _code.get(name) == code:  # whoever edits it in a session means the new code
        return
    console.notice(f"plugins: the code of {full} is run")
    spec = importlib.util.spec_from_file_location(name, full, loader=_Source(name, str(full)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs, as the import statement does
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
        raise
    _code[name] = code


class _Source(SourceFileLoader):
    """Compiles the file as it is. What Python keeps compiled is told from an edited file by size and whole seconds."""

    def path_stats(self, path: Any) -> Mapping[str, Any]:
        raise OSError(path)
