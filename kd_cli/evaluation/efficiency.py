"""What trained networks, and networks that nobody has trained yet, cost beside each other."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd_cli import console
from kd_cli.config.compose import compose
from kd_cli.config.plan import model_options
from kd_cli.errors import ConfigError, suggest
from kd_cli.evaluation.networks import Opened, open_networks
from kd_cli.metrics.cost import Timing, count_flops, peak_memory, stored_bytes, time_networks
from kd_cli.models.base import build_model, count_parameters
from kd_cli.plugins import load_plugins
from kd_cli.saved.network import Saved
from kd_cli.saved.weights import graft_of, recorded_result
from kd_cli.types import DataSpec


@dataclass(frozen=True)
class Subject:
    """A network to be measured.

    Args:
        name: `teacher`, `distilled`, `resnet20`.
        network: in eval mode, channels last.
        image_shape: (C, H, W).
        members: of a trained one, where its weights are; several for an ensemble.
        teaches: whether it is the teacher of its run.
    """

    name: str
    network: nn.Module
    image_shape: tuple[int, int, int]
    members: tuple[Saved, ...] = ()
    teaches: bool = False


@dataclass(frozen=True)
class Shape:
    """What untrained networks are built for; what is None is as in the first run, or that of CIFAR-10."""

    image_size: int | None = None
    channels: int | None = None
    classes: int | None = None

    def spec(self, like: DataSpec | None) -> DataSpec:
        """As a network wants to know it."""
        channels, size, _ = like.image_shape if like else (3, 32, 32)
        channels, size = self.channels or channels, self.image_size or size
        classes = self.classes or (like.num_classes if like else 10)
        return DataSpec(classes, 1, (channels, size, size), tuple(map(str, range(classes))))


def open_subjects(
    words: Sequence[str],
    shape: Shape,
    *,
    overrides: Sequence[str] = (),
    config_dirs: Sequence[str] = (),
    known: Sequence[str],
    device: torch.device,
) -> list[Subject]:
    """The networks that are meant: of runs, and of `student=NAME` with random weights.

    Args:
        words: what exists is a run, a comparison or a checkpoint; any other word is a network's name.
        known: the names of networks.
    """
    paths = [word for word in words if Path(word).exists()]
    names = [word for word in words if word not in paths]
    for name in names:
        if name not in known:
            raise ConfigError(f"{name} is neither a run nor a network{suggest(name, known)}")
    if shape != Shape() and not names:
        console.notice("--image-size, --channels and --classes have no effect on trained networks")
    runs = [
        (path, opened)
        for path in paths
        for opened in open_networks(Path(path), overrides=overrides, config_dirs=config_dirs, device=device)
    ]
    spec = shape.spec(runs[0][1].first.spec() if runs else None)
    count = Counter(opened.name for _, opened in runs)
    trained = [
        _trained(opened, opened.name if count[opened.name] == 1 else f"{path} {opened.name}") for path, opened in runs
    ]
    return [*trained, *(_untrained(name, spec, overrides, config_dirs, device) for name in names)]


def _trained(opened: Opened, name: str) -> Subject:
    return Subject(name, opened.network, opened.first.spec().image_shape, opened.members, opened.name == "teacher")


def _untrained(
    name: str, spec: DataSpec, overrides: Sequence[str], config_dirs: Sequence[str], device: torch.device
) -> Subject:
    config = compose([f"student={name}", *overrides], config_dirs=config_dirs)
    load_plugins(config["plugins"])
    network = build_model(model_options(config, "student"), spec, where="student")
    network = network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return Subject(name, network, spec.image_shape)


def measure(
    subjects: Sequence[Subject], *, batch_sizes: Sequence[int], seconds: float, device: torch.device
) -> dict[str, Any]:
    """What each costs, and how many times less than the reference: the first teacher, or else the first of all.

    Networks of one architecture cost the same, whatever they were taught: they are measured once.

    Args:
        batch_sizes: ascending, 1 among them.
        seconds: of timed passes for each network and batch size.

    Returns:
        `reference`: its name, `networks`: a row for each.
    """
    measured: dict[str, Subject] = {}
    for subject in subjects:
        measured.setdefault(_architecture(subject), subject)
    networks = {key: subject.network for key, subject in measured.items()}
    costs = {key: _cost(subject, device) for key, subject in measured.items()}
    for batch_size in batch_sizes:
        images = {key: _images(subject, batch_size, device) for key, subject in measured.items()}
        for key, timing in time_networks(networks, images, seconds=seconds).items():
            costs[key]["speed"].append(_speed(timing, peak_memory(networks[key], images[key])))
    rows = [_row(subject, measured[_architecture(subject)].name, costs[_architecture(subject)]) for subject in subjects]
    reference = next((row for row, subject in zip(rows, subjects, strict=True) if subject.teaches), rows[0])
    return {
        "reference": reference["name"],
        "networks": [row | {"ratios": _ratios(row, reference)} for row in rows],
    }


def _architecture(subject: Subject) -> str:
    """The same for networks that compute the same, but for their weights."""
    if len(subject.members) != 1:
        return f"{subject.name} {id(subject)}"
    record = subject.members[0].source.record
    facts = record.get("model"), graft_of(record), len(record["data"]["classes"]), subject.image_shape
    return json.dumps(facts, sort_keys=True)


def _images(subject: Subject, batch_size: int, device: torch.device) -> Tensor:
    images = torch.randn(batch_size, *subject.image_shape, generator=torch.Generator().manual_seed(0))
    return images.to(device, memory_format=torch.channels_last)


def _cost(subject: Subject, device: torch.device) -> dict[str, Any]:
    return {
        "parameters": count_parameters(subject.network),
        "flops_per_image": count_flops(subject.network, _images(subject, 1, device)),
        "bytes": stored_bytes(subject.network),
        "speed": [],
    }


def _speed(timing: Timing, memory: int | None) -> dict[str, Any]:
    return {
        "batch_size": timing.batch_size,
        "passes": timing.passes,
        "median_ms": round(1000 * timing.median, 4),
        "quartiles_ms": [round(1000 * quartile, 4) for quartile in timing.quartiles],
        "images_per_second": round(timing.images_per_second, 1),
        "peak_memory_bytes": memory,
    }


def _row(subject: Subject, measured_as: str, cost: dict[str, Any]) -> dict[str, Any]:
    files = [member.source.weights.stat().st_size for member in subject.members]
    on_disk = {"fp32": sum(files)} if files else {}
    return {
        "name": subject.name,
        "runs": [str(member.path) for member in subject.members],
        "test_top1": _test_top1(subject),
        **cost,
        "bytes": cost["bytes"] | on_disk,
        "measured_as": measured_as,
    }


def _test_top1(subject: Subject) -> float | None:
    """Of the weights that are measured, as their run found it; an ensemble's is not on record."""
    if len(subject.members) != 1:
        return None
    result = recorded_result(subject.members[0].path)
    return float(result["test_top1"]) if result else None


def _ratios(row: dict[str, Any], reference: dict[str, Any]) -> dict[str, float | None]:
    """How many times smaller, cheaper and faster than the reference."""
    one, other = _totals(reference), _totals(row)
    return {key: round(one[key] / other[key], 3) if other[key] and one[key] else None for key in one}


def _totals(row: dict[str, Any]) -> dict[str, float]:
    first = row["speed"][0]
    return {
        "parameters": row["parameters"],
        "bytes": row["bytes"]["fp32"],
        "flops": row["flops_per_image"],
        "memory": first["peak_memory_bytes"],
        "latency": first["median_ms"],
    }
