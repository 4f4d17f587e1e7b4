"""What a network is shown: re-normalised and resized inside it; filled in from published weights."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd_cli import console
from kd_cli.config.plan import network_options
from kd_cli.errors import ConfigError
from kd_cli.losses.simkd import headless
from kd_cli.models import VIEW
from kd_cli.models.base import MODELS, build_model, check_model
from kd_cli.plugins import trust
from kd_cli.storage.tensors import network_digest
from kd_cli.taps import Tapped
from kd_cli.types import DataSpec

trust(__name__)

NORMAL = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}
SPEC = DataSpec(4, 1, (3, 16, 16), tuple("abcd"), **NORMAL)
OTHER = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5]}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def normalised(pixels: Tensor, how: Any) -> Tensor:
    mean, std = (torch.tensor(how[key])[:, None, None] for key in ("mean", "std"))
    return (pixels - mean) / std


def sequence(num_classes: int) -> nn.Module:
    """A network whose children are all layers, which keeps what it is shown."""
    layers = nn.Sequential(nn.Identity(), nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    layers.append(nn.Linear(2, num_classes))
    return layers


def built(**view: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_model({"name": "external", "callable": f"{__name__}.sequence", **view}, SPEC, where="student")


def shown(network: nn.Module, images: Tensor) -> Tensor:
    return Tapped(network, ["0"])(images).features["0"]


@pytest.fixture
def pixels() -> Tensor:
    return torch.randint(0, 256, (5, 3, 16, 16), generator=torch.Generator().manual_seed(0)) / 255


def test_a_network_is_shown_the_pixels_as_it_was_made_for_them(pixels: Tensor) -> None:
    images = normalised(pixels, NORMAL)
    assert torch.allclose(shown(built(**OTHER), images), normalised(pixels, OTHER), atol=1e-5)
    half = {"mean": NORMAL["mean"], "std": [1.0]}
    assert torch.allclose(shown(built(std=[1]), images), normalised(pixels, half), atol=1e-5)
    for sides, mode in ((24, None), ([8, 12], "bilinear"), (7, "bicubic")):
        expected = nn.functional.interpolate(images, sides, mode=mode or "bilinear", antialias=True)
        assert torch.allclose(shown(built(image_size=sides, interpolation=mode), images), expected, atol=1e-6)


def test_what_is_shown_as_it_is_has_the_same_bits(pixels: Tensor) -> None:
    plain, same = built(), built(mean=[0.5, 0.4, 0.3], std=[0.2, 0.25, 0.3], image_size=16, interpolation="bicubic")
    assert not hasattr(same, "seen_as")
    assert torch.equal(plain(pixels), same(pixels))
    assert network_digest(plain) == network_digest(same)
    assert network_digest(built(mean="data", image_size="data")) == network_digest(plain)


def test_names_of_weights_and_layers_stay_what_they_are() -> None:
    plain, other = built(), built(**OTHER, image_size=24)
    assert plain.state_dict().keys() == other.state_dict().keys()
    assert dict(plain.named_modules()).keys() == dict(other.named_modules()).keys()
    assert plain.taps == other.taps
    other.load_state_dict(plain.state_dict())


def test_a_copy_takes_the_view_with_it(pixels: Tensor) -> None:
    network = built(**OTHER, image_size=24)
    images = normalised(pixels, NORMAL)
    copied = copy.deepcopy(network)
    with torch.no_grad():
        network[1].weight.zero_()
    assert shown(copied, images).shape == (5, 3, 24, 24)
    assert not torch.equal(copied(images), network(images))
    assert headless(copied)(images).shape == (5, 2)
    assert copied.double()(images.double()).dtype == torch.float64


def test_the_cache_tells_views_apart() -> None:
    sizes: list[dict[str, Any]] = [{}, {"image_size": 4}, {"image_size": [4, 5]}]
    views = [{**each, **normal} for each in sizes for normal in ({}, OTHER)]
    views.append({"image_size": 4, "interpolation": "bicubic"})
    assert len({network_digest(built(**view)) for view in views}) == len(views)


@pytest.mark.parametrize(
    ("view", "said"),
    [
        ({"mean": [0.1, 0.2]}, "the images have 3 channels; type student.mean=[0.5,0.5,0.5], or student.mean=data stu"),
        ({"mean": 0.5}, "student.mean: 0.5 is not a list; type 'student.mean=[0.5]'"),
        ({"std": [0]}, "student.std: [0.0]: 0.0 is not possible"),
        ({"image_size": 0}, "student.image_size: 0 is not possible; type a number"),
        ({"image_size": [10**9, 1]}, "is not possible; type a number"),
        ({"image_size": [1, 2, 3]}, "or [height,width]"),
        ({"image_size": 8, "interpolation": "cubic"}, "student.interpolation: 'cubic' is not possible"),
        ({"interpolation": "bicubic"}, "student.interpolation: bicubic says nothing without a size"),
    ],
)
def test_what_cannot_be_is_refused(view: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        built(**view)
    assert said.replace("'", "") in str(error.value).replace("'", "")


def test_a_network_for_squares_says_so_of_a_rectangle() -> None:
    options = {"name": "mlp", "image_size": [8, 12]}
    check_model(options, where="teacher")
    with pytest.raises(ConfigError, match=r"teacher.image_size=\[8,12\]: .* type teacher.image_size=8"):
        build_model(options, SPEC, where="teacher")
    build_model({"name": "resnet8", "image_size": [8, 12]}, SPEC, where="teacher")


TV = {"name": "torchvision", "model": "efficientnet_b0"}
TIMM = {"name": "external", "callable": "timm.create_model"}


def test_published_weights_of_torchvision_fill_in_what_is_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(console, "notice", said.append)
    whole = {**IMAGENET, "image_size": 224, "interpolation": "bicubic"}
    for more in ({"kwargs": {"weights": "DEFAULT"}}, {"pretrained": "some/efficientnet_b0_rwightman-7f5810bc.pth"}):
        assert network_options({**TV, **more}, "teacher") == {**TV, **more, **whole}
    asked = {"kwargs": {"weights": "IMAGENET1K_V1"}, "image_size": 64, "mean": "data"}
    kept = {"std": IMAGENET["std"], "image_size": 64}
    assert network_options({**TV, **asked}, "student", {"crop_pct": 0.5}) == {**TV, "kwargs": asked["kwargs"], **kept}
    assert "teacher: the weights EfficientNet_B0_Weights.IMAGENET1K_V1 were made for teacher.mean=[0.485," in said[0]
    assert "teacher.image_size=224 teacher.interpolation=bicubic, and the network is shown the images so; " in said[0]
    assert "type teacher.mean=data teacher.std=data teacher.image_size=data" in said[0]
    assert said[-1].endswith("tested with dataset.crop_pct=0.875; to show them as the data are, type student.std=data")


def test_grey_images_keep_their_mean_where_published_weights_have_three(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(console, "notice", said.append)
    options = {**TV, "kwargs": {"weights": "DEFAULT"}}
    size = {"image_size": 224, "interpolation": "bicubic"}
    assert network_options(options, "student", {"mode": "gray"}) == {**options, **size}
    assert "mean and std, of three colours, stay as grey images have them" in said[0]
    assert "student.mean" not in said[0]
    typed = {"mean": [0.4], "std": [0.2]}
    assert network_options({**options, **typed}, "student", {"mode": "gray"}) == {**options, **typed, **size}
    assert network_options(options, "student", {"mode": "rgb"}) == {**options, **size, **IMAGENET}


@pytest.mark.parametrize(
    "options",
    [
        {**TV, "pretrained": "mine.pth"},
        {**TV, "kwargs": {"dropout": 0.1}},
        {**TV, "kwargs": {"weights": "NONE"}},
        {**TV, "kwargs": "text"},
        {**TV, "model": "no_such", "pretrained": "x.pth"},
        {**TIMM, "kwargs": {"model_name": "resnet10t"}},
        {**TIMM, "kwargs": {"model_name": "resnet10t", "pretrained": False}, "pretrained": "x.pth"},
        {**TIMM, "kwargs": {"model_name": "resnet10t.no_such", "pretrained": True}},
        {**TIMM, "kwargs": {"model_name": "no_such", "pretrained": True}},
        {"name": "external", "callable": "mine.timm", "pretrained": "x.pth"},
        {"name": "resnet20", "pretrained": "x.pth"},
    ],
)
def test_weights_that_say_nothing_change_nothing(options: dict[str, Any]) -> None:
    pytest.importorskip("timm")
    assert network_options(options, "student") == options


def test_published_weights_of_timm_fill_in_what_is_not_said() -> None:
    timm = pytest.importorskip("timm")
    config = timm.get_pretrained_cfg("resnet10t.c3_in1k")
    expected = {**IMAGENET, "image_size": config.input_size[1], "interpolation": config.interpolation}
    for kwargs, more in (
        ({"model_name": "resnet10t", "pretrained": True}, {}),
        ({"model_name": "resnet10t.c3_in1k"}, {"pretrained": "x.safetensors"}),
    ):
        options = {**TIMM, "kwargs": kwargs, **more}
        assert network_options(options, "student") == {**options, **expected}
    own = {"name": "external", "callable": "timm.models.resnet10t", "kwargs": {"pretrained": True}}
    assert network_options(own, "student") == {**own, **expected}


def test_no_network_has_an_option_of_these_names() -> None:
    for name in MODELS.names():
        assert not set(inspect.signature(MODELS.component(name)).parameters) & set(VIEW) - {"image_size"}
