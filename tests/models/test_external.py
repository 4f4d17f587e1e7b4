"""Networks from elsewhere: torchvision's, and any that can be imported."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd_cli.errors import ConfigError
from kd_cli.models.base import count_parameters
from kd_cli.plugins import trust
from kd_cli.taps import Tapped
from tests.support.networks import CONF, MNIST, build, built, images, options, tiny

trust(__name__)


def test_torchvisions_first_convolution_takes_grey_images_and_keeps_its_settings() -> None:
    grey, colour = build(options("torchvision"), MNIST), built("torchvision")
    assert grey.conv1.weight.shape == (64, 1, 7, 7)
    assert (grey.conv1.stride, grey.conv1.padding, grey.conv1.bias) == ((2, 2), (3, 3), None)
    assert count_parameters(colour) - count_parameters(grey) == 2 * 64 * 49


def test_stages_of_a_features_network_are_the_last_maps_of_each_size() -> None:
    network = build({"name": "torchvision", "model": "mobilenet_v3_small"})
    assert network.taps == {
        "stage1": "features.0",
        "stage2": "features.1",
        "stage3": "features.3",
        "stage4": "features.8",
        "stage5": "features.12",
        "embedding": "classifier.3:in",
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("resnet18", [f"layer{i}.1.relu:in" for i in (1, 2, 3, 4)]),
        ("resnet50", ["layer1.2.relu:in", "layer2.3.relu:in", "layer3.5.relu:in", "layer4.2.relu:in"]),
        ("vgg11", [f"features.{i}:in" for i in (1, 4, 9, 14, 19)]),
        ("vgg11_bn", [f"features.{i}:in" for i in (2, 6, 13, 20, 27)]),
        ("mobilenet_v2", ["features.18.2:in"]),  # the other stages end with a projection
        ("efficientnet_b0", []),  # no ReLU
    ],
)
def test_torchvisions_stages_that_end_with_a_relu_publish_its_input(model: str, expected: list[str]) -> None:
    network = build({"name": "torchvision", "model": model}).eval()
    preacts = {tap: place for tap, place in network.taps.items() if tap.startswith("preact")}
    assert list(preacts.values()) == expected
    with torch.no_grad():
        features = Tapped(network, list(network.taps))(images(2)).features
        for tap, place in preacts.items():
            before, after = features[tap], features[tap.replace("preact", "stage")]
            assert (before < 0).any()
            assert torch.equal(network.get_submodule(place.removesuffix(":in"))(before), after)


@pytest.mark.parametrize(
    ("ending", "taps"),
    [
        ("relu", {"preact1": "layer1.relu:in"}),
        ("relu, then added to", {}),  # the same tensor, overwritten
        ("relu outside", {}),
        ("functional", {}),
    ],
)
def test_a_foreign_stage_publishes_what_surely_is_before_its_last_activation(ending: str, taps: dict[str, str]) -> None:
    network = build({"name": "external", "callable": f"{__name__}.Ending", "kwargs": {"ending": ending}})
    assert network.taps == {"stage1": "layer1", **taps, "embedding": "fc:in"}


def small_swin(num_classes: int) -> nn.Module:
    from torchvision.models import SwinTransformer

    return SwinTransformer([2, 2], 8, [1, 1, 1], [2, 2, 2], [4, 4], num_classes=num_classes)


def small_vit(num_classes: int) -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, 8, 2, 16, 32, num_classes=num_classes)


TRANSFORMERS = {
    "small_swin": ([(8, 16), (16, 8), (32, 4)], {"stage3": "features.5:last", "final": "avgpool:in"}),
    "small_vit": ([(16, 4)] * 4, {"stage1": "encoder.layers.encoder_layer_1:tokens1", "embedding": "heads.head:in"}),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_what_a_transformer_gives_is_published_as_maps(name: str) -> None:
    expected, places = TRANSFORMERS[name]
    network = build({"name": "external", "callable": f"{__name__}.{name}"}).eval()
    assert places.items() <= network.taps.items()
    with torch.no_grad():
        said = Tapped(network, ["stages", "final", "embedding"])(images(2))
    shapes = [tuple(said.features[f"stage{i + 1}"].shape) for i in range(len(expected))]
    assert shapes == [(2, channels, side, side) for channels, side in expected]
    if name == "small_swin":
        torch.testing.assert_close(said.features["final"].mean((2, 3)), said.features["embedding"])
    assert torch.equal(network.get_submodule(network.taps["embedding"][:-3])(said.features["embedding"]), said.logits)


TIMM = {
    "test_vit": {"img_size": 32, "patch_size": 8},
    "test_convnext": {},
    "test_efficientnet": {},
    "test_resnet": {},
}


@pytest.mark.parametrize("model", TIMM)
def test_the_stages_of_timms_networks_are_the_maps_that_timm_gives(model: str) -> None:
    pytest.importorskip("timm")
    given = {"name": "external", "callable": "timm.create_model", "kwargs": {"model_name": model, **TIMM[model]}}
    network = build(given).eval()
    with torch.no_grad():
        said = Tapped(network, ["stages", "final", "embedding"])(images(2))
        theirs = network.forward_intermediates(images(2), intermediates_only=True)
    stages = [feature for tap, feature in said.features.items() if tap.startswith("stage")]
    assert len(stages) >= 4
    for stage in stages:
        assert any(stage.shape == each.shape and torch.allclose(stage, each, atol=1e-6) for each in theirs)
    assert torch.equal(network.get_classifier()(said.features["embedding"]), said.logits)
    if model == "test_efficientnet":  # a convolution stands between the deepest stage and the average
        assert network.taps["final"] == "global_pool:in"
        torch.testing.assert_close(said.features["final"].mean((2, 3)), said.features["embedding"])


def test_of_a_distilled_transformer_the_class_tokens_head_is_the_classifier() -> None:
    pytest.importorskip("timm")
    kwargs = {"model_name": "deit_tiny_distilled_patch16_224", "img_size": 32, "depth": 4}
    network = build({"name": "external", "callable": "timm.create_model", "kwargs": kwargs})
    assert network.taps["embedding"] == "head:in"
    assert network.taps["stage4"] == "blocks.3:tokens2"


class Reordered(nn.Module):
    """Its tokens are in another order than rows and columns, as timm's Hiera has them."""

    def __init__(self, num_classes: int, in_channels: int, order: str) -> None:
        super().__init__()
        setattr(self, order, nn.Identity())
        self.blocks = nn.Sequential(nn.Linear(in_channels, 4))
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(x.flatten(2).transpose(1, 2)).mean(1))


