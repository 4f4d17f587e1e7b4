"""Bare weights with a description: what kd, or code of your own, makes a network of."""

from __future__ import annotations

import shutil
from pathlib import Path

from kd_cli.errors import ConfigError, DataError
from kd_cli.export.deployed import Deployed, Subject
from kd_cli.plugins import trust
from kd_cli.runs.records import EXPORT, check_kinds
from kd_cli.saved.weights import Source, assemble, load_weights
from kd_cli.storage.files import file_digest, read_json
from kd_cli.types import DataSpec

FILE = "model.safetensors"


def write_weights(folder: Path, subject: Subject) -> None:
    """Copies the weights file; config.json beside it says what they belong to."""
    shutil.copyfile(subject.saved.source.weights, folder / FILE)


def load(folder: str | Path, *, trust_external: bool = False) -> Deployed:
    """The network of a folder that `kd export --format safetensors` wrote: [B, H, W, C], uint8 → logits [B, K].

    Args:
        trust_external: import the function that config.json names, where the network is not one of kd's.

    Raises:
        ConfigError: an external network without `trust_external`, or a network of a plugin that is not loaded.
        DataError: no such folder, or other weights than config.json says.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    if config is None:
        raise DataError(f"{folder} holds no export of kd: it has no readable config.json")
    check_kinds(config, EXPORT, folder / "config.json", whole=True)
    model = config["model"]
    if model["name"] == "external" and not trust_external:
        raise ConfigError(
            f"{folder} holds the weights of {model.get('callable')}, and importing it runs its code; if you trust it: "
            "load(folder, trust_external=True)"
        )
    if model["name"] == "external":
        trust(str(model.get("callable")).replace(":", ".").rpartition(".")[0])
    source = Source(folder / FILE, None, config["epoch"], file_digest(folder / FILE))
    if source.sha256 != config["weights_sha256"]:
        raise DataError(f"{source.weights} is damaged: its SHA-256 is not the one in config.json")
    classes, normal = tuple(config["classes"]), (tuple(config[key]) for key in ("mean", "std"))
    spec = DataSpec(len(classes), 1, (config["channels"], *config["image_size"]), classes, *normal)
    network = assemble(source, model, config["graft"], spec, where="model")
    load_weights(network, source)
    return Deployed(network, config["mean"], config["std"])
