"""Which taps are found in timm's networks: a small one of each family, with random weights.

    python -m benchmarks.timm_taps [FAMILY …]

Prints a Markdown table: the stages, with the side of `kd_cli.taps.Tapped` by which they are maps; whether each of them
is what timm's own `forward_intermediates` gives; `final`; and the embedding.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from kd_cli.errors import KDError
from kd_cli.models.base import MODELS, count_parameters
from kd_cli.taps import Tapped, published_taps

_SMALL = (
    "test_",
    "atto",
    "pico",
    "femto",
    "nano",
    "xxt",
    "xxs",
    "_xs",
    "mini",
    "tiny",
    "_s0",
    "_t0",
    "_b0",
    "18",
    "small",
    "_s",
)
_TRIED = 5  # names of a family, of which the one with the fewest parameters is taken
_LARGE = 100e6  # parameters, from which on a network has shapes and no numbers


def main(families: Iterable[str]) -> None:
    import timm

    warnings.simplefilter("ignore")
    print("| family of timm | network | stages | as timm's own | `final` | `embedding` |\n|---|---|---|---|---|---|")
    for family in families or timm.list_modules():
        name, size, parameters = _smallest(family)
        row = _row(name, size, parameters)
        print(f"| {family} | {name} | {' | '.join(row)} |", flush=True)


def _smallest(family: str) -> tuple[str, int, int]:
    """Name, pixels of a side, parameters."""
    import timm

    def order(name: str) -> tuple[int, int]:
        return next((i for i, word in enumerate(_SMALL) if word in name), len(_SMALL)), len(name)

    found = []
    for name in sorted(timm.list_models(module=family), key=order)[:_TRIED]:
        with torch.device("meta"):
            network = timm.create_model(name)
        found.append((count_parameters(network), name, network.default_cfg["input_size"][-1]))
    parameters, name, size = min(found)
    return name, size, parameters


def _row(name: str, size: int, parameters: int) -> list[str]:
    options = {"name": "external", "callable": "timm.create_model", "kwargs": {"model_name": name}}
    device = torch.device("meta" if parameters > _LARGE else "cpu")
    try:
        with device:
            network = MODELS.build(options, where="student", num_classes=10, in_channels=3, image_size=size).eval()
            taps = published_taps(network)
            stages = {tap: place for tap, place in taps.items() if tap.startswith("stage")}
            with torch.no_grad():
                images = torch.rand(2, 3, size, size)
                features = Tapped(network, list(taps))(images).features
                same = "–" if device.type == "meta" else _same(network, images, [features[tap] for tap in stages])
    except KDError as error:
        return [f"refused: {str(error)[:120]}", "–", "–", "–"]
    sides = {place.partition(":")[2].rstrip("0123456789") or "maps" for place in stages.values()}
    sizes = ", ".join(f"{features[tap].shape[1]}×{features[tap].shape[2]}²" for tap in stages)
    return [
        f"{sizes} ({', '.join(sorted(sides))})" if stages else "none",
        same if stages else "–",
        _code(taps.get("final")) or ("deepest stage" if stages else "–"),
        _code(taps.get("embedding")) or "none",
    ]


def _same(network: Any, images: Tensor, stages: list[Tensor]) -> str:
    """How many of the stages are among the maps that timm gives."""
    if not hasattr(network, "forward_intermediates"):
        return "has none"
    try:
        theirs = network.forward_intermediates(images, intermediates_only=True)
    except Exception as error:  # what timm does not serve
        return f"{type(error).__name__}"
    alike = [
        any(each.shape == ours.shape and torch.allclose(each, ours, atol=1e-5) for each in theirs) for ours in stages
    ]
    return f"{sum(alike)} of {len(alike)}"


def _code(place: str | None) -> str:
    return f"`{place}`" if place else ""


if __name__ == "__main__":
    main(sys.argv[1:])
