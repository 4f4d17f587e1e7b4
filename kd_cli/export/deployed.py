"""The network as it is deployed, with all that its user must know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kd_cli import __version__
from kd_cli.data.base import Data
from kd_cli.data.preprocess import Prepare
from kd_cli.errors import DataError
from kd_cli.models.base import count_parameters
from kd_cli.runs.records import network_name
from kd_cli.saved.network import Saved
from kd_cli.saved.weights import graft_of

CPU = torch.device("cpu")


class Deployed(nn.Module):
    """A network that is given bytes: kd's own normalisation, then the network.

    Args:
        network: in eval mode.
        mean: per channel, of values 0 … 1.
        std: likewise.
        plain: no channels last, neither in the weights nor in the images.
    """

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float], *, plain: bool = False) -> None:
        super().__init__()
        self.network = network
        # Of one pixel, which stands for all of them: nothing as large as an image goes into the file.
        self._prepare = Prepare("none", mean, std, (1, 1, len(mean)))
        self._layout = torch.contiguous_format if plain else torch.channels_last
        if plain:
            for tensor in (*network.parameters(), *network.buffers()):
                tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """[B, H, W, C], uint8 → [B, K]."""
        # A clone, for one channel is contiguous in both layouts, and `contiguous` would leave it as it is.
        logits: Tensor = self.network(self._prepare.normalise(images).clone(memory_format=self._layout))
        return logits


@dataclass(frozen=True)
class Subject:
    """What is exported.

    Args:
        saved: the network on disk.
        data: whose images show that the exported network is the same.
        facts: what goes into every file: classes, input, preprocessing, origin.
    """

    saved: Saved
    data: Data
    facts: Mapping[str, Any]

    def deployed(self, *, plain: bool = False) -> Deployed:
        """The network with its preprocessing; a new one at each call."""
        return Deployed(self.saved.network(CPU), self.facts["mean"], self.facts["std"], plain=plain)

    @property
    def name(self) -> str:
        """`distilled resnet8`."""
        return f"{self.facts['stage']} {network_name(self.facts['model'])}"


def subject_of(saved: Saved) -> Subject:
    """A saved network with its data.

    Raises:
        ConfigError: nothing is on record about the network.
        DataError: the data are missing, or are not images as the network saw them.
    """
    spec, data = saved.spec(), saved.data()
    seen = saved.facts["preprocessing"]
    for what, here, there in (
        ("shape (C, H, W)", tuple(data.spec.image_shape), tuple(spec.image_shape)),
        ("mean", data.preprocessing["mean"], seen["mean"]),
        ("std", data.preprocessing["std"], seen["std"]),
    ):
        if here != there:
            raise DataError(
                f"the images have {what} {list(here)}, the network saw {list(there)}; export needs images as those of "
                "its training: leave that override out"
            )
    return Subject(saved, data, _facts(saved, data))


def _facts(saved: Saved, data: Data) -> dict[str, Any]:
    record, network, seen = saved.source.record, saved.network(CPU), saved.facts["preprocessing"]
    channels, *image_size = saved.spec().image_shape
    graft = graft_of(record)
    if graft:  # without the paths of this machine
        graft["teacher"] = {key: graft["teacher"][key] for key in ("models", "grafts")}
    colours = {1: ", grey", 3: ", RGB"}.get(channels, "")
    return {
        "made_by": "kd export",
        "kd_version": __version__,
        "classes": list(saved.spec().class_names),
        "image_size": image_size,
        "channels": channels,
        "mean": seen["mean"],
        "std": seen["std"],
        **{key: seen[key] for key in ("resize", "interpolation") if key in seen},
        "input": f"images: uint8 [batch, {', '.join(map(str, [*image_size, channels]))}], 0 … 255{colours}",
        "output": f"logits: float32 [batch, {len(saved.spec().class_names)}]; softmax makes probabilities of them",
        "model": saved.model,
        "graft": graft,
        "parameters": count_parameters(network),
        "stage": record.get("stage"),
        "loss": record.get("loss", {}).get("name"),
        "seed": record.get("seed"),
        "epoch": saved.source.epoch,
        "weights_sha256": saved.source.sha256,
        "dataset": saved.facts["name"],
        "data_fingerprint": saved.facts["fingerprint"],
        "checked_on": data.fingerprint,
    }
