"""timm's networks by name; an extra of kd: `pip install 'kd-cli[timm]'`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from torch import nn

from kd_cli.models.base import MODELS
from kd_cli.models.external import NOTHING, external


@MODELS.register("timm")
def timm(
    num_classes: int,
    in_channels: int,
    image_size: int,
    *,
    model: str = "resnet18",
    kwargs: Mapping[str, Any] = NOTHING,
    pretrained: str | None = None,
    taps: Mapping[str, str] | None = None,
) -> nn.Module:
    """A network of timm with a classifier for K classes, by default with random weights: `external` of `create_model`.

    It is told the images' channels (`in_chans`) and, where it is made for one size alone, their size (`img_size`), to
    which timm resamples its position embeddings.

    Args:
        model: a name of `timm.list_models()`, with or without a tag of `timm.list_pretrained()`.
        kwargs: more arguments for it; `pretrained: true` downloads timm's weights.
        pretrained: a file of weights to start from.
        taps: more names, as `named_taps` takes them.

    Raises:
        ValueError: timm is missing or has no such network, tag or weights; otherwise as `external`.
    """
    config = _config(model, bool(kwargs.get("pretrained")))
    told = {} if in_channels == 3 else {"in_chans": in_channels}
    if config.fixed_input_size and config.input_size[-1] != image_size:
        told["img_size"] = image_size
    arguments = {"model_name": model, **told, **kwargs}
    return external(
        *(num_classes, in_channels, image_size),
        callable="timm.create_model",
        kwargs=arguments,
        pretrained=pretrained,
        taps=taps,
    )


def _config(model: str, downloads: bool) -> Any:
    """What timm says of a network and its weights."""
    try:
        import timm as zoo
    except ImportError as error:
        raise ValueError("model: timm is not installed; type pip install 'kd-cli[timm]'") from error
    try:
        config = zoo.get_pretrained_cfg(model)
    except RuntimeError:
        config = None
    if config is None:
        raise ValueError(f"model: timm has no network {model!r}{_near(model, zoo.list_models())}")
    if downloads and not config.has_weights:
        raise ValueError(f"kwargs.pretrained: timm has no weights of {model}{_near(model, zoo.list_pretrained())}")
    return config


def _near(model: str, names: Sequence[str]) -> str:
    """The nearest of more than a thousand names."""
    return f"; near it are {', '.join(get_close_matches(model, names, 3, 0.4))}"
