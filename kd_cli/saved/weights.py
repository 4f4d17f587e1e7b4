"""Saved weights: where they are, what is on record about them, and the network that they belong to."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kd_cli.data.base import Data
from kd_cli.errors import ConfigError, DataError
from kd_cli.losses.base import build_loss
from kd_cli.metrics.evaluate import check_takes
from kd_cli.models.base import MODELS, build_model
from kd_cli.runs.checkpoint import Checkpoint, damage_by_averaging, load_state, owner
from kd_cli.runs.metrics import read_metrics
from kd_cli.runs.records import need, run_record, run_result
from kd_cli.storage.files import file_digest
from kd_cli.storage.tensors import check_names, check_numbers, read_tensors
from kd_cli.training.task import Distillation
from kd_cli.types import DataSpec

log = logging.getLogger("kd")

_LARGEST = 2**32  # bytes of a network that need no weights file of that order


@dataclass(frozen=True)
class Source:
    """Where a network's weights are, and what is on record about them.

    Args:
        weights: the file: .safetensors, or one by torch.save where it is none of kd's.
        run: the run's folder, or None for a file without one.
        epoch: of the checkpoint, or None.
        sha256: of the weights file.
    """

    weights: Path
    run: Path | None
    epoch: int | None
    sha256: str

    @cached_property
    def record(self) -> dict[str, Any]:
        """run.json, or nothing. Raises DataError: it is damaged."""
        return run_record(self.run) if self.run else {}

    @property
    def val_top1(self) -> float | None:
        """The validation accuracy on record for this epoch, percent."""
        rows = read_metrics(self.run) if self.run else []
        return next((row.get("val_top1") for row in rows if row["epoch"] == self.epoch), None)


def locate(path: Path, which: str | None = None) -> Source:
    """The weights behind a run's folder, a checkpoint's folder or a file of weights.

    Args:
        which: `best` on validation or `last`, where `path` is a run; None: best.

    Raises:
        ConfigError: `which` is given, and `path` is not a run.
        DataError: nothing of the kind is there, it is damaged, or its record speaks of other weights.
    """
    if which and (path.is_file() or (path / "manifest.json").exists()):
        raise ConfigError(
            f"--which {which} chooses among the epochs of a run, and {path} is one checkpoint; leave it out"
        )
    if path.is_file():
        return _from_file(path)
    if (path / "manifest.json").exists():
        return _from_checkpoint(Checkpoint(path))
    result = run_result(path)
    if result is None or "best_epoch" not in result:
        stages = [stage.name for stage in (path / "teacher", path / "distilled") if (stage / "run.json").exists()]
        hint = f"; it is a comparison, name one of its runs: {path / stages[0]}" if stages else ""
        raise DataError(
            f"{path} is not a completed run, a checkpoint or a file of weights{hint}; kd list runs shows all"
        )
    epoch = result["epochs"] if which == "last" else result["best_epoch"]
    source = _from_checkpoint(Checkpoint(path / "checkpoints" / f"epoch-{epoch:04d}"))
    recorded = result["weights_sha256"][which or "best"]
    if source.sha256 != recorded:
        raise DataError(
            f"{source.weights} is not what its record says: result.json has SHA-256 {recorded[:12]}…, "
            f"the file {source.sha256[:12]}…. Somebody replaced one of them; train it again."
        )
    return source


def _from_file(path: Path) -> Source:
    if path.suffix == ".safetensors" and (path.parent / "manifest.json").exists():
        return locate(path.parent)
    return Source(path, None, None, file_digest(path))


def recorded_result(path: Path) -> dict[str, Any] | None:
    """The result on record of the run whose best epoch these weights are; None for any other weights."""
    source = locate(path)
    result = run_result(source.run) if source.run else None
    return result if result and result["weights_sha256"]["best"] == source.sha256 else None


def seen_by(source: Source, data: Data) -> Data:
    """The data as the network was taught them: a specialist knows a few classes and all others as one."""
    classes = specialty(source, data.spec.class_names)
    return data.narrowed(classes) if classes else data


def specialty(source: Source, class_names: Sequence[str]) -> list[int]:
    """The labels of the classes that a specialist tells apart, found by name; none: it is none, or of other classes."""
    names = source.record.get("data", {}).get("classes", ())[:-1] if source.record.get("specialist") else ()
    own = list(class_names)
    return [own.index(name) for name in names] if set(names) <= set(own) else []


def load_weights(network: nn.Module, source: Source) -> None:
    """Puts a source's weights into a network. Raises DataError: they belong to another architecture."""
    own = network.state_dict()
    if source.run is None:
        from kd_cli.models.pretrained import read_for

        tensors = read_for(network, source.weights)
    else:
        tensors, _ = read_tensors(source.weights)
        if damage := damage_by_averaging(source.weights.parent):
            log.warning("%s", damage)
    check_names(tensors, own, source.weights)
    check_numbers(tensors, own, source.weights)
    load_state(network, tensors)


