"""One network per yaml, and what its published taps give."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from kd_cli.models.base import MODELS
from kd_cli.plugins import trust

CONF = Path(__file__).parents[2] / "conf"
STUDENTS = sorted(path.stem for path in (CONF / "student").glob("*.yaml"))
INJECTED = ("num_classes", "in_channels", "image_size")
OURS = [name for name in MODELS.names() if name not in ("external", "torchvision", "timm", "onnx")]
trust(__name__)
MNIST, CIFAR = (1, 28, 28), (3, 32, 32)


def options(student: str) -> dict[str, Any]:
    """The yaml's own options; external's callable, null there, is a function of this file, tiny."""
    loaded: dict[str, Any] = yaml.safe_load((CONF / "student" / f"{student}.yaml").read_text(encoding="utf-8"))
    needed = {"external": {"callable": f"{__name__}.tiny"}, "timm": {"kwargs": {"zero_init_last": False}}}
    return loaded | needed.get(student, {})  # timm's blocks begin with zeros, through which no gradient goes


def build(
    given: Mapping[str, Any], shape: tuple[int, int, int] = CIFAR, num_classes: int = 10, seed: int = 0
) -> nn.Module:
    torch.manual_seed(seed)
    return MODELS.build(given, where="student", num_classes=num_classes, in_channels=shape[0], image_size=shape[1])


@cache
def built(student: str) -> nn.Module:
    """One network per yaml for the tests that leave it as it is: 3×32×32, 10 classes, eval mode."""
    return build(options(student)).eval()


def images(batch: int, shape: tuple[int, int, int] = CIFAR) -> Tensor:
    return torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0))


def tapped(network: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    """Every published feature, by hooks of this test; of inputs a copy, which no activation overwrites."""
    seen: dict[str, Tensor] = {}
    handles = []
    for tap, place in network.taps.items():
        path, _, side = place.partition(":")
        module = network.get_submodule(path)
        if side == "in":
            handles.append(module.register_forward_pre_hook(lambda _, x, tap=tap: seen.update({tap: x[0].clone()})))
        elif side:
            own = int(side.removeprefix("tokens"))
            handles.append(
                module.register_forward_hook(lambda _, __, y, tap=tap, n=own: seen.update({tap: square(y, n)}))
            )
        else:
            handles.append(module.register_forward_hook(lambda _, __, y, tap=tap: seen.update({tap: y})))
    network(batch)
    for handle in handles:
        handle.remove()
    return seen


def square(tokens: Tensor, own: int) -> Tensor:
    """[B, own + S², C] → [B, C, S, S], token by token."""
    side = round((tokens.shape[1] - own) ** 0.5)
    rows = [torch.stack([tokens[:, own + side * y + x] for x in range(side)], dim=2) for y in range(side)]
    return torch.stack(rows, dim=2)


def tiny(num_classes: int, in_channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
    )
