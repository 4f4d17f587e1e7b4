"""Features of a network by name, read by hooks: the network itself needs no change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from kd_cli.errors import suggest
from kd_cli.types import Outputs


class Tapped:
    """A network that also returns named features.

    It is not a module itself, so that a frozen teacher held in it is neither trained, saved nor switched to train mode.

    Args:
        module: maps images [B, C, H, W] to logits [B, K].
        taps: names that the module publishes (`module.taps`) or paths of its submodules: `layer2` is the output of
            that submodule, `fc:in` its input.

    Raises:
        ValueError: a tap that the module does not have.
    """

    def __init__(self, module: nn.Module, taps: Sequence[str] = ()) -> None:
        self.module = module
        self._features: dict[str, Tensor] = {}
        for tap in taps:
            self._hook(tap)

    def __call__(self, images: Tensor) -> Outputs:
        """One forward pass: images [B, C, H, W] → logits and features."""
        try:
            logits = self.module(images)
            return Outputs(logits, dict(self._features))
        finally:
            self._features.clear()  # or the graph of this batch would live on beside the next one's

    def _hook(self, tap: str) -> None:
        path, _, side = published_taps(self.module).get(tap, tap).partition(":")
        modules = dict(self.module.named_modules())
        if not path or path not in modules or side not in ("", "in"):
            known = [*published_taps(self.module), *filter(None, modules)]
            raise ValueError(f"{type(self.module).__name__} has no tap {tap!r}{suggest(tap, known)}")
        if side == "in":
            modules[path].register_forward_pre_hook(lambda _, inputs: self._keep(tap, inputs[0]))
        else:
            modules[path].register_forward_hook(lambda _, __, output: self._keep(tap, output))

    def _keep(self, tap: str, feature: Tensor) -> None:
        self._features[tap] = feature


def published_taps(module: nn.Module) -> Mapping[str, str]:
    """Canonical tap name → module path, as the network publishes them."""
    taps = getattr(module, "taps", {})
    return taps if isinstance(taps, Mapping) else {}
