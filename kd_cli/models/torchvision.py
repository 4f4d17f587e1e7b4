"""torchvision's networks by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from kd_cli.errors import suggest
from kd_cli.models.base import MODELS
from kd_cli.models.external import NOTHING, called, ready


@MODELS.register("torchvision")
def torchvision(
    num_classes: int,
    in_channels: int,
    image_size: int,
    *,
    model: str = "resnet18",
    stem: Literal["imagenet", "cifar"] = "imagenet",
    kwargs: Mapping[str, Any] = NOTHING,
    pretrained: str | None = None,
    taps: Mapping[str, str] | None = None,
) -> nn.Module:
    """A classifier of torchvision.models, by default with random weights.

    Where the images have other than 3 channels, the first convolution is made anew for them, with PyTorch's default
    initialisation. Taps: `embedding` [B, D] and `stage1`… [B, C, H, W] where the usual names (`layer1`…, `features`)
    are found; `preact1`… where a ReLU makes the stage's output.

    Args:
        model: a name of `torchvision.models.list_models(module=torchvision.models)`.
        stem: `cifar`: a residual network's first convolution is 3×3 at stride 1 and nothing is pooled behind it, so
            that images of 32 pixels reach the last stage with 4 and not with 1.
        kwargs: more arguments for its constructor.
        pretrained: a file of weights to start from, as torchvision's site has them.
        taps: more names, as `named_taps` takes them.

    Raises:
        ValueError: unknown name or argument, a network that cannot classify such images, or a file that does not fit.
    """
    from torchvision import models as zoo

    known = zoo.list_models(module=zoo)
    if model not in known:
        raise ValueError(f"model: torchvision has no classifier {model!r}{suggest(model, known)}")
    network = called(zoo.get_model, f"torchvision's {model}", {"name": model, "num_classes": num_classes, **kwargs})
    if getattr(network, "aux_logits", False):
        raise ValueError(f"kwargs: {model} gives more than one output in training; add aux_logits: false")
    _take_channels(network, in_channels)
    if stem == "cifar":
        _take_small_images(network, model)
    return ready(network, model, num_classes, (in_channels, image_size, image_size), pretrained, taps)


def _take_channels(network: nn.Module, in_channels: int) -> None:
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or first.in_channels == in_channels:
        return
    first.in_channels = in_channels
    first.weight = nn.Parameter(torch.empty(first.out_channels, in_channels // first.groups, *first.kernel_size))
    first.reset_parameters()


def _take_small_images(network: nn.Module, model: str) -> None:
    from torchvision.models import ResNet

    if not isinstance(network, ResNet):
        raise ValueError(
            f"stem: {model} has no stem for small images, residual networks have; type student.stem=imagenet"
        )
    first = nn.Conv2d(network.conv1.in_channels, network.conv1.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")  # as torchvision does
    network.conv1, network.maxpool = first, nn.Identity()
