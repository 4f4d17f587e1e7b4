"""Features of a network by name, read by hooks: the network itself needs no change."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from kd_cli.errors import suggest
from kd_cli.types import Outputs

_SIDE = re.compile(r"in|last|tokens\d*|")

# Word for all published taps of one kind → those taps' name without their number.
GROUPS = {"stages": "stage", "preacts": "preact"}
# Tap → who publishes it, where that takes an option of the network.
_WHO_HAS = {"distill_logits": "; a transformer with a distillation token has it: student.distilled=true"}


class Tapped:
    """A network that also returns named features.

    It is not a module itself, so that a frozen teacher held in it is neither trained, saved nor switched to train mode.

    Args:
        module: maps images [B, C, H, W] to logits [B, K].
        taps: names that the module publishes (`module.taps`) or paths of its submodules: `layer2` is the output of
            that submodule, `fc:in` its input; `layers.3:last`, an output with its channels last, as a map;
            `blocks.3:tokens`, a transformer's tokens [B, N, C], as a map without those that stand before the image's
            (`blocks.3:tokens5`: five of them). `stage-1` is the deepest published stage, `stage-2` the one before it;
            `stages` are all of them, `preacts` all published inputs of their last activations. `final` is the map
            whose average over positions is the embedding: the deepest stage, unless the module publishes another;
            the embedding itself where there are no stages. What a path names is copied, so that it is what the
            submodule gave even where a later layer works on that in place, as behind `bn2` of torchvision's ResNet.

    Raises:
        ValueError: a tap that the module does not have, or, when it runs, one that is no tensor.
    """

    def __init__(self, module: nn.Module, taps: Sequence[str] = ()) -> None:
        self.module = module
        self.taps = tuple(dict.fromkeys(name for tap in taps for name in expand(module, tap)))
        self.classifier = classifier_of(module)
        self._kept = _Kept()
        for tap in self.taps:
            self._hook(tap)

    def __call__(self, images: Tensor) -> Outputs:
        """One forward pass: images [B, C, H, W] → logits and features, in the order of the taps."""
        seen = self._kept.features = {}
        try:
            logits = self.module(images)
            return Outputs(logits, {tap: seen[tap] for tap in self.taps if tap in seen}, self.classifier)
        finally:
            self._kept.features = None  # or the graph of this batch would live on beside the next one's

    def _hook(self, tap: str) -> None:
        resolved = _published_path(self.module, tap)
        path, _, side = resolved.partition(":")
        modules = dict(self.module.named_modules())
        if not path or path not in modules or not _SIDE.fullmatch(side):
            group = f"{tap.rpartition('-')[0]}s"
            if group in GROUPS and not _numbered(published_taps(self.module), GROUPS[group]):
                raise _unpublished(self.module, group)
            known = [*published_taps(self.module), *filter(None, modules)]
            raise ValueError(
                f"{type(self.module).__name__} has no tap {tap!r}{_WHO_HAS.get(tap) or suggest(tap, known)}"
            )
        copied = tap == resolved and tap not in published_taps(self.module)
        if side == "in":
            modules[path].register_forward_pre_hook(partial(self._kept.input, tap, copied))
        else:
            modules[path].register_forward_hook(partial(self._kept.output, tap, side, copied))


class _Kept:
    """The features of the pass that is under way; outside of a pass the hooks keep nothing.

    All that a hook refers to: the copy of a hooked module is not tied to the network that it comes from, and the copy
    of a `Tapped` together with its network reads that network.
    """

    def __init__(self) -> None:
        self.features: dict[str, Tensor] | None = None

    def input(self, tap: str, copied: bool, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        overwritten = getattr(module, "inplace", False)  # and so would its output be what is kept
        self._keep(tap, inputs[0], copied or overwritten)

    def output(
        self, tap: str, side: str, copied: bool, _module: nn.Module, _inputs: tuple[Any, ...], output: Any
    ) -> None:
        if self.features is not None and side and isinstance(output, Tensor):
            output = as_map(output, side, tap)
        self._keep(tap, output, copied)

    def _keep(self, tap: str, feature: Any, copied: bool) -> None:
        if self.features is None:
            return
        if not isinstance(feature, Tensor):
            raise ValueError(
                f"taps: {tap} is a {type(feature).__name__} and no tensor; take a layer inside or behind it"
            )
        self.features[tap] = feature.clone() if copied else feature


def as_map(feature: Tensor, side: str, tap: str) -> Tensor:
    """[B, H, W, C], or tokens [B, N, C] of a square image → [B, C, H, W].

    Args:
        side: `last`; `tokens`: as few as can be stand before the image's, or `tokens5`: five.

    Raises:
        ValueError: another number of dimensions, or of tokens.
    """
    if feature.dim() != (4 if side == "last" else 3):
        kind = "[B, H, W, C]" if side == "last" else "tokens [B, N, C]"
        raise ValueError(f"taps: {tap} is {list(feature.shape)}, no {kind}; name it without :{side}")
    if side == "last":
        return feature.permute(0, 3, 1, 2)
    given = side.removeprefix("tokens")
    tokens = feature.shape[1]
    before = int(given) if given else tokens - math.isqrt(tokens) ** 2
    height = math.isqrt(max(tokens - before, 0))
    if height < 1 or height**2 != tokens - before:
        raise ValueError(f"taps: {tap} has {tokens} tokens, and without the first {before} they are no square image")
    return feature[:, before:].transpose(1, 2).reshape(feature.shape[0], -1, height, height)


def published_taps(module: nn.Module) -> Mapping[str, str]:
    """Canonical tap name → module path, as the network publishes them."""
    taps = getattr(module, "taps", {})
    return taps if isinstance(taps, Mapping) else {}


def classifier_of(module: nn.Module) -> nn.Module | None:
    """The layer behind the published `embedding`, which is its input; None where nothing is published."""
    path, _, side = published_taps(module).get("embedding", "").partition(":")
    return module.get_submodule(path) if side == "in" else None


def expand(module: nn.Module, tap: str) -> list[str]:
    """The taps that a name stands for: itself, or all of a group, from shallow to deep.

    Raises:
        ValueError: the module publishes nothing of that group.
    """
    if tap not in GROUPS:
        return [tap]
    found = _numbered(published_taps(module), GROUPS[tap])
    if not found:
        raise _unpublished(module, tap)
    return found


def _unpublished(module: nn.Module, group: str) -> ValueError:
    """No module of it is known to be a stage, say."""
    taps = ", ".join(published_taps(module)) or "none"
    return ValueError(
        f"{type(module).__name__} publishes no {group}; its taps: {taps}. Modules of a network of timm, torchvision or "
        f"your own can be named: student.taps={{{GROUPS[group]}:blocks.*}} (teacher.taps=… of a teacher)"
    )


def select(features: Mapping[str, Tensor], taps: Sequence[str]) -> list[Tensor]:
    """Those of the features of a pass that `taps` ask for, in their order; groups from shallow to deep."""
    names = [name for tap in taps for name in (_numbered(features, GROUPS[tap]) if tap in GROUPS else [tap])]
    return [features[name] for name in names]


def _published_path(module: nn.Module, tap: str) -> str:
    """`stage-1` and published names → module path; anything else is a path already."""
    published = published_taps(module)
    if tap == "final" and tap not in published:
        tap = "stage-1" if _numbered(published, "stage") else "embedding"
    kind, _, back = tap.rpartition("-")
    if kind in GROUPS.values() and back.isdigit():
        names = _numbered(published, kind)
        if 0 < int(back) <= len(names):
            return published[names[-int(back)]]
    return published.get(tap, tap)


def _numbered(names: Mapping[str, object], kind: str) -> list[str]:
    """`kind1`, `kind2`, … in the order of their numbers."""
    return sorted(
        (name for name in names if re.fullmatch(rf"{kind}\d+", name)), key=lambda name: int(name[len(kind) :])
    )