def rebuild(source: Source, options: Mapping[str, Any], spec: DataSpec, *, where: str) -> nn.Module:
    """The network that a run saved, without its weights: its own, or what its loss made of it.

    Args:
        options: of the network that was trained.
        spec: of the images that it is to see.
        where: the configuration key of `options`.

    Raises:
        ConfigError: the network cannot be built, or only the user may name a part of it.
    """
    network = assemble(source, options, graft_of(source.record), spec, where=where)
    learned = source.record.get("data", {}).get("image_shape", [0])
    check_takes(network, spec, f"{where}={options['name']}", learned[-1] if learned[1:2] == learned[2:] else None)
    return network


def graft_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's record says of the network that its loss made of the student; nothing where it made none."""
    return {key: need(record, key, "a grafted network") for key in ("loss", "teacher")} if record.get("grafted") else {}


def assemble(
    source: Source, options: Mapping[str, Any], graft: Mapping[str, Any], spec: DataSpec, *, where: str
) -> nn.Module:
    """As `rebuild`, with what its loss made of the network, as `graft_of` gives it."""
    network = _build(source, unbegun(options), spec, where)
    if not graft:
        return network
    (model,), (inner,) = graft["teacher"]["models"], graft["teacher"]["grafts"]
    check_nameable(source, model)
    teacher = assemble(source, model, inner, spec, where="teacher")
    method, mix = build_loss(graft["loss"])
    return Distillation(network, teacher, method, mix, spec).deployed


def unbegun(options: Mapping[str, Any]) -> dict[str, Any]:
    """Without the weights that a network began with, whose place the saved ones take."""
    begun = {key: value for key, value in options.items() if key != "pretrained"}
    if options.get("name") == "timm" and isinstance(options.get("kwargs"), Mapping):
        begun["kwargs"] = {key: value for key, value in options["kwargs"].items() if key != "pretrained"}
    return begun


def _build(source: Source, options: Mapping[str, Any], spec: DataSpec, where: str) -> nn.Module:
    try:
        _check_size(source, options, spec, where)
        return build_model(options, spec, where=where)
    except (RuntimeError, TypeError, OverflowError, MemoryError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{source.weights}: {brief(options)[:200]} cannot be built ({reason})") from error


def _check_size(source: Source, options: Mapping[str, Any], spec: DataSpec, where: str) -> None:
    """A record can ask for a network that no memory holds; its weights file tells that it never was that large."""
    try:
        with torch.device("meta"):
            tensors = build_model(options, spec, where=where).state_dict().values()
    except (NotImplementedError, RuntimeError) as error:
        if "meta" in str(error):  # some networks of others compute while they are built
            return
        raise
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if needed > max(_LARGEST, 8 * source.weights.stat().st_size):
        raise DataError(
            f"{source.weights} does not fit {brief(options)[:200]}: that network takes {needed / 1e9:,.0f} GB"
        )


def check_nameable(source: Source, options: Mapping[str, Any]) -> None:
    """Importing runs code, so what to import is never taken from a record."""
    if options.get("name") not in MODELS or options["name"] == "external":
        raise ConfigError(
            f"{source.run or source.weights} does not say which network of kd it is ({brief(options)}), "
            "and kd imports no code that only a record names; give one teacher, with teacher=… as it was trained"
        )


def copy_body(source: nn.Module, network: nn.Module) -> None:
    """Gives `network` the weights of `source`, but for the classifier, whose number of classes differs."""
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    fitting = {name: tensor for name, tensor in source.state_dict().items() if shapes.get(name) == tensor.shape}
    network.load_state_dict(fitting, strict=False)


def _from_checkpoint(checkpoint: Checkpoint) -> Source:
    folder = checkpoint.path.absolute().parent.parent
    run = folder if os.path.lexists(folder / "run.json") else None
    if run is not None and checkpoint.plain.get("run") != owner(run_record(run)):
        raise DataError(f"{checkpoint.path} is a checkpoint of another run")
    return Source(checkpoint.path / "model.safetensors", run, checkpoint.plain.get("epoch"), checkpoint.model_digest)


def brief(options: Mapping[str, Any]) -> str:
    rest = ", ".join(f"{key}={value}" for key, value in options.items() if key != "name")
    return f"{options.get('name')}({rest})"
