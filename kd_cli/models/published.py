"""What published weights say of the images that they were made for: torchvision's and timm's.

Nothing is downloaded: both libraries hold these facts.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kd_cli import console
from kd_cli.models import AS_DATA, VIEW

_KNOWN = ("bilinear", "bicubic")


def fill_in(said: dict[str, Any], options: Mapping[str, Any], where: str, data: Mapping[str, Any]) -> None:
    """Puts into `said` what the weights say and the user does not, with a notice.

    Args:
        said: a network's `VIEW`, None where nothing is said.
        options: of the network.
        data: the options of the data. Grey images have no use for the means of three colours.
    """
    weights, facts = published(options)
    found = {key: facts[key] for key in VIEW if said[key] is None and facts.get(key) is not None}
    grey = [key for key in ("mean", "std") if key in found and data.get("mode") == "gray"]
    found = {key: value for key, value in found.items() if key not in grey}
    if said["image_size"] is not None:  # then their interpolation belongs to no size of theirs
        found.pop("interpolation", None)
    if not found:
        return
    said.update(found)
    shown = " ".join(f"{where}.{key}={value}".replace(" ", "") for key, value in found.items())
    crop_pct = data.get("crop_pct")
    other = facts["crop_pct"] not in (None, crop_pct) and crop_pct is not None
    left = f"; {' and '.join(grey)}, of three colours, stay as grey images have them" if grey else ""
    crop = f"; they were tested with dataset.crop_pct={facts['crop_pct']:g}" if other else ""
    console.notice(
        f"{where}: the weights {weights} were made for {shown}, and the network is shown the images so{left}{crop}; "
        f"to show them as the data are, type {' '.join(f'{where}.{key}={AS_DATA}' for key in found if key != VIEW[-1])}"
    )


def published(options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of the weights that a network's options ask for, and `VIEW` and `crop_pct` of them; empty: unknown."""
    kwargs = options.get("kwargs")
    kwargs = kwargs if isinstance(kwargs, Mapping) else {}
    path, file = str(options.get("callable", "")).replace(":", "."), options.get("pretrained")
    module, _, function = path.rpartition(".")
    if options.get("name") == "torchvision":
        return _of_torchvision(str(options.get("model", "resnet18")), kwargs.get("weights"), file)
    if options.get("name") == "external" and module.startswith("torchvision.models"):
        return _of_torchvision(str(kwargs.get("name", function)), kwargs.get("weights"), file)
    if options.get("name") == "timm":
        return _of_timm(str(options.get("model", "resnet18")), kwargs.get("pretrained"), file)
    if options.get("name") == "external" and module.startswith("timm"):
        return _of_timm(str(kwargs.get("model_name", function)), kwargs.get("pretrained"), file)
    return "", {}


def _of_torchvision(model: str, weights: Any, file: Any) -> tuple[str, dict[str, Any]]:
    """Of the weights by their name, or of the file that is called as torchvision's site calls it."""
    from torchvision import models as zoo

    if model not in zoo.list_models() or not (weights or file):
        return "", {}
    named, stem = str(weights).rpartition(".")[2], Path(str(file)).stem
    for each in (zoo.get_model_weights(model).DEFAULT, *zoo.get_model_weights(model)):
        if named == each.name or (named == "DEFAULT" and weights) or stem == Path(each.url).stem:
            return str(each), _transforms(each.transforms())
    return "", {}


def _transforms(made: Any) -> dict[str, Any]:
    (size, *_), (resized, *_) = made.crop_size, made.resize_size
    return {
        "mean": list(made.mean),
        "std": list(made.std),
        "image_size": size,
        "interpolation": made.interpolation.value if made.interpolation.value in _KNOWN else None,
        "crop_pct": round(size / resized, 3),
    }


def _of_timm(model: str, asked: Any, file: Any) -> tuple[str, dict[str, Any]]:
    """Of the weights that timm would load, or of those that a tag in the model's name says the file is."""
    if not (asked or (file and "." in model)) or find_spec("timm") is None:  # its making will say that it is missing
        return "", {}
    import timm

    try:
        config = timm.get_pretrained_cfg(model)
    except RuntimeError:  # no such network or tag, as its making will say
        return "", {}
    if config is None or not config.has_weights:
        return "", {}
    _, height, width = config.input_size
    return ".".join(filter(None, (config.architecture, config.tag))), {
        "mean": list(config.mean),
        "std": list(config.std),
        "image_size": height if height == width else [height, width],
        "interpolation": config.interpolation if config.interpolation in _KNOWN else None,
        "crop_pct": config.crop_pct,
    }
