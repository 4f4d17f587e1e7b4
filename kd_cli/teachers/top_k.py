"""The highest logits of each image and the log-sum-exp of all: small enough to be kept for hundreds of epochs.

B images, C classes, K kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kd_cli.losses.common import at_least_float32
from kd_cli.teachers.outputs import Kept, Layout
from kd_cli.types import Outputs

_LEAST_TAIL = 2.0**-24  # half of what float32 can tell from 1: a tail of nothing would be a logit of -inf
_TEMPERATURES = (1, 4)  # of the costs


class TopK:
    """Keeps of logits [B, C] the K highest, each as its distance from the log-sum-exp of all, and that.

    Distances are log-probabilities: rounded to 16 bits they are still exact relative to the probability that is
    missing to 1. The logits that come back have the K classes where they were, and all others at one value such that
    the log-sum-exp, at temperature 1, is the teacher's. At a higher temperature the others together have at least the
    share that the teacher gives them, at a lower one at most (x^(1/T) is concave, or convex, in the probability).

    Args:
        tap: the columns' name.
        logits: an example.
        k: 1 ≤ K < C.
        dtype: of the distances; None: the logits' own, float32 at least.

    Raises:
        ValueError: K is not below C.
    """

    def __init__(self, tap: str, logits: Tensor, k: int, dtype: torch.dtype | None = None) -> None:
        classes = logits.shape[1]
        if not 0 < k < classes:
            raise ValueError(f"{k} of {classes} classes are not possible; type a number below, or null to keep all")
        self._tap, self._k, self._classes, self._given = tap, k, classes, logits.dtype
        self._dtype = dtype or at_least_float32(logits).dtype
        # Unsigned in two bytes; as torch.uint16 it could not be gathered.
        self._index = torch.int16 if classes <= 2**16 else torch.int32
        self.about: Mapping[str, Any] = {"tap": tap, "top_k": k, "classes": classes, "given": str(logits.dtype)}

    def encode(self, output: Tensor) -> dict[str, Tensor]:
        logits = at_least_float32(output)
        order = logits.sort(dim=1, descending=True, stable=True).indices[:, : self._k]  # of equal ones the first
        distances = logits.log_softmax(dim=1).gather(1, order)
        return {
            f"{self._tap} log-sum-exp": logits.logsumexp(dim=1, keepdim=True),
            f"{self._tap} distances": distances.to(self._dtype),
            f"{self._tap} classes": order.to(self._index),
        }

    def decode(self, columns: Mapping[str, Tensor]) -> Tensor:
        level = columns[f"{self._tap} log-sum-exp"]
        distances = columns[f"{self._tap} distances"].to(level.dtype)
        order = columns[f"{self._tap} classes"].long()
        order = order & 0xFFFF if self._index == torch.int16 else order
        others = level + self._tail(distances).log() - math.log(self._classes - self._k)
        logits = others.expand(-1, self._classes).scatter(1, order, level + distances)
        return logits.to(self._given)

    def _tail(self, distances: Tensor) -> Tensor:
        """The probability of all classes that are not kept, [B, 1]."""
        return (1 - distances.exp().sum(dim=1, keepdim=True)).clamp(min=_LEAST_TAIL)

    def tail_mass(self, output: Tensor) -> float:
        """The probability of the classes that are not kept, mean over logits [B, C]."""
        return float(self._tail(self.encode(output)[f"{self._tap} distances"].float()).mean())


def costs(said: Outputs, layout: Layout, kept: Kept) -> dict[str, Any]:
    """What is lost of what a teacher says when it is kept, as plain JSON values.

    Returns:
        `top_k` and `dtype` of `kept`, `images` B, `classes` C; `kl_1` and `kl_4`: the divergence, in nats, of what is
        kept from what was said at these temperatures; `tail_mass` as `TopK` has it; `largest_difference` of the logits
        and of each feature that is rounded.
    """
    left = layout.through(said)
    images, classes = said.logits.shape
    facts: dict[str, Any] = {"top_k": kept.top_k, "dtype": kept.dtype, "images": images, "classes": classes}
    for temperature in _TEMPERATURES:
        true, kept_as = (at_least_float32(each.logits / temperature).log_softmax(dim=1) for each in (said, left))
        facts[f"kl_{temperature}"] = max(0.0, float((true.exp() * (true - kept_as)).sum(dim=1).mean()))
    if kept.top_k is not None:
        facts["tail_mass"] = layout.codings[0].tail_mass(said.logits)  # type: ignore[attr-defined]
    if kept.dtype is not None:
        pairs = {tap: (feature, left.features[tap]) for tap, feature in said.features.items()}
        rounded = pairs if kept.top_k is not None else {"logits": (said.logits, left.logits), **pairs}
        facts["largest_difference"] = {tap: float((one - other).abs().max()) for tap, (one, other) in rounded.items()}
    return facts


def told(facts: Mapping[str, Any]) -> str:
    """What the costs are, in a line."""
    number = f" as {facts['dtype']}" if facts["dtype"] else ""
    what = f"the {facts['top_k']} highest of {facts['classes']:,} logits" if facts["top_k"] else "rounded"
    parts = [f"KL {facts[f'kl_{each}']:.2g} at temperature {each}" for each in _TEMPERATURES]
    if "tail_mass" in facts:
        parts.insert(0, f"the other classes have {facts['tail_mass']:.2g} of the probability")
    parts += [f"{tap} is off by {value:.2g} at most" for tap, value in facts.get("largest_difference", {}).items()]
    return f"teacher    answers are kept approximately, {what}{number}: on {facts['images']} images " + ", ".join(parts)
