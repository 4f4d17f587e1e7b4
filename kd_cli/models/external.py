"""Networks from elsewhere: anything importable (timm's, yours) by its dotted path."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from kd_cli.errors import suggest
from kd_cli.models.base import MODELS
from kd_cli.models.found_taps import Watch
from kd_cli.models.imported import check_arguments, find_callable, look_here_if_unreachable
from kd_cli.models.pretrained import load_pretrained
from kd_cli.taps import GROUPS

NOTHING: Mapping[str, Any] = MappingProxyType({})


@MODELS.register("external")
def external(
    num_classes: int,
    in_channels: int,
    image_size: int,
    *,
    callable: str | None = None,
    kwargs: Mapping[str, Any] = NOTHING,
    pretrained: str | None = None,
    taps: Mapping[str, str] | None = None,
) -> nn.Module:
    """A function or class of torchvision, timm or a module that `plugins=` names, which returns a classifier.

    It is called with those of `num_classes`, `in_channels` and `image_size` that its signature names (with
    `num_classes` also if it ends in `**kwargs`), and with `kwargs`, which win.
    Taps are the network's own `taps`, or those found as for `torchvision`.

    Args:
        callable: `package.module.function`, for example `timm.create_model`.
        kwargs: more arguments for it.
        pretrained: a file of weights to start from.
        taps: more names, as `named_taps` takes them.

    Raises:
        ValueError: code that the user has not named, nothing callable there, arguments that it does not take, no
            `nn.Module` returned, logits that are not [B, K], or a file that does not fit.
    """
    if callable is None:
        raise ValueError(
            "callable: which function makes the network? Type student.callable=package.module.function "
            "(teacher.callable=… for a teacher)"
        )
    function = find_callable(callable)
    check_arguments(callable, kwargs)
    look_here_if_unreachable(callable, kwargs)
    injected = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    network = called(function, callable, {**_taken(function, injected), **kwargs})
    return ready(network, callable, num_classes, (in_channels, image_size, image_size), pretrained, taps)


def _taken(function: Callable[..., Any], injected: Mapping[str, int]) -> dict[str, int]:
    """Those of `injected` that `function` takes."""
    parameters = inspect.signature(function).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    # **kwargs hides what a model function passes on; only num_classes is the same word everywhere
    return {key: n for key, n in injected.items() if key in parameters or (open_ended and key == "num_classes")}


def called(function: Callable[..., Any], what: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The network that `function` returns; a ValueError where it takes other arguments or returns none."""
    try:
        network = function(**arguments)
    except TypeError as error:
        raise ValueError(
            f"kwargs: {what} cannot be called with {', '.join(arguments) or 'nothing'}: {error}"
        ) from error
    except OSError as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise ValueError(
            f"kwargs: {what} cannot get its weights ({reason}); download their file where there is a network, and type "
            "student.pretrained=FILE (teacher.pretrained=FILE for a teacher) instead"
        ) from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"{what} returned a {type(network).__name__}, not an nn.Module")
    return network


def ready(
    network: nn.Module,
    what: str,
    num_classes: int,
    image_shape: tuple[int, int, int],
    pretrained: str | None,
    taps: Mapping[str, str] | None,
) -> nn.Module:
    """`network` with its taps and weights; a ValueError where it or the file does not fit, or a tap matches nothing."""
    network = _published(network, what, num_classes, image_shape)
    if taps:
        network.taps = named_taps(network, taps)  # type: ignore[assignment]
    if pretrained is not None:
        load_pretrained(network, pretrained, num_classes)
    return network


def named_taps(network: nn.Module, taps: Mapping[str, str]) -> dict[str, str]:
    """The network's published taps with those that the user names; the user's win.

    Args:
        taps: a name and a module path (`embedding: head:in`), or a kind and a pattern, whose matches are numbered in
            the network's order: `stage: blocks.*` makes `stage1`, `stage2`, …; `*` is any part of a name without dots.

    Raises:
        ValueError: a pattern that matches no module.
    """
    published = dict(getattr(network, "taps", {}))
    modules = [name for name, _ in network.named_modules() if name]
    for name, place in taps.items():
        path, colon, side = place.partition(":")
        pattern = re.compile(re.escape(path).replace(r"\*", "[^.]*"))
        found = [f"{module}{colon}{side}" for module in modules if pattern.fullmatch(module)]
        if not found:
            raise ValueError(f"taps: {name}: {place!r} matches no module{suggest(path, modules)}")
        if name in GROUPS.values():
            published = {tap: old for tap, old in published.items() if not re.fullmatch(rf"{name}\d+", tap)}
            published |= {f"{name}{number}": module for number, module in enumerate(found, start=1)}
        else:
            published[name] = found[0]
    return published


def _published(network: nn.Module, what: str, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """`network` with taps, after it was seen to classify a batch of 2."""
    pixels = math.prod(image_shape)
    images = (torch.arange(2 * pixels) * 0.618 % 1).reshape(2, *image_shape)  # no two alike, and nothing is drawn
    watch = Watch(network, num_classes)
    try:
        logits = _tried(network, images)
    except Exception as error:  # foreign code: anything can happen in it
        own = getattr(network, "image_size", None) or getattr(network, "default_cfg", {}).get("input_size", [0])[-1]
        typed = f"; type dataset.image_size={own}" if own and own != image_shape[-1] else ""
        reason = f"{type(error).__name__}: {error}{typed}"
        raise ValueError(f"{what} cannot take images {list(images.shape)}: {reason}") from error
    finally:
        for handle in watch.handles:
            handle.remove()
    shape = list(getattr(logits, "shape", [])) or type(logits).__name__
    if shape != [2, num_classes]:
        raise ValueError(f"{what} gave {shape} for images {list(images.shape)}, not logits {[2, num_classes]}")
    if not hasattr(network, "taps"):
        network.taps = watch.taps()  # type: ignore[assignment]
    return network


def _tried(network: nn.Module, images: torch.Tensor) -> Any:
    """The output for `images` in eval mode."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        with torch.no_grad():
            return network.eval()(images)
    finally:
        for module, training in modes:
            module.training = training
