"""Images that are no squares: every network trains on them or is refused before anything runs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kd_cli.errors import ConfigError
from kd_cli.experiments.build import build_network
from kd_cli.metrics.evaluate import check_takes
from kd_cli.models.external import ready
from kd_cli.types import DataSpec
from tests.support.small import CPU, read_yaml, yaml_names

WIDE = DataSpec(3, 60, (3, 32, 48), ("a", "b", "c"))
CONVOLUTIONAL = ("resnet", "wrn", "vgg", "mobilenet", "shufflenet", "convnext", "torchvision", "timm")


class Shaped:
    """As much of a data set as a network is built for."""

    spec = WIDE


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in yaml_names("student") if name != "external"])
def test_a_network_trains_on_rectangles_or_is_refused_with_the_size_to_type(name: str) -> None:
    options = read_yaml("student", name)
    if name.startswith(CONVOLUTIONAL):
        network = build_network(options, "student", 0, Shaped(), CPU)
        assert network.training
        network(torch.zeros(2, 3, 32, 48)).sum().backward()
        return
    with pytest.raises(ConfigError, match=r"images of 48×32 pixels .* type dataset\.image_size=32"):
        build_network(options, "student", 0, Shaped(), CPU)


def test_squares_are_not_tried_and_a_trial_changes_nothing() -> None:
    check_takes(nn.Linear(1, 1), DataSpec(3, 60, (3, 32, 32), ("a", "b", "c")), "student=none")
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(), nn.Flatten(), nn.LazyLinear(3)).train()
    network[1].eval()
    before = {name: tensor.clone() for name, tensor in network[0].state_dict().items()}
    check_takes(network, WIDE, "student=mine")
    assert [module.training for module in network] == [True, False, True, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in network[0].state_dict().items())
    tall = DataSpec(3, 60, (3, 192, 168), ("a", "b", "c"))
    with pytest.raises(ConfigError, match=r"student=mine cannot take images of 168×192 .*dataset\.image_size=160,"):
        check_takes(network, tall, "student=mine")


class Own(nn.Module):
    """Takes one size, as vision transformers do, and says which."""

    image_size = 224

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise AssertionError("Wrong image height!")


def test_a_network_with_a_size_of_its_own_says_which() -> None:
    with pytest.raises(ValueError, match=r"Wrong image height!; type dataset\.image_size=224"):
        ready(Own(), "mine", 3, (3, 32, 32), None, None)
