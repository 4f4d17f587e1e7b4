"""The articles' networks, layer by layer, and networks of sizes that cannot be."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from kd_cli.errors import ConfigError
from kd_cli.models.base import count_parameters
from tests.support.networks import CIFAR, MNIST, build, images, options

# the articles' networks


def layers(network: nn.Module, shape: tuple[int, int, int]) -> list[tuple[Any, ...]]:
    """What runs, in the order in which it runs."""
    seen: list[tuple[Any, ...]] = []
    leaves = [module for module in network.modules() if not list(module.children())]
    handles = [leaf.register_forward_hook(lambda module, *_: seen.append(_describe(module))) for leaf in leaves]
    network(images(1, shape))
    for handle in handles:
        handle.remove()
    return [layer for layer in seen if layer]


def _describe(module: nn.Module) -> tuple[Any, ...]:
    if isinstance(module, nn.Conv2d):
        assert module.bias is not None
        assert module.stride == (1, 1)
        return ("conv", module.in_channels, module.out_channels, *module.kernel_size, *module.padding)
    if isinstance(module, nn.Linear):
        assert module.bias is not None
        return ("linear", module.in_features, module.out_features)
    if isinstance(module, nn.MaxPool2d):
        return ("maxpool", module.kernel_size, module.stride)
    if isinstance(module, nn.Dropout):
        return ("dropout", module.p)
    assert isinstance(module, (nn.ReLU, nn.Sequential)), module
    return ("relu",) if isinstance(module, nn.ReLU) else ()


def conv(in_channels: int, out_channels: int, padding: int) -> tuple[Any, ...]:
    return ("conv", in_channels, out_channels, 3, 3, padding, padding)


RELU, POOL = ("relu",), ("maxpool", 2, 2)
ARTICLES: dict[str, tuple[tuple[int, int, int], list[tuple[Any, ...]], int]] = {
    "cifar10_kl_teacher": (
        CIFAR,
        [
            *(conv(3, 128, 1), RELU, conv(128, 64, 1), RELU, POOL),
            *(conv(64, 64, 1), RELU, conv(64, 32, 1), RELU, POOL),
            *(("linear", 2048, 512), RELU, ("dropout", 0.1), ("linear", 512, 10)),
        ],
        (27 * 128 + 128) + (1152 * 64 + 64) + (576 * 64 + 64) + (576 * 32 + 32) + (2048 * 512 + 512) + (512 * 10 + 10),
    ),
    "cifar10_kl_student": (
        CIFAR,
        [
            *(conv(3, 16, 1), RELU, POOL, conv(16, 16, 1), RELU, POOL),
            *(("linear", 1024, 256), RELU, ("dropout", 0.1), ("linear", 256, 10)),
        ],
        (27 * 16 + 16) + (144 * 16 + 16) + (1024 * 256 + 256) + (256 * 10 + 10),
    ),
    "mnist_mlp_teacher": (
        MNIST,
        [
            *(("linear", 784, 1200), ("dropout", 0.5), RELU),
            *(("linear", 1200, 1200), ("dropout", 0.5), RELU),
            ("linear", 1200, 10),
        ],
        (784 * 1200 + 1200) + (1200 * 1200 + 1200) + (1200 * 10 + 10),
    ),
    "mnist_mlp_student": (
        MNIST,
        [("linear", 784, 20), RELU, ("linear", 20, 20), RELU, ("linear", 20, 10)],
        (784 * 20 + 20) + (20 * 20 + 20) + (20 * 10 + 10),
    ),
    "mnist_cnn_teacher": (
        MNIST,
        [
            *(conv(1, 32, 0), RELU, POOL, conv(32, 64, 0), RELU, POOL),
            *(("linear", 1600, 128), RELU, ("linear", 128, 10)),
        ],
        (9 * 32 + 32) + (288 * 64 + 64) + (1600 * 128 + 128) + (128 * 10 + 10),
    ),
    "mnist_cnn_student": (
        MNIST,
        [conv(1, 16, 0), RELU, POOL, ("linear", 2704, 64), RELU, ("linear", 64, 10)],
        (9 * 16 + 16) + (2704 * 64 + 64) + (64 * 10 + 10),
    ),
    "linear": (MNIST, [("linear", 784, 10)], 784 * 10 + 10),
}


@pytest.mark.parametrize("student", ARTICLES)
def test_the_articles_networks_run_exactly_the_articles_layers(student: str) -> None:
    shape, expected, parameters = ARTICLES[student]
    network = build(options(student), shape)
    assert layers(network, shape) == expected
    assert count_parameters(network) == parameters


def test_a_block_of_several_convolutions_is_pooled_once() -> None:
    network = build({"name": "cnn", "blocks": [[4, 5, 6]], "hidden": [], "padding": 2})
    assert layers(network, CIFAR)[-2:] == [POOL, ("linear", 6 * 19 * 19, 10)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "cnn", "blocks": [[4]] * 6}, r"blocks: images of 32 pixels .*6 blocks.*pooling of block 6"),
        ({"name": "cnn", "blocks": [[4] * 16], "padding": 0}, "too small"),
        ({"name": "cnn", "blocks": [[4], [0]]}, "blocks: a layer needs at least 1 unit, not 0"),
        ({"name": "cnn", "kernel_size": 0}, "kernel_size"),
        ({"name": "cnn", "padding": -1}, "padding"),
        ({"name": "mlp", "hidden": [-3]}, "hidden: a layer needs at least 1 unit, not -3"),
        ({"name": "mlp", "dropout": 1.5}, "dropout"),
        ({"name": "cnn", "dropout": -0.1}, "dropout"),
    ],
)
def test_sizes_that_cannot_be_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(given)
