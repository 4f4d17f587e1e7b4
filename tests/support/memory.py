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
from functools import lru_cache
from typing import Any

import omegaconf.grammar_parser
import yaml

from kd_cli.config import compose


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

        path = GlobalHydra.instance().config_loader().get_search_path().get_path()
        folders = {
            entry.path.removeprefix("file://") for entry in path if not entry.path.startswith(("pkg:", "struct"))
        }
        if folders != {str(compose.conf_dir())}:
            return once(what, make)
        key = what, *map(os.environ.get, compose.VARIABLES)
        if key not in known:
            known[key] = once(what, make)
        return copy.deepcopy(known[key])

    return reference
