"""A saved network, rebuilt from its run's record for any data that fit."""

from __future__ import annotations

import logging
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
from kd_cli.config.plan import model_options, typed_view
from kd_cli.data.base import DATASETS, Data, load_dataset
from kd_cli.errors import ConfigError, DataError, listed, offer
from kd_cli.models.base import MODELS, own_options, view_options
from kd_cli.plugins import load_plugins
from kd_cli.runs.identity import flatten
from kd_cli.runs.records import need, read_config
from kd_cli.saved.weights import Source, load_weights, locate, rebuild, seen_by
from kd_cli.types import DataSpec

log = logging.getLogger("kd")

_LARGEST = 100_000  # pixels or channels
_LONGEST = 2_000  # characters of what is to be typed


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
        overrides, config_dirs: as given.

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
        self.overrides, self.config_dirs = overrides, config_dirs
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
        seen = self.facts.get("preprocessing", {})
        normal = (tuple(seen.get(key, ())) for key in ("mean", "std"))
        return DataSpec(len(classes), self.facts.get("num_train", 1), (channels, height, width), classes, *normal)

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
        return _model(self.source, self.recorded, self._chosen, self.overrides, self.role)

    def data(self, *, only_test: bool = False) -> Data:
        """The data, as the network sees them: its own classes, found by name.

        Args:
            only_test: nothing but test images are wanted; a tree of other images without a `test/` is tested whole.

        Raises:
            DataError: they are missing, or do not fit the network.
        """
        typed = {override_key(override) for override in self.overrides}
        elsewhere = self.recorded and {"dataset", "dataset.root"} & typed and "dataset.test_fraction" not in typed
        data = self._tested() if only_test and elsewhere else seen_by(self.source, load_dataset(self.dataset))
        changed = self.facts.get("fingerprint", data.fingerprint) != data.fingerprint
        if changed and not any(key.startswith("dataset") for key in typed):
            log.warning("the images of %s have changed since %s learned: it may have seen some", data.name, self.path)
        return _fitting(self.source, data)

    def _tested(self) -> Data:
        """The test part of the images of the training, wherever they are now; of others all that may be tested."""
        if "test_fraction" not in self.dataset or self._is_own():
            return seen_by(self.source, load_dataset(self.dataset))
        whole = seen_by(self.source, load_dataset({**self.dataset, "test_fraction": 1}))
        log.warning(
            "%s images of %s are tested (its test/, or all where there is none); if the network has learned some, "
            "type dataset.test_fraction=%s",
            *(f"{whole.size('test'):,}", self.dataset["root"], self.dataset["test_fraction"]),
        )
        return whole

    def _is_own(self) -> bool:
        """Whether the data are those of the training, divided as they were; notices of them come later."""
        log.disabled = True
        try:
            return seen_by(self.source, load_dataset(self.dataset)).fingerprint == self.facts.get("fingerprint")
        except DataError:  # a single class, or a test/ alone: enough for a test
            return False
        finally:
            log.disabled = False

    def network(
        self, device: torch.device, spec: DataSpec | None = None, view: Mapping[str, Any] | None = None
    ) -> nn.Module:
        """The network in eval mode, channels last.

        Args:
            spec: of the images that it is to see; None: as recorded.
            view: how it is shown them, as `view_options` has it; None: as recorded.

        Raises:
            DataError: the weights do not fit it.
        """
        options = self.model if view is None else own_options(self.model) | dict(view)
        network = rebuild(self.source, options, spec or self.spec(), where=self.role)
        try:
            load_weights(network, self.source)
        except DataError as error:
            if self.source.run is not None:
                raise
            raise DataError(
                f"{error}. It was taken for {options['name']!r}, since the file does not say which network it is of; "
                f"type {offer('student', 'NAME')} with one of kd list models"
            ) from None
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


def _fitting(source: Source, data: Data) -> Data:
    """The data with the labels of the network, found by the names of the classes."""
    recorded, own, run = source.record.get("data", {}), data.spec.class_names, source.run
    if "classes" not in recorded:
        where = source.run or source.weights
        log.warning("%s does not say which classes it knows; taken for them, in this order: %s", where, listed(own))
        return data
    names, shape = tuple(need(recorded, "classes", run)), recorded.get("image_shape")
    try:
        data = data.known_as(names)
    except ValueError:
        raise DataError(
            f"{run} knows {len(names)} classes ({listed(names)}), {data.name} has {len(own)} ({listed(own)}); unknown "
            f"to it: {listed(sorted(set(own) - set(names)))}. Classes are matched by name: rename the folders, type "
            "another dataset.root=DIR, or say with kd transfer which classes are the same"
        ) from None
    if len(own) < len(names):
        log.warning("%s has %s of the %s classes of %s: %s", data.name, len(own), len(names), run, listed(own))
    if shape and shape[1:] != list(data.spec.image_shape[1:]):
        (_, height, width), (_, was_height, was_width) = data.spec.image_shape, shape
        log.warning(
            "%s learned from images of %s×%s pixels (width × height), those of %s have %s×%s",
            *(run, was_width, was_height, data.name, width, height),
        )
    if shape and shape[0] != data.spec.image_shape[0]:
        raise DataError(
            f"{run} was trained on {shape[0]}-channel images, those of {data.name} have "
            f"{data.spec.image_shape[0]}: they do not fit"
        )
    return data


def _model(source: Source, recorded: Config, chosen: Config, overrides: Sequence[str], role: str) -> dict[str, Any]:
    named = any(override_key(override) == role for override in overrides)
    fresh = named or not recorded
    options = model_options(chosen, role) if fresh else _patched(source.record["model"], overrides, role)
    if options["name"] == "external" and not named:
        made = {key: options.get(key) for key in ("callable", "kwargs", "taps") if options.get(key) is not None}
        words = [offer(role, "external"), *(offer(f"{role}.{key}", value) for key, value in flatten(made).items())]
        raise ConfigError(
            f"{source.run} holds an external network, and kd never imports code because a record names it; "
            f"if you trust it, type {' '.join(words)[:_LONGEST]}"
        )
    if named and recorded:  # how it was shown the images is not typed again
        options = own_options(options) | view_options({**source.record["model"], **typed_view(chosen, role)})
    return options
