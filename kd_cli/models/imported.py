"""Which functions and classes `callable: package.module.function` may name: a configuration runs no code by itself."""

from __future__ import annotations

import pkgutil
import socket
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from torch import nn

from kd_cli.plugins import trusted

_MAKERS = ("torchvision.models", "timm")
_OF_FILES = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")  # timm's, of files that may hold code


def find_callable(path: str) -> Callable[..., Any]:
    """A network of torchvision or timm, or anything in a module that `plugins=` names.

    Args:
        path: `timm.create_model`, `my_package.models.build`, `mine.build` for what is in mine.py.

    Raises:
        ValueError: any other code, nothing there, or nothing that can be called.
    """
    dotted = path.replace(":", ".")
    known = dotted if _is_within(dotted, _MAKERS) else trusted(dotted)
    if known is None and "." in dotted:
        raise _refused(path, dotted.rpartition(".")[0])
    module, _, name = (known or dotted).rpartition(".")
    try:
        found = pkgutil.resolve_name(f"{module}:{name}")
    except Exception as error:  # foreign code: anything can happen in it
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"callable: cannot import {path!r} as package.module.function: {reason}") from error
    if not callable(found):
        raise ValueError(
            f"callable: {path} is a {type(found).__name__}, not a function or class that returns a network"
        )
    _check_home(path, found)
    result: Callable[..., Any] = found
    return result


def check_arguments(path: str, arguments: Mapping[str, Any]) -> None:
    """Refuses arguments with which timm reads a file or a page that may hold code.

    Raises:
        ValueError: one of them is there.
    """
    named = [key for key in _OF_FILES if arguments.get(key)]
    named += [key for key in ("model_name", "name") if ":" in str(arguments.get(key, ""))]  # hf-hub:, local-dir:
    if named:
        raise ValueError(
            f"kwargs: {path} would read {arguments[named[0]]!r} for {named[0]}, and such files may hold code; name a "
            "file of weights with pretrained=FILE instead, which is read without running anything"
        )


def look_here_if_unreachable(path: str, arguments: Mapping[str, Any]) -> None:
    """Lets timm look for weights on this machine alone where their host cannot be reached, or it tries for a minute."""
    if not (path.startswith("timm.") and arguments.get("pretrained")) or getproxies():
        return
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((str(host.hostname), host.port or 443), timeout=3).close()
    except OSError:
        constants.HF_HUB_OFFLINE = True


def _check_home(path: str, found: Any) -> None:
    """What a module took over from another one is that one's code."""
    target = found.func if isinstance(found, partial) else found
    home = str(getattr(target, "__module__", None) or type(target).__module__)
    if not trusted(home) and not (_is_within(home, _MAKERS) and _makes_networks(target)):
        raise _refused(path, home)


def _makes_networks(target: Any) -> bool:
    if isinstance(target, type):
        return issubclass(target, nn.Module)
    name = str(getattr(target, "__name__", ""))
    if target.__module__.startswith("torchvision."):
        from torchvision import models as zoo

        return target is zoo.get_model or (name in zoo.list_models() and zoo.get_model_builder(name) is target)
    import timm

    return target is timm.create_model or (timm.is_model(name) and timm.model_entrypoint(name) is target)


def _is_within(path: str, modules: Iterable[str]) -> bool:
    return any(path.startswith(f"{module}.") for module in modules)


def _refused(path: str, module: str) -> ValueError:
    return ValueError(
        f"callable: {path} is code of {module}, and kd runs what a configuration names only where you name its module, "
        f"too; if you trust it, add plugins=[{module}] (or plugins=[./FILE.py])"
    )
