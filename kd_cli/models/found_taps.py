"""Taps of networks from elsewhere, found by what their modules give in one pass.

Where the features are is what timm says of its own networks (`feature_info`), or what the usual names of layers say;
which form they have, channels first or last or tokens, is seen by their shapes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kd_cli.taps import as_map

_LAYER = re.compile(r"layer[1-4]|stage[1-5]")
_FEATURES = "features"
_STACKS = (_FEATURES, "blocks", "stages", "layers", "levels", "encoder.layers", "encoder.blocks", "trunk_output")
_PARTS = 4  # stages of a network whose blocks all give maps of one shape
_UNRASTERED = "unroll"  # the layer of timm's Hiera that puts tokens in another order than rows and columns


@dataclass(frozen=True)
class Ran:
    """What a module did when it last ran.

    Args:
        given: its first input; None for activations, of which there are many.
        output: what it gave.
        version: how often the output had been overwritten by then.
    """

    given: Any
    output: Any
    version: int | None


class Watch:
    """Hooks on all modules that may be taps, while a network runs once.

    Args:
        network: a classifier.
        num_classes: K.
    """

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        self.network = network
        self.stages, self.told = _stage_candidates(network)
        modules = dict(network.named_modules())
        self.activations = [path for path, module in modules.items() if isinstance(module, nn.ReLU | nn.ReLU6)]
        self.pools = [path for path, module in modules.items() if "Pool" in type(module).__name__]
        self.heads = _head_candidates(network, num_classes)
        self.seen: dict[str, Ran] = {}
        paths = dict.fromkeys([*self.stages, *self.activations, *self.pools, "norm", *self.heads])
        self.handles = [modules[path].register_forward_hook(self._note(path)) for path in paths if path in modules]

    def _note(self, path: str) -> Callable[..., None]:
        light = path in self.activations

        def note(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            given = None if light or not inputs else inputs[0]
            self.seen[path] = Ran(given, output, getattr(output, "_version", None))

        return note

    def taps(self) -> dict[str, str]:
        """Canonical tap name → module path, of what was found."""
        stages = self._stages()
        embedding = self._embedding()
        return stages | self._preacts(stages) | self._final(stages, embedding) | embedding

    def _stages(self) -> dict[str, str]:
        """All that timm names and every `layer…` or `stage…`; of the blocks of a stack the last one at each size."""
        ran = {path: self.seen[path].output for path in self.stages if path in self.seen}
        own = getattr(self.network, "num_prefix_tokens", 0)
        forms = {path: form for path, output in ran.items() if (form := _form(output, own)) is not None}
        if hasattr(self.network, _UNRASTERED):
            forms = {path: form for path, form in forms.items() if not form.startswith("tokens")}
        shapes = {path: tuple(_map(ran[path], form).shape[1:]) for path, form in forms.items()}
        paths = list(shapes)
        if len(set(shapes.values())) == 1 and len(paths) > _PARTS and not paths[0].startswith(_FEATURES):
            paths = [paths[len(paths) * part // _PARTS - 1] for part in range(1, _PARTS + 1)]
        elif not self.told:
            paths = list({shapes[path][1:]: path for path in paths}.values())
        named = (f"{path}:{forms[path]}" if forms[path] else path for path in paths)
        return {f"stage{number}": place for number, place in enumerate(named, start=1)}

    def _preacts(self, stages: Mapping[str, str]) -> dict[str, str]:
        """The input of a ReLU inside a stage that last ran to make its output: the same tensor, untouched since."""
        found = {}
        for stage, path in stages.items():
            made = self.seen[path.partition(":")[0]]
            for name in (name for name in self.activations if name == path or name.startswith(f"{path}.")):
                ran = self.seen.get(name)
                if ran is not None and ran.output is made.output and ran.version == made.version:
                    found[stage.replace("stage", "preact")] = f"{name}:in"
        return found

    def _embedding(self) -> dict[str, str]:
        """The input of the layer that gave the logits, or part of them, if it is [B, D]."""
        for path in self.heads:
            given = self.seen[path].given if path in self.seen else None
            if isinstance(given, Tensor) and given.dim() == 2:
                return {"embedding": f"{path}:in"}
        return {}

    def _final(self, stages: Mapping[str, str], embedding: Mapping[str, str]) -> dict[str, str]:
        """The map whose average is the embedding, where that is not the deepest stage."""
        if not stages or not embedding:
            return {}
        average = self.seen[embedding["embedding"].removesuffix(":in")].given
        deepest, _, side = list(stages.values())[-1].partition(":")
        if average.is_meta or _averages(self.seen[deepest].output, side, average):
            return {}
        for path in (path for path in self.pools if path in self.seen):
            if _averages(self.seen[path].given, "", average):
                return {"final": f"{path}:in"}
        normalised = self.seen["norm"].output if "norm" in self.seen else None
        form = _form(normalised, 0)
        if form is None or not _averages(normalised, form, average):
            return {}
        return {"final": f"norm:{form}" if form else "norm"}


def _stage_candidates(network: nn.Module) -> tuple[list[str], bool]:
    """Paths from shallow to deep, and whether each of them is a stage rather than a block of one."""
    modules = dict(network.named_modules())
    layers = [name for name, _ in network.named_children() if _LAYER.fullmatch(name)]
    if layers or _FEATURES in modules:
        return layers or _inside(modules, _FEATURES), bool(layers)
    info = getattr(network, "feature_info", ())
    info = getattr(info, "info", info)
    told = [each.get("module") for each in info if isinstance(each, Mapping)] if isinstance(info, Sequence) else []
    if told := [path for path in dict.fromkeys(told) if path and path in modules]:
        return told, True
    return next(filter(None, (_inside(modules, stack) for stack in _STACKS)), []), False


def _inside(modules: Mapping[str, nn.Module], stack: str) -> list[str]:
    return [f"{stack}.{name}" for name, _ in modules[stack].named_children()] if stack in modules else []


def _head_candidates(network: nn.Module, num_classes: int) -> list[str]:
    """What timm says is the classifier (of several the first), then the last linear layer if it has K outputs."""
    ask = getattr(network, "get_classifier", None)
    said: Any = ask() if callable(ask) else None
    said = said[0] if isinstance(said, tuple | list) and said else said
    paths = [path for path, module in network.named_modules() if module is said and path]
    linear = [(path, module) for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    paths += [path for path, module in linear[-1:] if module.out_features == num_classes]
    return list(dict.fromkeys(paths))


def _form(output: Any, own: int) -> str | None:
    """As which side of `Tapped` a module's output is a map; empty: it is one; None: it can be none.

    Args:
        own: how many tokens the network says are no part of the image.
    """
    shape = tuple(output.shape) if isinstance(output, Tensor) else ()
    if len(shape) == 4:
        return "" if shape[2] == shape[3] else "last" if shape[1] == shape[2] else None
    if len(shape) != 3:
        return None
    tokens = shape[1]
    possible = (own, tokens - math.isqrt(tokens) ** 2)
    return next((f"tokens{n}" for n in possible if tokens > n and math.isqrt(tokens - n) ** 2 == tokens - n), None)


def _map(output: Tensor, form: str) -> Tensor:
    return as_map(output, form, "") if form else output


def _averages(feature: Any, form: str, average: Tensor) -> bool:
    if not isinstance(feature, Tensor) or feature.dim() < 3 or (feature.dim() == 3 and not form):
        return False
    mean = _map(feature, form).mean(dim=(2, 3))
    return mean.shape == average.shape and torch.allclose(mean, average, rtol=1e-3, atol=1e-5)
