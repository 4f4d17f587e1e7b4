"""Teachers that know nothing of the images' classes, or say it in wrong words: what a gain must not come from."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from kd_cli.data.base import Data
from kd_cli.errors import ConfigError
from kd_cli.experiments.build import build_network
from kd_cli.experiments.setup import Setup
from kd_cli.metrics.evaluate import evaluate
from kd_cli.saved.weights import unbegun
from kd_cli.seeds import derive_seed
from kd_cli.taps import classifier_of
from kd_cli.teachers.load import Teacher

_BATCHES = 10  # that an untrained network's normalisations are measured on


def control_teacher(setup: Setup, teacher: Teacher, data: Data) -> Teacher:
    """What stands in a teacher's place, frozen and measured again: `shuffled_teacher` or `random_teacher`.

    Raises:
        ConfigError: this teacher's classes cannot be shuffled, or it has no untrained form.
    """
    seed = derive_seed(setup.seed, setup.control)
    if setup.control == "shuffled_teacher":
        network = shuffled(teacher.network, data.spec.num_classes, seed)
    else:
        network = _untrained(setup, seed, data)
    network.eval().requires_grad_(False)
    facts = teacher.facts | {"control": setup.control}
    if data.size("val"):
        scores = evaluate(network, data, "val", batch_size=setup.eval_batch_size, device=setup.device)
        facts["val_top1"] = scores["top1"]
    return Teacher(network, facts)


def shuffled(network: nn.Module, classes: int, seed: int) -> nn.Module:
    """A copy whose logits [B, K] change places, none of which keeps its own: a pure function of the seed.

    The rows of its last layer do; so its taps are the teacher's, and what a method reads of features stays right.

    Raises:
        ConfigError: it has no one layer behind its embedding that gives a logit for each class.
    """
    network = copy.deepcopy(network)
    layer = classifier_of(network)
    learned = dict(layer.named_parameters(recurse=False)) if layer is not None else {}
    if not learned or any(len(each) != classes for each in learned.values()):
        raise ConfigError(
            "control: shuffled_teacher exchanges the rows of the teacher's last layer, and this teacher has none that "
            "gives one number for each class; type control=random_teacher"
        )
    places = other_places(classes, seed)
    with torch.no_grad():
        for each in learned.values():
            each.copy_(each[places.to(each.device)])
    return network


def other_places(classes: int, seed: int) -> Tensor:
    """A permutation [K] that is one cycle through all classes."""
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
    places = torch.empty_like(order)
    places[order] = order.roll(1)
    return places


def _untrained(setup: Setup, seed: int, data: Data) -> nn.Module:
    """The teacher's network with first weights of its own; its normalisations know the images, as a trained one's."""
    options = unbegun(setup.teacher)
    brings = {key for key, value in options.get("kwargs", {}).items() if value and key in ("pretrained", "weights")}
    if brings or (setup.given and setup.given[0].path is None):
        raise ConfigError(
            f"control: random_teacher needs a network without trained weights, and teacher={setup.teacher['name']} "
            "brings its own; type control=shuffled_teacher"
        )
    from kd_cli.training.swa import measure_norms

    network = build_network(options, "teacher", seed, data, setup.device)
    size, device = setup.recipes["distilled"].batch_size, setup.device
    batches = data.train_batches(epoch=1, seed=seed, batch_size=size, device=device, limit=_BATCHES)
    measure_norms(network, batches)
    return network
