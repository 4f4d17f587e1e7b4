"""What `kd …` reads the same way in every test, read once for each process of tests and for those that it forks.

Every command composes a configuration, which takes longer than the small trainings of the tests: Hydra parses the
same yaml files and the same overrides again and again. What is kept here depends on nothing but its key.
`KD_TEST_ALL=1` keeps nothing, and waits for disks.
"""

from __future__ import annotations

import copy
import gc
import os
import pickle
import sys
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import omegaconf.grammar_parser
import yaml
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.defaults_list import Overrides
from hydra.core.override_parser.overrides_parser import OverridesParser

from kd_cli.config import compose
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
    OverridesParser.parse_rule = _remembered_word(OverridesParser.parse_rule)
    ConfigRepository.load_config = _remembered_file(ConfigRepository.load_config)
    config_loader_impl.create_defaults_list = _remembered_defaults(config_loader_impl.create_defaults_list)
    merge = ConfigLoaderImpl._compose_config_from_defaults_list
    ConfigLoaderImpl._compose_config_from_defaults_list = _remembered_merge(merge)


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

        if not _is_ours(GlobalHydra.instance().config_loader().repository):
            return once(what, make)
        key = what, *map(os.environ.get, compose.VARIABLES)
        if key not in known:
            known[key] = once(what, make)
        return copy.deepcopy(known[key])

    return reference


def _remembered_word(parse: Callable[..., Any]) -> Callable[..., Any]:
    """What an override says."""
    known: dict[tuple[str, str], Any] = {}

    def parsed(self: Any, text: str, rule_name: str) -> Any:
        if (text, rule_name) not in known:
            known[text, rule_name] = parse(self, text, rule_name)
        return copy.copy(known[text, rule_name])

    return parsed


def _remembered_file(load: Callable[..., Any]) -> Callable[..., Any]:
    """A yaml file of ours; nobody may change anything of it."""
    known: dict[str, Any] = {}

    def loaded(self: Any, config_path: str) -> Any:
        if not _is_ours(self) or _is_given(config_path):
            return load(self, config_path)
        if config_path not in known:
            known[config_path] = load(self, config_path)
        return known[config_path]

    return loaded


@dataclass(frozen=True)
class _Copies:
    """Files for somebody who changes what is in them."""

    repo: Any

    def load_config(self, config_path: str) -> Any:
        return pickle.loads(pickle.dumps(self.repo.load_config(config_path)))  # a tenth of what deepcopy takes

    def __getattr__(self, name: str) -> Any:
        return getattr(self.repo, name)


def _remembered_defaults(create: Callable[..., Any]) -> Callable[..., Any]:
    """Which yaml files the choices of groups lead to, whatever is set in them."""
    known: dict[Hashable, Any] = {}

    def defaults(repo: Any, config_name: Any, overrides_list: Any, **options: Any) -> Any:
        if not _is_ours(repo):
            return create(repo, config_name, overrides_list, **options)
        values = Overrides(repo, overrides_list).config_overrides
        chosen = [each.input_line for each in overrides_list if not any(each is value for value in values)]
        key = config_name, *options.items(), *chosen, *map(os.environ.get, compose.VARIABLES)
        if key not in known:
            known[key] = create(repo, config_name, overrides_list, **options)
        return replace(known[key], config_overrides=values)

    return defaults


def _remembered_merge(merge: Callable[..., Any]) -> Callable[..., Any]:
    """What yaml files give together, before anything that was typed is set in it."""
    known: dict[Hashable, bytes] = {}

    def merged(self: Any, defaults: Any, repo: Any) -> Any:
        if not _is_ours(repo) or any(_is_given(each.config_path or "") for each in defaults):
            return merge(self, defaults, _Copies(repo))
        key = tuple((each.config_path, each.package, each.is_self, each.primary) for each in defaults)
        if key not in known:
            known[key] = pickle.dumps(merge(self, defaults, _Copies(repo)))
        return pickle.loads(known[key])

    return merged


def _is_given(config_path: str) -> bool:
    """Whether a program gives it, each time something else."""
    return config_path.rpartition("/")[2].startswith(OWN)


def _is_ours(repo: Any) -> bool:
    """Whether no folder but our own is looked into."""
    folders = {source.path for source in repo.get_sources() if source.scheme() == "file"}
    return folders == {str(compose.conf_dir())}
