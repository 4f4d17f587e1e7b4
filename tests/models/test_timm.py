"""timm's networks by name: what `external` makes of `timm.create_model`, and what timm must be told."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kd_cli.config.plan import network_options
from kd_cli.errors import ConfigError
from kd_cli.models.base import MODELS
from kd_cli.runs.records import network_name
from kd_cli.saved.weights import unbegun
from tests.support.networks import CIFAR, MNIST, build, images
from tests.support.small import same_tensors

pytest.importorskip("timm")

SMALL_VIT = {"depth": 1, "embed_dim": 24, "num_heads": 2, "patch_size": 4}
VIT = {"name": "timm", "model": "vit_tiny_patch16_224", "kwargs": SMALL_VIT}


def test_it_is_the_same_network_as_by_the_long_way() -> None:
    long = {"name": "external", "callable": "timm.create_model"}
    kwargs = {"model_name": "vit_tiny_patch16_224", **SMALL_VIT, "img_size": 32}
    short, other = build(VIT), build({**long, "kwargs": kwargs})
    assert same_tensors(short, other)
    assert short.taps == other.taps
    assert short.taps["embedding"] == "head:in"


@pytest.mark.parametrize("shape", [MNIST, CIFAR], ids=str)
@pytest.mark.parametrize("model", [VIT, {"name": "timm", "model": "resnet10t"}], ids=["vit", "resnet"])
def test_it_is_told_the_channels_and_where_it_asks_for_it_the_size(model: dict[str, Any], shape: Any) -> None:
    assert build(model, shape).eval()(images(2, shape)).shape == (2, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "vit_smal_patch14_dinov2"}, r"student\.model: timm has no network .*vit_small_patch14_dinov2"),
        ({"model": "resnet18.nope"}, r"student\.model: timm has no network 'resnet18\.nope'"),
        ({"model": "hf-hub:somebody/something"}, r"student\.model: timm has no network"),
        ({"kwargs": {"checkpoint_path": "evil.pth"}}, r"pretrained=FILE"),
        ({"kwargs": {"model_name": "local-dir:evil"}}, r"pretrained=FILE"),
        ({"kwargs": {"bogus": 1}}, r"student\.kwargs: .*bogus"),
        ({"model": "test_vit2", "kwargs": {"pretrained_cfg": {"file": "evil.pth"}}}, r"pretrained=FILE"),
        ({"model": "vit_small_patch16_18x2_224", "kwargs": {"pretrained": True}}, r"kwargs\.pretrained: timm has no w"),
    ],
)
def test_what_cannot_be_had_is_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as told:
        build({"name": "timm", **options})
    assert len(str(told.value)) < 600  # and not all of its thousand names


def test_without_the_package_it_is_told_which_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ConfigError, match=r"pip install 'kd-cli\[timm\]'"):
        build(VIT)
    monkeypatch.setattr("kd_cli.models.published.find_spec", lambda _: None)
    options = {"name": "timm", "model": "resnet18", "kwargs": {"pretrained": True}}
    assert network_options(options, "teacher") == options  # what it was made for is not known, and nothing fails


def test_its_weights_say_how_it_is_shown_the_images() -> None:
    options = {"name": "timm", "model": "vit_small_patch14_dinov2", "kwargs": {"pretrained": True}}
    found = network_options(options, "teacher")
    assert (found["image_size"], found["interpolation"]) == (518, "bicubic")
    assert network_options({**options, "image_size": 112}, "teacher")["image_size"] == 112


def test_a_saved_network_is_made_without_the_weights_that_it_began_with_and_has_its_own_name() -> None:
    begun = {**VIT, "kwargs": {**SMALL_VIT, "pretrained": True}, "pretrained": "file.pth"}
    assert unbegun(begun) == VIT
    assert network_name(begun) == "vit_tiny_patch16_224"
    torch.manual_seed(0)
    assert MODELS.build(VIT, num_classes=3, in_channels=3, image_size=16) is not None
