"""A saved network, rebuilt from its run's record for any data that fit."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from kd_cli.config.base import Config
from kd_cli.config.compose import compose
from kd_cli.config.overrides import override_key
from kd_cli.config.plan import model_options
from kd_cli.data.base import DATASETS, Data, load_dataset
from kd_cli.errors import ConfigError, DataError
from kd_cli.models.base import MODELS
from kd_cli.plugins import load_plugins
from kd_cli.runs.records import need, read_config
from kd_cli.saved.weights import Source, load_weights, locate, rebuild, seen_by
from kd_cli.types import DataSpec

_LARGEST = 100_000  # pixels or channels


class Saved:
    """A network on disk and what is on record about it.

    Args:
        path: a run's folder, a checkpoint's folder or a .safetensors file.
        which: `best` on validation or `last`, where `path` is a run; None: best.
        overrides: `dataset=…`, `dataset.…`, `student…` or `teacher…`, `plugins=…`; what is not given is as recorded.
        config_dirs: of the command line.

    Attributes:
        source: where the weights are.
        recorded: the run's configuration; empty for weights without a run.
        dataset: options of the data: those of the run, unless the overrides say otherwise.

    Raises:
        ConfigError: a wrong override, or a component that only the user may name.
        DataError: nothing is there, or it is damaged.
    """

    def __init__(
        self,
        path: Path,
        *,
        which: str | None = None,
        overrides: Sequence[str] = (),
        config_dirs: Sequence[str] = (),
    ) -> None:
        self.path = path
        self.source = locate(path, which)
        self.recorded = _recorded_config(self.source)
        self._overrides = overrides
        self._chosen = compose(_composable(overrides, self.recorded), config_dirs=config_dirs)
        load_plugins(self._chosen["plugins"])
        self.dataset = _dataset(self.recorded, self._chosen, overrides)
        _check_known(self.source, self.recorded, self.dataset)

    @property
    def facts(self) -> Mapping[str, Any]:
        """The data that the network was trained on: `name`, `classes`, `image_shape`, `preprocessing`, …"""
        facts: Mapping[str, Any] = self.source.record.get("data", {})
        return facts

    def spec(self) -> DataSpec:
        """What the network takes and gives, as recorded.

        Raises:
            ConfigError: weights without a run say nothing of that.
        """
        if not self.facts:
            raise ConfigError(f"{self.path} has no run.json beside it: its classes and image size are not known")
        classes, shape = (need(self.facts, key, self.path) for key in ("classes", "image_shape"))
        if len(shape) != 3 or not all(0 < size <= _LARGEST for size in shape):
            raise DataError(f"{self.path}: images of shape {shape} are on record; the record is damaged or not kd's")
        classes, (channels, height, width) = tuple(classes), shape
        return DataSpec(len(classes), self.facts.get("num_train", 1), (channels, height, width), classes)

    @property
    def role(self) -> str:
        """The configuration key of the network: `teacher` or `student`."""
        return "teacher" if self.source.record.get("stage") == "teacher" else "student"

    @property
    def model(self) -> dict[str, Any]:
        """Name and options of the network that was trained: as recorded, unless the overrides say otherwise.

        Raises:
            ConfigError: an external network that only the record names.
        """
        return _model(self.source, self.recorded, self._chosen, self._overrides, self.role)

    def data(self) -> Data:
        """The data, as the network sees them. Raises DataError: they are missing, or do not fit the network."""
        data = seen_by(self.source, load_dataset(self.dataset))
        _check_fit(self.source, data)
        return data

    def network(self, device: torch.device, spec: DataSpec | None = None) -> nn.Module:
        """The network in eval mode, channels last.

        Args:
            spec: of the images that it is to see; None: as recorded.

        Raises:
            DataError: the weights do not fit it.
        """
        network = rebuild(self.source, self.model, spec or self.spec(), where=self.role)
        load_weights(network, self.source)
        return network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload,no-any-return]


def _composable(overrides: Sequence[str], recorded: Config) -> list[str]:
    """Without those that change what is recorded: they may name options that the default choices do not have."""
    patches = [patch for group in ("dataset", "teacher", "student") for patch in _patches(overrides, group)]
    return [override for override in overrides if not recorded or override not in patches]


def _patches(overrides: Sequence[str], group: str) -> list[str]:
    """`dataset.seed=7`, unless another `dataset=…` is chosen too."""
    if any(override_key(override) == group for override in overrides):
        return []
    return [override for override in overrides if override_key(override).startswith(f"{group}.")]


def _patched(options: Mapping[str, Any], overrides: Sequence[str], group: str) -> dict[str, Any]:
    patches = [patch.lstrip("+") for patch in _patches(overrides, group)]
    typed = OmegaConf.to_container(OmegaConf.from_dotlist(patches), resolve=True)  # of what is typed, and no record
    assert isinstance(typed, dict)
    return _merged(options, typed.get(group) or {})


def _merged(options: Mapping[str, Any], typed: Mapping[Any, Any]) -> dict[str, Any]:
    merged = dict(options)
    for key, value in typed.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _check_known(source: Source, recorded: Config, dataset: Mapping[str, Any]) -> None:
    known = dataset["name"] in DATASETS and (not recorded or source.record["model"]["name"] in MODELS)
    if not known and recorded.get("plugins"):
        typed = shlex.quote(f"plugins=[{','.join(map(str, recorded['plugins']))}]")
        raise ConfigError(f"{source.run} was made with a plugin, which is code; if you trust it, add {typed}")


def _recorded_config(source: Source) -> Config:
    if source.run is None:
        return {}
    config = read_config(source.run)
    for facts, group in ((config, "dataset"), (source.record, "model")):
        options = need(facts, group, source.run)
        if not isinstance(options, dict) or not isinstance(options.get("name"), str):
            raise DataError(f"{source.run}: {group} on record names no {group}; the record is damaged or not kd's")
    return config


def _dataset(recorded: Config, chosen: Config, overrides: Sequence[str]) -> dict[str, Any]:
    """The recorded data with the overrides; another data set keeps the normalisation the network was trained with."""
    keys = {override_key(override) for override in overrides}
    if not recorded:
        return dict(chosen["dataset"])
    options = dict(recorded["dataset"])
    if "dataset" in keys:
        kept = {key: options[key] for key in ("mean", "std") if f"dataset.{key}" not in keys}
        return {**chosen["dataset"], **kept}
    return _patched(options, overrides, "dataset")


def _check_fit(source: Source, data: Data) -> None:
    recorded = source.record.get("data", {})
    if not recorded:
        return
    classes = len(need(recorded, "classes", source.run))
    if classes != data.spec.num_classes:
        raise DataError(
            f"{source.run} knows {classes} classes, {data.name} has {data.spec.num_classes}: they do not fit"
        )
    shape = recorded.get("image_shape")
    if shape and shape[0] != data.spec.image_shape[0]:
        raise DataError(
            f"{source.run} was trained on {shape[0]}-channel images, those of {data.name} have "
            f"{data.spec.image_shape[0]}: they do not fit"
        )


def _model(source: Source, recorded: Config, chosen: Config, overrides: Sequence[str], role: str) -> dict[str, Any]:
    named = any(override_key(override) == role for override in overrides)
    fresh = named or not recorded
    options = model_options(chosen, role) if fresh else _patched(source.record["model"], overrides, role)
    if options["name"] == "external" and not named:
        raise ConfigError(
            f"{source.run} holds an external network, and kd never imports code because a record names it; "
            f"if you trust it, type {role}=external {role}.callable={options.get('callable')}"
        )
    return options
