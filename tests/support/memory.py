"""What `kd …` reads the same way in every test, read once for each process of tests and for those that it forks.

Every command composes a configuration, which takes longer than the small trainings of the tests: Hydra parses the
same yaml files and the same overrides again and again. What is kept here depends on nothing but its key.
`KD_TEST_ALL=1` keeps nothing, and waits for disks.
"""

from __future__ import annotations

import copy
import gc
import os
import sys
from collections.abc import Callable, Hashable
from contextlib import suppress
from functools import lru_cache
from typing import Any

import omegaconf.grammar_parser
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.errors import HydraException

from kd_cli.config import compose
from kd_cli.config.alike import Kinds, Pattern, is_settled
from kd_cli.registry import OWN


def remember() -> None:
    """From now on, in this process."""
    gc.set_threshold(50_000, 20, 50)  # a collection walks over all of PyTorch
    os.fsync = _look  # type: ignore[assignment]  # power does not fail here, and processes that die lose nothing by it
    yaml.load = _remembered_yaml(yaml.load)
    plain = omegaconf.grammar_parser.parse
    parse = lru_cache(maxsize=10_000)(plain)
    for module in [module for name, module in sys.modules.items() if name.startswith("omegaconf")]:
        if getattr(module, "parse", None) is plain:
            module.parse = parse  # type: ignore[attr-defined]
    compose.once = _remembered_reference(compose.once)
    compose._there = {}
    ConfigLoaderImpl.load_configuration = _remembered_loading(ConfigLoaderImpl.load_configuration)


def _look(file: int) -> None:
    """`os.fsync` without the wait; an error for what is no file."""
    os.fstat(file)


def _remembered_yaml(load: Callable[..., Any]) -> Callable[..., Any]:
    known: dict[tuple[Any, str], Any] = {}

    def load_once(stream: Any, Loader: type) -> Any:
        text = stream.read() if hasattr(stream, "read") else stream
        key = text, f"{Loader.__module__}.{Loader.__qualname__}"  # OmegaConf makes a class of this name each time
        if key not in known:
            if hasattr(stream, "seek"):
                stream.seek(0)  # what is wrong in it is said with its name
            known[key] = load(stream, Loader=Loader)
        return copy.deepcopy(known[key])

    return load_once


def _remembered_reference(once: Callable[..., Any]) -> Callable[..., Any]:
    """What our own yaml files say of a choice; others may have been changed meanwhile."""
    known: dict[Hashable, Any] = {}

    def reference(what: Hashable, make: Callable[[], Any]) -> Any:
        from hydra.core.global_hydra import GlobalHydra

        if not _is_ours(GlobalHydra.instance().config_loader()):
            return once(what, make)
        key = what, *map(os.environ.get, compose.VARIABLES)
        if key not in known:
            known[key] = once(what, make)
        return copy.deepcopy(known[key])

    return reference


def _remembered_loading(load: Callable[..., Any]) -> Callable[..., Any]:
    """What Hydra composes of our own yaml files, as `kd_cli.config.alike` makes one of another; see its tests."""
    known: dict[Hashable, Kinds[Pattern]] = {}

    def loaded(self: Any, config_name: Any, overrides: Any, *more: Any, **options: Any) -> Any:
        given = any(word.partition("=")[2].startswith(OWN) for word in overrides)  # by a program, each time others
        if given or not _is_ours(self):
            return load(self, config_name, overrides, *more, **options)
        key = config_name, more, *options.items(), *map(os.environ.get, compose.VARIABLES)
        kinds = known.setdefault(key, Kinds(self))
        kind = kinds.kind(overrides)
        pattern = kinds.take(kind)
        if pattern is not None:
            kinds.keep(kind, pattern)
            with suppress(HydraException):  # which says it better of the words as they were typed
                return pattern.config(overrides)
        config = load(self, config_name, overrides, *more, **options)
        if is_settled(config, kind):
            kinds.keep(kind, Pattern(tuple(overrides), copy.deepcopy(config), {}))
        return config

    return loaded


def _is_ours(loader: Any) -> bool:
    """Whether no folder but our own is looked into."""
    path = loader.get_search_path().get_path()
    folders = {entry.path.removeprefix("file://") for entry in path if not entry.path.startswith(("pkg:", "struct"))}
    return folders == {str(compose.conf_dir())}
