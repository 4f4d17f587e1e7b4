"""What a network is worth on data that it was not made for: zero-shot over shared classes, and a linear probe."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, get_args

import torch
from torch import Tensor, nn

from kd_cli import console
from kd_cli.data.base import Data, Part
from kd_cli.data.preprocess import Prepare
from kd_cli.data.resize import fitted
from kd_cli.errors import ConfigError, DataError, suggest
from kd_cli.evaluation.linear_probe import features, linear_probe
from kd_cli.metrics.evaluate import predict
from kd_cli.metrics.scores import confusion, per_class, top_k
from kd_cli.metrics.significance import exact_share, paired_gain
from kd_cli.runs.records import run_result
from kd_cli.saved.network import Saved

Row = dict[str, Any]
log = logging.getLogger("kd")  # which shows each notice once: most networks want the same size

METRICS = {"zero_shot": ("zero_shot", "top1"), "zero_shot_open": ("zero_shot", "top1_open"), "probe": ("probe", "top1")}
_BATCH = 500  # images per forward pass


def transfer(
    saved: Saved, data: Data, shared: Mapping[str, Sequence[str]], *, tap: str | None, probe: bool, device: torch.device
) -> Row:
    """One network on other data: zero-shot where classes are shared, and the linear probe.

    Args:
        data: as they are; they are resized and normalised for the network here.
        shared: class of the network → classes of the data that are the same; empty: no zero-shot.
        tap: the features of the probe, as `probe.features`.
        probe: whether to probe at all.
    """
    spec, adapted = saved.spec(), adapt(data, saved)
    network = saved.network(device, spec)
    result = run_result(saved.source.run) if saved.source.run else None
    row: Row = {
        "run": str(saved.source.run or saved.path),
        "role": (result or {}).get("stage") or saved.source.record.get("stage"),
        "seed": saved.recorded.get("seed"),  # of the comparison; a result has that of its own network
        "dataset": data.name,
    }
    if shared:
        wanted = Shared(shared, spec.class_names, data.spec.class_names)
        answers = predict(network, adapted, "test", batch_size=_BATCH, device=device)
        row["zero_shot"] = zero_shot(*answers, wanted)
    if probe:
        row["probe"] = _probe(saved, network, adapted, tap, device)
    return row


def _probe(saved: Saved, network: nn.Module, data: Data, tap: str | None, device: torch.device) -> Row:
    if not data.size("val"):
        raise DataError(f"a probe is chosen on validation images, {data.name} has none; type dataset.val_fraction=0.1")
    names: tuple[Part, ...] = get_args(Part)
    try:
        parts = {name: features(network, data, name, tap=tap, batch_size=_BATCH, device=device) for name in names}
    except ValueError as error:
        raise ConfigError(f"{saved.path}: {error}; type --tap with a layer of this network") from error
    return linear_probe(parts, data.spec.num_classes)


def adapt(data: Data, saved: Saved) -> Data:
    """The data as the network wants them: its image size and channels, its normalisation; not augmented.

    Raises:
        DataError: a number of channels that cannot be had.
    """
    channels, height, width = shape = saved.spec().image_shape
    given = data.spec.image_shape[0]
    if given != channels and {given, channels} != {1, 3}:
        raise DataError(f"{saved.path} takes images of {channels} channels, those of {data.name} have {given}")
    if shape != data.spec.image_shape:
        log.warning("the images of %s, %s, are made %s", data.name, _size(data.spec.image_shape), _size(shape))
    known = saved.facts["preprocessing"]
    prepare = Prepare("none", known["mean"], known["std"], (height, width, channels))
    return data.seen_through(lambda pixels, ids: fitted(pixels, shape), prepare)  # noqa: ARG005


def _size(shape: tuple[int, int, int]) -> str:
    channels, height, width = shape
    return f"{height}×{width} {'grey' if channels == 1 else 'colour'}"


class Shared:
    """The classes that two data sets share.

    Args:
        mapping: class of the network → the classes of the data that are the same.
        source: the network's classes.
        target: the classes of the data.

    Attributes:
        sources: labels of the network's classes that are shared.
        position: [K of the data], int64: where in `sources` a class of the data is; -1: nowhere.

    Raises:
        ConfigError: a class that is not there, or a class of the data that is two classes of the network.
    """

    def __init__(self, mapping: Mapping[str, Sequence[str]], source: Sequence[str], target: Sequence[str]) -> None:
        self.names = [str(name) for name in mapping]
        self.sources = [_label(name, source, "the network's") for name in self.names]
        self.position = torch.full((len(target),), -1)
        for place, (name, others) in enumerate(mapping.items()):
            for other in others:
                label = _label(str(other), target, "the data's")
                if self.position[label] >= 0:
                    raise ConfigError(f"shared.{name}: {other!r} is the same as {self.names[self.position[label]]!r}")
                self.position[label] = place


def _label(name: str, known: Sequence[str], whose: str) -> int:
    if name not in known:
        raise ConfigError(f"shared: {name!r} is none of {whose} classes{suggest(name, known)}")
    return known.index(name)


def zero_shot(logits: Tensor, labels: Tensor, shared: Shared) -> Row:
    """How often the network's own classifier finds the class that an image's class is the same as.

    Args:
        logits: [N, K of the network].
        labels: [N], of the data's classes; those that are not shared are left out.

    Returns:
        `top1`, where only shared classes can be answered, with its `chance`; `top1_open`, where all of the network's
        classes can, with its `chance_open` (all in percent; chance is a guess among those answers); `images`;
        `per_class` as `scores.per_class`, of `top1`.

    Raises:
        DataError: no image is of a shared class.
    """
    places = shared.position[labels]
    kept = places >= 0
    if not kept.any():
        raise DataError("no test image is of a shared class; name other classes in the yaml of transfer=…")
    wanted, answers = places[kept], logits[kept]
    sources = torch.tensor(shared.sources)
    return {
        "top1": top_k(answers[:, sources], wanted, 1),
        "chance": round(100 / len(sources), 2),
        "top1_open": top_k(answers, sources[wanted], 1),
        "chance_open": round(100 / logits.shape[1], 2),
        "images": int(kept.sum()),
        "per_class": per_class(confusion(answers[:, sources], wanted), shared.names),
    }


def made_with(saved: Saved) -> Row:
    """All that made a network, apart from the seed and from where its teacher was."""
    options = {key: value for key, value in saved.recorded.items() if key not in ("seed", "device", "outputs")}
    teacher = {key: value for key, value in options.get("teacher", {}).items() if key != "checkpoint"}
    return options | {"teacher": teacher, "model": saved.source.record.get("model")}


def summary(rows: Sequence[Row], settings: Sequence[Any]) -> Row:
    """Means over seeds for each role, and what distillation gained over the baseline of the same seed.

    Args:
        rows: as `transfer` gives them.
        settings: of each, as `made_with` says; networks of one role must share them.

    Returns:
        `roles`: role → `seeds` and metric → mean, std; `gain`: metric → the paired gain, where there are two seeds.
        Nothing where runs of one role differ in more than their seed.
    """
    roles: dict[str, dict[int, Row]] = {}
    first: dict[str, Any] = {}
    for row, setting in zip(rows, settings, strict=True):
        seeds = roles.setdefault(str(row["role"]), {})
        if row["seed"] in seeds or first.setdefault(str(row["role"]), setting) != setting:
            console.notice(f"runs of one role ({row['role']}) differ in more than their seed: there are no means")
            return {}
        seeds[row["seed"]] = row
    means = {role: {"seeds": len(seeds)} | _means(list(seeds.values())) for role, seeds in roles.items()}
    return {"roles": means, "gain": _gains(roles.get("distilled", {}), roles.get("baseline", {}))}


def value(row: Mapping[str, Any], metric: str) -> float | None:
    """A row's number of `METRICS`, percent, before it was rounded; None where it has none."""
    part, key = METRICS[metric]
    found = row.get(part, {})
    return None if found.get(key) is None else exact_share(found[key], found.get("images"))


def _means(rows: Sequence[Row]) -> Row:
    found = {metric: [value(row, metric) for row in rows] for metric in METRICS}
    return {
        metric: {"mean": round(fmean(tops), 2), "std": round(stdev(tops), 2) if len(tops) > 1 else None}
        for metric, numbers in found.items()
        if (tops := [number for number in numbers if number is not None])
    }


def _gains(distilled: Mapping[int, Row], baseline: Mapping[int, Row]) -> Row:
    gains: Row = {}
    for metric in METRICS:
        both = [seed for seed in distilled if seed in baseline]
        pairs = [(value(distilled[seed], metric), value(baseline[seed], metric)) for seed in both]
        differences = [round(after - before, 6) for after, before in pairs if after is not None and before is not None]
        if len(differences) > 1:
            gains[metric] = paired_gain(differences)
    return gains
