"""What a network is to `kd`.

A model is a callable that returns an `nn.Module` whose forward maps images [B, C, H, W] to logits [B, K]. The program
supplies `num_classes` (K), `in_channels` (C), `image_size` (H = W, pixels) and `image_shape` ((C, H, W)) where the
callable takes them; everything else in its signature is an option of its yaml. Beside them a network's
options may say how it is shown the images: `VIEW`.

A model publishes where its features are as an attribute `taps`: canonical name → module path, as `kd_cli.taps` reads
it. `stage1`, `stage2`, … are the feature maps [B, C, H, W] from shallow to deep, `embedding` the classifier's input;
`preact1`, `preact2`, … are what the last activation of each stage is given, where a stage ends with one; `final` is the
map that the embedding is the average of, where another layer stands between the deepest stage and it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from kd_cli.models import AS_DATA, VIEW
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


def check_model(options: Any, *, where: str) -> None:
    """Checks a network's options. Raises ConfigError: as `MODELS.check`, or as `build_model` of how it is shown."""
    if not isinstance(options, Mapping):
        MODELS.check(options, where=where)  # which says so
    MODELS.check(own_options(options), where=where)
    if seen := view_options(options):
        from kd_cli.models.view import view_of

        view_of(seen, where)


def build_model(options: Mapping[str, Any], spec: DataSpec, *, where: str) -> nn.Module:
    """The network that options describe, for images as `spec` has them; it shows itself those as its options say.

    Raises:
        ConfigError: as `MODELS.build`; numbers for other channels than the images', a size that is none, or one that
            the network cannot take.
    """
    own = own_options(options)
    if not (seen := view_options(options)):
        return MODELS.build(own, where=where, **model_shape(spec))
    from kd_cli.models.view import show, view_of

    view = view_of(seen, where)
    channels, *sides = spec.image_shape
    height, width = view.sides or sides
    shape = model_shape(replace(spec, image_shape=(channels, height, width)))
    return show(MODELS.build(own, where=where, **shape), view, spec, where)


def own_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Without those that say how the network is shown the images."""
    return {key: value for key, value in options.items() if key not in VIEW}


def view_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that say how the network is shown the images, where they differ from how all see them."""
    said = {key: options.get(key) for key in VIEW}
    return {key: value for key, value in said.items() if value is not None and value != AS_DATA}
