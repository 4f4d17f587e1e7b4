"""A few test images on which the baseline and the distilled student disagree, chosen by rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from kd_cli.data.base import DATASETS, load_dataset
from kd_cli.errors import KDError
from kd_cli.report.compare import Comparison
from kd_cli.report.groups import ROLES, Group
from kd_cli.report.plots.files import data_url
from kd_cli.report.records import number
from kd_cli.report.scores import Judge, class_names
from kd_cli.report.settings import dataset_options
from kd_cli.runs.predictions import Predictions

_EACH = 4  # images that were won, and as many that were lost
_TOP = 5  # classes of each network
_SIDE = 128  # pixels; larger images are shrunk


def examples(groups: Sequence[Group], judge: Judge) -> dict[str, Any]:
    """`examples` and `examples_rule` for results.json; a warning to the judge where data cannot be opened."""
    group = max((each for each in groups if _shown(each, judge)), key=_validation, default=None)
    comparison = _shown(group, judge) if group else None
    if group is None or comparison is None:
        return {}
    said = {role: judge.predictions(getattr(comparison, role)) for role in ROLES}
    baseline, distilled = said["baseline"], said["distilled"]
    assert baseline is not None
    assert distilled is not None
    labels = distilled.labels
    won, lost = (_right(one) & ~_right(other) for one, other in ((distilled, baseline), (baseline, distilled)))
    chosen = [*_spread(won, labels), *_spread(lost, labels)]
    try:
        pixels = _pixels(comparison, labels, chosen)
    except KDError as error:
        judge.warnings.append(f"no example images: {error}")
        return {}
    names = class_names(comparison.distilled, distilled.logits.shape[1])
    known = {
        role: each for role, each in said.items() if each is not None and each.logits.shape == distilled.logits.shape
    }
    rows = [_row(place, image, known, names) for place, image in zip(chosen, pixels, strict=True)]
    return {"examples": rows, "examples_rule": _rule(group, comparison, int(won.sum()), int(lost.sum()), len(labels))}


def _shown(group: Group, judge: Judge) -> Comparison | None:
    """The comparison of the lowest seed whose two students' predictions are there."""
    for each in group.comparisons:
        one, other = judge.predictions(each.baseline), judge.predictions(each.distilled)
        if one is not None and other is not None and one.labels.equal(other.labels):
            return each
    return None


def _validation(group: Group) -> float:
    """The test images must not choose which students are shown on them."""
    tops = [number(run.result.get("val_top1")) or 0.0 for run in group.runs("distilled")]
    return round(sum(tops) / len(tops), 6)  # of equal ones the first is taken


def _right(said: Predictions) -> Tensor:
    return said.logits.argmax(dim=1) == said.labels


def _spread(wanted: Tensor, labels: Tensor) -> list[int]:
    """The first wanted image of each class in turn, then the second of each, …"""
    places = wanted.nonzero().flatten().tolist()
    turns: dict[int, int] = {}
    ranked = []
    for place in places:
        label = int(labels[place])
        turns[label] = turns.get(label, -1) + 1
        ranked.append((turns[label], label, place))
    return [place for _, _, place in sorted(ranked)[:_EACH]]


def _pixels(comparison: Comparison, labels: Tensor, chosen: Sequence[int]) -> Iterator[Tensor]:
    """[H, W, C], uint8, of each chosen test image.

    Raises:
        KDError: the data are not there, cannot be opened, or are not those that were tested.
    """
    run = comparison.distilled
    options = dataset_options(run)
    if options.get("name") not in DATASETS:
        raise KDError(f"the data set {options.get('name')!r} is not one of kd's")
    offline = {"download": False} if "download" in options else {}
    data = load_dataset({**options, **offline})
    if data.fingerprint != run.data.get("fingerprint") or not data.labels("test").equal(labels):
        raise KDError(f"the data of {options['name']} have changed since {run.path} was tested on them")
    ids = [torch.tensor([place]) for place in chosen]
    return (batch.images[0] for batch in data.pixels("test", ids, torch.device("cpu")))


def _row(place: int, pixels: Tensor, said: dict[str, Predictions], names: Sequence[str]) -> dict[str, Any]:
    label = int(next(iter(said.values())).labels[place])
    networks = [_answer(role, each.logits[place], label, names) for role, each in said.items()]
    return {"id": place, "part": "test", "image": _shrunk(pixels), "label": names[label], "networks": networks}


def _answer(role: str, logits: Tensor, label: int, names: Sequence[str]) -> dict[str, Any]:
    """The most probable classes, and the true one."""
    probabilities = logits.double().softmax(dim=0)
    order = probabilities.argsort(descending=True).tolist()
    shown = order[:_TOP] if label in order[:_TOP] else [*order[: _TOP - 1], label]
    rows = [{"class": names[each], "p": round(float(probabilities[each]), 6)} for each in shown]
    return {"name": role, "class": names[order[0]], "probabilities": rows}


def _shrunk(pixels: Tensor) -> str:
    from PIL import Image

    image = Image.fromarray(pixels.squeeze(-1).contiguous().numpy())
    image.thumbnail((_SIDE, _SIDE))
    return data_url(image)


def _rule(group: Group, comparison: Comparison, won: int, lost: int, images: int) -> str:
    return (
        f"Of {images:,} test images, {won:,} are recognised by the distilled student only and {lost:,} by the baseline "
        f"only ({group.name}, seed {comparison.seed}; of several groups the one with the best validation accuracy). "
        f"Shown are up to {_EACH} of each, class by class, the first of a class in the order of the test set."
    )