def test_tokens_in_another_order_are_no_map_and_modules_can_be_named() -> None:
    given = {"name": "external", "callable": f"{__name__}.Reordered", "kwargs": {"order": "unroll"}}
    network = build(given)
    assert network.taps == {"embedding": "fc:in"}
    for tap in ("stages", "stage-1"):
        with pytest.raises(ValueError, match=r"Reordered publishes no stages.*student\.taps={stage:blocks\.\*}"):
            Tapped(network, [tap])
    assert build({**given, "kwargs": {"order": "plain"}}).taps["stage1"] == "blocks.0:tokens0"
    named = build({**given, "taps": {"stage": "blocks.*:tokens"}})
    assert Tapped(named, ["stage1"])(images(2)).features["stage1"].shape == (2, 4, 32, 32)


class Ending(nn.Module):
    """One stage, which ends in several ways."""

    def __init__(self, num_classes: int, in_channels: int, ending: str) -> None:
        super().__init__()
        self.layer1 = Stage(in_channels, ending)
        self.relu = nn.ReLU(inplace=ending == "relu outside")
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.relu(self.layer1(x)).mean((2, 3)))


class Stage(nn.Module):
    def __init__(self, in_channels: int, ending: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4, 3)
        self.relu = nn.ReLU(inplace=True)
        self.ending = ending

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.ending == "relu outside":
            return x
        if self.ending == "functional":
            return nn.functional.relu(x)
        y = self.relu(x)
        if self.ending == "relu, then added to":
            y += 1
        return y


def test_external_calls_a_foreign_function_with_what_it_takes() -> None:
    network = build({"name": "external", "callable": "torchvision.models.resnet18", "kwargs": {"width_per_group": 64}})
    assert network.fc.out_features == 10
    assert network.taps["embedding"] == "fc:in"
    assert built("external").taps == {"embedding": "4:in"}


def test_external_networks_come_back_in_the_mode_and_state_they_were_made_in() -> None:
    network = build({"name": "external", "callable": f"{__name__}.with_frozen_norm"})
    assert network.training
    assert not network[1].training
    assert network[0].training
    assert network[1].num_batches_tracked == 0
    assert not any(module._forward_hooks for module in network.modules())


