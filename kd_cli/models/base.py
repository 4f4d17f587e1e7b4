"""What a network is to `kd`.

A model is a callable that returns an `nn.Module` whose forward maps images [B, C, H, W] to logits [B, K]. The program
supplies `num_classes` (K), `in_channels` (C), `image_size` (H = W, pixels) and `image_shape` ((C, H, W)) where the
callable takes them; everything else in its signature is an option of its yaml.

A model publishes where its features are as an attribute `taps`: canonical name → module path, as `kd_cli.taps` reads
it. `stage1`, `stage2`, … are the feature maps [B, C, H, W] from shallow to deep, `embedding` the classifier's input;
`preact1`, `preact2`, … are what the last activation of each stage is given, where a stage ends with one; `final` is the
map that the embedding is the average of, where another layer stands between the deepest stage and it.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from kd_cli.registry import Registry
from kd_cli.types import DataSpec

_SHAPE = ("num_classes", "in_channels", "image_size", "image_shape")
MODELS: Registry[nn.Module] = Registry("model", "kd_cli.models", injected=_SHAPE)


def count_parameters(model: nn.Module) -> int:
    """How many numbers the model learns."""
    return sum(parameter.numel() for parameter in model.parameters())


def model_shape(spec: DataSpec) -> dict[str, Any]:
    """What a network must know of the data: K classes, C channels, H = W pixels, or both sides."""
    channels, height, _ = spec.image_shape
    return dict(zip(_SHAPE, (spec.num_classes, channels, height, spec.image_shape), strict=True))
