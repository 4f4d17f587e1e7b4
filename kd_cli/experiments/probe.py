"""A frozen encoder becomes a classifier: its last layer is a linear probe of embeddings that are asked for once."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kd_cli import console
from kd_cli.config.recipe import Recipe
from kd_cli.data.base import Data, Part
from kd_cli.errors import ConfigError, DataError
from kd_cli.evaluation.linear_probe import Probe, choose_probe
from kd_cli.metrics.evaluate import evaluating, predict
from kd_cli.metrics.scores import accuracy, selection
from kd_cli.runs.folder import RunDir
from kd_cli.storage.tensors import network_digest
from kd_cli.taps import Tapped, classifier_of
from kd_cli.teachers.cache import answers_to, make_entry
from kd_cli.training.totals import Record

log = logging.getLogger("kd")

_USED = ("eval_batch_size", "select_by", "deterministic", "precision")  # of a recipe


def check_probe(network: nn.Module, model: Mapping[str, Any], data: Data, devices: int = 1) -> None:
    """Finds out whether a network can have a linear probe for its classifier; leaves another one in it.

    Raises:
        ConfigError: its logits are not what one linear layer makes of its embedding, or there are several devices.
        DataError: no validation images choose the penalty.
    """
    if devices > 1:
        raise ConfigError(
            f"teacher.probe: one process fits a linear probe, not {devices}; type devices=1, or make the teacher "
            "first: kd train-teacher teacher.probe=true devices=1"
        )
    if not data.size("val"):
        raise DataError("teacher.probe: a probe is chosen on validation images; type dataset.val_fraction=0.1")
    if not (model.get("pretrained") or set(model.get("kwargs", ())) & {"pretrained", "weights"}):
        log.warning(
            "teacher.probe: nothing says which weights the encoder has, they are random; type teacher.pretrained=FILE, "
            "or teacher.kwargs.pretrained=true for those that timm downloads"
        )
    classifier, bias = _classifier(network, model), torch.arange(data.spec.num_classes).float()
    _set(classifier, torch.zeros_like(classifier.weight), bias)
    images = torch.zeros(2, *data.spec.image_shape, device=classifier.weight.device)
    with evaluating(network):
        said = network(images).float().cpu()
    if not torch.equal(said, bias.expand_as(said)):
        raise ConfigError(
            f"teacher.probe: the logits of teacher={model['name']} are not those of its last linear layer alone (a "
            "second classifier, a scale or a softmax stands there); take another network, or type teacher.probe=false"
        )


def say_unused(given: Iterable[str], *, alone: bool) -> None:
    """Names what was typed of a training, and changes nothing here.

    Args:
        alone: nothing else is trained.
    """
    groups = ("trainer", "teacher_trainer") if alone else ("teacher_trainer",)
    for key in sorted(given):
        group, _, option = key.partition(".")
        if group in groups and option not in _USED:
            console.notice(f"{key} has no effect: a linear probe has no epochs (teacher.probe=true)")


def fit_probe(
    network: nn.Module, model: Mapping[str, Any], data: Data, run: RunDir, recipe: Recipe, *, limit: int
) -> Record:
    """Puts the probe into a network that `check_probe` has let pass. It is fitted to the training images alone.

    Args:
        model: the network's options.
        run: on whose record it is.
        limit: bytes that kept answers may take; 0: none are kept.

    Returns:
        As of an epoch.
    """
    start, classifier = time.perf_counter(), _classifier(network, model)
    _set(classifier, torch.zeros_like(classifier.weight), classifier.weight.new_zeros(len(classifier.weight)))
    embedder = _Embedder(network)  # whatever the seed has made of the classifier
    train, val = (_embeddings(embedder, model, data, part, recipe, classifier, limit) for part in ("train", "val"))
    seconds = time.perf_counter() - start
    probe = choose_probe(_double(train), _double(val), data.spec.num_classes)
    _set(classifier, *probe.linear())
    _tell(probe, run)
    with torch.no_grad():
        seen = [classifier(rows).float().cpu() for rows, _ in (train, val)]
    learned, known = (accuracy(said, each[1].cpu()) for said, each in zip(seen, (train, val), strict=True))
    return {
        "epoch": 1,
        "lr": 0.0,
        "train_top1": learned["top1"],
        "train_loss": learned["nll"],
        "val_top1": known["top1"],
        "val_loss": known["nll"],
        **selection(recipe.select_by, seen[1], val[1].cpu()),
        "seconds": round(time.perf_counter() - start, 3),
        "images_per_second": round((len(train[1]) + len(val[1])) / seconds, 1),
    }


class _Embedder(nn.Module):
    """Images [B, C, H, W] → what the network's classifier reads, [B, D]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self._tapped = network, Tapped(network, ["embedding"])

    def forward(self, images: Tensor) -> Tensor:
        return self._tapped(images).features["embedding"]


def _classifier(network: nn.Module, model: Mapping[str, Any]) -> nn.Linear:
    found = classifier_of(network)
    if not isinstance(found, nn.Linear) or found.bias is None:
        raise ConfigError(
            f"teacher.probe: teacher={model['name']} publishes no linear classifier with a bias; name the input of its "
            "last layer with teacher.taps={embedding:'head:in'}, or type teacher.probe=false"
        )
    return found


def _set(classifier: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    with torch.no_grad():
        classifier.weight.copy_(weight)
        classifier.bias.copy_(bias)


def _embeddings(
    embedder: _Embedder,
    model: Mapping[str, Any],
    data: Data,
    part: Part,
    recipe: Recipe,
    classifier: nn.Linear,
    limit: int,
) -> tuple[Tensor, Tensor]:
    """Embeddings [N, D] of a part, not augmented, and its labels [N], where the classifier is."""
    size, device = recipe.eval_batch_size, classifier.weight.device
    console.say(f"teacher    shows its embeddings of {data.size(part):,} {part} images")
    if limit:
        digest = network_digest(embedder)
        entry = make_entry(digest, model, data, limit=limit, batch_size=size, device=device, taps=["embedding"])
        rows = answers_to(embedder, data, part, entry, batch_size=size, device=device)
    else:
        rows, _ = predict(embedder, data, part, batch_size=size, device=device)
    return rows.to(device), data.labels(part).to(device)


def _double(images: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """For the regression, which is in float64, on a GPU if there is one; Apple's has none."""
    rows, labels = images
    place = rows.device if rows.device.type == "cuda" else torch.device("cpu")
    return rows.to(place).double(), labels.to(place)


def _tell(probe: Probe, run: RunDir) -> None:
    facts = probe.facts()
    run.note(probe=facts)
    console.say(
        f"teacher    linear probe of {facts['features']:,} features, penalty {probe.penalty:g}: "
        f"{probe.val_top1[probe.penalty]:.2f} % on validation"
    )
    if not probe.converged:
        console.notice("the linear probe did not come to rest; its accuracy may be a little off")