def test_a_foreign_networks_own_taps_are_kept() -> None:
    network = build({"name": "external", "callable": f"{__name__}.with_taps"})
    assert network.taps == {"embedding": "3"}


def with_frozen_norm(num_classes: int, in_channels: int) -> nn.Module:
    network = nn.Sequential(nn.Conv2d(in_channels, 4, 3), nn.BatchNorm2d(4), *tiny(num_classes, 4))
    network[1].eval()
    return network


def with_taps(num_classes: int, in_channels: int) -> nn.Module:
    network = tiny(num_classes, in_channels)
    network.taps = {"embedding": "3"}
    return network


def wrong_logits(num_classes: int, in_channels: int) -> nn.Module:
    return tiny(num_classes + 1, in_channels)


def no_network() -> str:
    return "network"


def two_outputs(in_channels: int) -> nn.Module:
    return nn.LSTM(32, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "external"}, r"student\.callable: .*student\.callable=package\.module\.function"),
        ({"name": "external", "callable": "no_such_package.build"}, r"add plugins=\[no_such_package\]"),
        ({"name": "external", "callable": f"{__name__}.nothing"}, "cannot import .* as package.module.function"),
        ({"name": "external", "callable": "torchvision.models.resnet19"}, "resnet19"),
        ({"name": "external", "callable": "justaword"}, "as package.module.function"),
        ({"name": "external", "callable": f"{__name__}.MNIST"}, "is a tuple, not a function"),
        ({"name": "external", "callable": f"{__name__}.no_network"}, "returned a str, not an nn.Module"),
        ({"name": "external", "callable": f"{__name__}.tiny", "kwargs": {"depth": 3}}, r"student\.kwargs.*depth"),
        ({"name": "external", "callable": f"{__name__}.tiny", "kwargs": {"in_channels": 1}}, r"\[2, 3, 32, 32\]"),
        ({"name": "external", "callable": f"{__name__}.wrong_logits"}, r"gave \[2, 11\] .*not logits \[2, 10\]"),
        ({"name": "external", "callable": f"{__name__}.two_outputs"}, "two_outputs"),
        ({"name": "torchvision", "model": "resnet19"}, r"student\.model: .*did you mean 'resnet1"),
        ({"name": "torchvision", "model": "fcn_resnet50"}, "no classifier 'fcn_resnet50'"),
        ({"name": "torchvision", "kwargs": {"depth": 3}}, r"student\.kwargs: torchvision's resnet18.*depth"),
        ({"name": "torchvision", "model": "alexnet"}, r"alexnet cannot take images \[2, 3, 32, 32\]"),
        (
            {"name": "torchvision", "model": "googlenet", "kwargs": {"init_weights": False}},
            r"student\.kwargs: googlenet .*aux_logits: false",
        ),
    ],
)
def test_foreign_networks_that_cannot_be_used_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(given)


def test_no_network_file_imports_torchvision_before_it_is_asked_for() -> None:
    for path in (CONF.parent / "kd_cli" / "models").glob("*.py"):
        assert not re.search(r"^(import|from) torchvision", path.read_text(encoding="utf-8"), re.MULTILINE), path


OFFLINE = {
    "timm's": {
        "name": "external",
        "callable": "timm.create_model",
        "kwargs": {"model_name": "resnet10t", "pretrained": True},
    },
    "torchvision's": {"name": "torchvision", "kwargs": {"weights": "DEFAULT", "num_classes": 1000}},
}


@pytest.mark.parametrize("options", OFFLINE.values(), ids=OFFLINE)
def test_weights_that_cannot_be_downloaded_are_told_at_once_with_what_to_type(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    def unreachable(*_: Any, **__: Any) -> Any:
        asked.append(1)
        raise socket.gaierror(-2, "Name or service not known")

    asked: list[int] = []
    for name in ("socket.create_connection", "socket.getaddrinfo", "socket.socket.connect"):
        monkeypatch.setattr(name, unreachable)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for proxy in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(proxy, raising=False)
        monkeypatch.delenv(proxy.upper(), raising=False)
    with pytest.raises(ConfigError, match=r"student\.kwargs: .* cannot get its weights .*student\.pretrained=FILE"):
        build(options)
    assert len(asked) == 1  # and not for half a minute
