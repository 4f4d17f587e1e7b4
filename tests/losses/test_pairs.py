"""Any loss on any pair: it works, or it says why it cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from kd_cli.losses.base import LOSSES, build_loss
from kd_cli.models.base import MODELS
from kd_cli.training.task import Distillation
from kd_cli.types import Batch, DataSpec
from tests.support.sample import ALL
from tests.support.small import loss_options

SPEC = DataSpec(10, 100, (3, 32, 32), tuple("abcdefghij"))
BATCH = Batch(
    torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2]), torch.arange(2)
)
BY_STAGES = {
    "ab",
    "at",
    "byot",
    "catkd",
    "fitnet",
    "fsp",
    "ft",
    "ickd",
    "kdsvd",
    "nst",
    "ofa",
    "ofd",
    "reviewkd",
    "sdd",
    "sp",
    "vid",
    "wkd_f",
}
BY_EMBEDDING = {"cc", "crd", "encoder", "pkt", "rkd", "srrl", "simkd", "catkd", "sdd", "vkd"}

# teacher, student → the losses that cannot work there
PAIRS: dict[tuple[str, str], set[str]] = {
    ("resnet14", "mobilenetv2"): set(),
    ("wrn_16_1", "resnet8"): set(),
    ("vgg8", "shufflenetv1"): set(),
    ("resnet8", "shufflenetv2"): {"ab", "ofd"},  # no stage of its ends with an activation
    ("cnn", "resnet8"): {"catkd", "sdd"},  # hidden layers stand before the classifier
    ("resnet8", "mlp"): BY_STAGES,
    ("mlp", "mlp"): BY_STAGES,
    ("torchvision:resnet18", "cnn"): {"catkd", "sdd"},
    ("vit_tiny", "resnet8"): {"ab", "ofd", "catkd", "sdd"},  # no ReLU; the class token is no average of a map
    ("mixer", "vit_tiny"): {"ab", "ofd", "catkd", "sdd"},
    ("resnet8", "torchvision:squeezenet1_1"): BY_EMBEDDING,  # its classifier is a convolution
}


def network(name: str) -> nn.Module:
    kind, _, model = name.partition(":")
    options: dict[str, Any] = {"name": kind, **({"model": model} if model else {})}
    return MODELS.build(options, num_classes=10, in_channels=3, image_size=32)


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS, ids=" → ".join)
def test_every_loss_takes_a_step_on_the_pair_or_says_why_it_cannot(pair: tuple[str, str]) -> None:
    """By default those that cannot work there, and every third of the others: which ones, that depends on the pair."""
    refused: dict[str, str] = {}
    first = list(PAIRS).index(pair)
    cannot = PAIRS[pair] | {"deit_token"}  # none of these students has a second head
    for number, name in enumerate(LOSSES.names()):
        if not ALL and name not in cannot and (number + first) % 3:
            continue
        method, mix = build_loss(loss_options(name))
        teacher, student = network(pair[0]), network(pair[1])
        try:
            task = Distillation(student, teacher, method, mix, SPEC, name=name)
        except ValueError as error:
            refused[name] = str(error)
            continue
        loss = task.train()(BATCH).loss
        loss.backward()
        assert loss.isfinite(), name
    assert set(refused) == cannot
    assert all("tap" in reason for reason in refused.values())
