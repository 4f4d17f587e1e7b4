"""Every network and every yaml of conf/student and conf/teacher."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn

from kd_cli.errors import ConfigError
from kd_cli.models.base import MODELS, count_parameters
from kd_cli.taps import Tapped

CONF = Path(__file__).parents[1] / "conf"
STUDENTS = sorted(path.stem for path in (CONF / "student").glob("*.yaml"))
INJECTED = ("num_classes", "in_channels", "image_size")
OURS = [name for name in MODELS.names() if name not in ("external", "torchvision")]
MNIST, CIFAR = (1, 28, 28), (3, 32, 32)

# parameters at 100 classes in the tables and logs of the CIFAR-100 distillation literature (arXiv:1910.10699)
PUBLISHED = {
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
    "vgg8": 3_965_028,
    "vgg13": 9_462_180,
    "mobilenetv2": 812_836,
    "shufflenetv1": 949_258,
    "shufflenetv2": 1_355_528,
}
PUBLISHED_ROUNDED = {"resnet8": 0.08, "resnet14": 0.18, "wrn_16_1": 0.18, "vgg11": 9.28}  # millions

# channels and size of every stage and the embedding's dimension at 3×32×32
SHAPES = {
    "resnet20": ([(16, 32), (32, 16), (64, 8)], 64),
    "resnet8x4": ([(64, 32), (128, 16), (256, 8)], 256),
    "wrn_40_2": ([(32, 32), (64, 16), (128, 8)], 128),
    "vgg8": ([(64, 32), (128, 16), (256, 8), (512, 4), (512, 4)], 512),
    "vgg13": ([(64, 32), (128, 16), (256, 8), (512, 4), (512, 4)], 512),
    "mobilenetv2": ([(12, 16), (16, 8), (48, 4), (160, 2)], 1280),
    "shufflenetv1": ([(240, 16), (480, 8), (960, 4)], 960),
    "shufflenetv2": ([(116, 16), (232, 8), (464, 4)], 1024),
    "cifar10_kl_teacher": ([(64, 16), (32, 8)], 512),
    "cifar10_kl_student": ([(16, 16), (16, 8)], 256),
    "mnist_mlp_teacher": ([], 1200),
    "linear": ([], 3 * 32 * 32),
    "torchvision": ([(64, 8), (128, 4), (256, 2), (512, 1)], 512),
}


def options(student: str) -> dict[str, Any]:
    """The yaml's own options; external's callable, null there, is a function of this file."""
    loaded: dict[str, Any] = yaml.safe_load((CONF / "student" / f"{student}.yaml").read_text(encoding="utf-8"))
    return loaded | {"callable": f"{__name__}.tiny"} if student == "external" else loaded


def build(
    given: Mapping[str, Any], shape: tuple[int, int, int] = CIFAR, num_classes: int = 10, seed: int = 0
) -> nn.Module:
    torch.manual_seed(seed)
    return MODELS.build(given, where="student", num_classes=num_classes, in_channels=shape[0], image_size=shape[1])


@cache
def built(student: str) -> nn.Module:
    """One network per yaml for the tests that leave it as it is: 3×32×32, 10 classes, eval mode."""
    return build(options(student)).eval()


def images(batch: int, shape: tuple[int, int, int] = CIFAR) -> Tensor:
    return torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0))


def tapped(network: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    """Every published feature, by hooks of this test; of inputs a copy, which no activation overwrites."""
    seen: dict[str, Tensor] = {}
    handles = []
    for tap, place in network.taps.items():
        path, _, side = place.partition(":")
        assert side in ("", "in")
        module = network.get_submodule(path)
        if side:
            handles.append(module.register_forward_pre_hook(lambda _, x, tap=tap: seen.update({tap: x[0].clone()})))
        else:
            handles.append(module.register_forward_hook(lambda _, __, y, tap=tap: seen.update({tap: y})))
    network(batch)
    for handle in handles:
        handle.remove()
    return seen


def tiny(num_classes: int, in_channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
    )


# yaml and signature


@pytest.mark.parametrize("student", STUDENTS)
def test_a_students_yaml_lists_exactly_the_options_of_its_network(student: str) -> None:
    given = options(student)
    signature = inspect.signature(MODELS.component(given.pop("name"))).parameters
    assert list(given) == [key for key in signature if key not in INJECTED]


@pytest.mark.parametrize("name", MODELS.names())
def test_a_networks_own_yaml_holds_the_defaults_of_its_signature(name: str) -> None:
    given = yaml.safe_load((CONF / "student" / f"{name}.yaml").read_text(encoding="utf-8"))
    signature = inspect.signature(MODELS.component(name)).parameters
    defaults = {key: p.default for key, p in signature.items() if key not in INJECTED}
    as_lists = OmegaConf.to_container(OmegaConf.create({key: _plain(value) for key, value in defaults.items()}))
    assert given == {"name": name, **as_lists}


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def test_teachers_and_students_are_the_same_choices_with_the_same_first_line() -> None:
    for path in (CONF / "student").glob("*.yaml"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert re.fullmatch(r"# \S.* · \S.*", lines[0]), path
        expected = f"{lines[0]}\ndefaults:\n  - /student/{path.stem}@_here_\n  - _self_\n"
        assert (CONF / "teacher" / path.name).read_text(encoding="utf-8") == expected
    assert sorted(path.stem for path in (CONF / "teacher").glob("*.yaml")) == STUDENTS


@pytest.fixture(scope="module")
def primary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("conf")
    search = f"hydra:\n  searchpath: [file://{CONF}]\n"
    (folder / "main.yaml").write_text(f"defaults:\n  - teacher: mlp\n  - student: mlp\n  - _self_\n{search}")
    with initialize_config_dir(str(folder), version_base="1.3"):
        yield


@pytest.mark.parametrize("choice", STUDENTS)
def test_hydra_composes_every_choice_as_teacher_and_as_student_alike(primary: None, choice: str) -> None:
    config = compose("main", [f"teacher={choice}", f"student={choice}"])
    written = yaml.safe_load((CONF / "student" / f"{choice}.yaml").read_text(encoding="utf-8"))
    assert config.teacher == config.student == OmegaConf.create(written)


# what every network does


@pytest.mark.parametrize("shape", [MNIST, CIFAR], ids=str)
@pytest.mark.parametrize("student", STUDENTS)
def test_one_image_gives_finite_logits(student: str, shape: tuple[int, int, int]) -> None:
    network = built(student) if shape == CIFAR else build(options(student), shape).eval()
    with torch.no_grad():
        logits = network(images(1, shape))
    assert logits.shape == (1, 10)
    assert logits.isfinite().all()


@pytest.mark.parametrize("student", STUDENTS)
def test_gradient_reaches_every_parameter(student: str) -> None:
    network = build(options(student)).train()
    nn.functional.cross_entropy(network(images(4)), torch.tensor([0, 1, 2, 3])).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.dim() < 2 or parameter.grad.any(), name


@pytest.mark.parametrize("student", STUDENTS)
def test_channels_last_changes_no_logit(student: str) -> None:
    network = build(options(student)).eval()
    with torch.no_grad():
        plain = network(images(2))
        network.to(memory_format=torch.channels_last)
        torch.testing.assert_close(
            network(images(2).to(memory_format=torch.channels_last)), plain, rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("student", STUDENTS)
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(student: str) -> None:
    first, again = built(student).state_dict(), build(options(student)).state_dict()
    other = build(options(student), seed=1).state_dict()
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("student", STUDENTS)
def test_taps_lead_to_maps_that_shrink_and_to_the_classifiers_input(student: str) -> None:
    with torch.no_grad():
        seen = tapped(built(student), images(2))
    embedding = seen.pop("embedding")
    assert embedding.shape[0] == 2
    assert embedding.dim() == 2
    if "final" in seen:
        torch.testing.assert_close(seen["final"].mean(dim=(2, 3)), embedding)
    seen = {name: feature for name, feature in seen.items() if name.startswith("stage")}
    assert list(seen) == [f"stage{i}" for i in range(1, len(seen) + 1)]
    assert all(feature.dim() == 4 and feature.shape[0] == 2 for feature in seen.values())
    sizes = [feature.shape[2] for feature in seen.values()]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("student", SHAPES)
def test_taps_have_the_shapes_that_the_docstrings_promise(student: str) -> None:
    stages, dimension = SHAPES[student]
    with torch.no_grad():
        seen = tapped(built(student), images(2))
    assert seen["embedding"].shape == (2, dimension)
    assert [tuple(seen[f"stage{i + 1}"].shape) for i in range(len(stages))] == [(2, c, s, s) for c, s in stages]
    assert f"stage{len(stages) + 1}" not in seen


@pytest.mark.parametrize("student", STUDENTS)
def test_a_preactivation_is_its_stage_before_the_last_relu(student: str) -> None:
    network = built(student)
    with torch.no_grad():
        seen = tapped(network, images(2))
    for name in (name for name in seen if name.startswith("preact")):
        before, after = seen[name], seen[name.replace("preact", "stage")]
        assert before.shape[1] == after.shape[1]
        assert (before < 0).any()
        if before.shape == after.shape and not (after < 0).any():
            assert torch.equal(torch.relu(before), after)


@pytest.mark.parametrize("student", [student for student in STUDENTS if options(student)["name"] in OURS])
def test_the_embedding_makes_the_logits_and_no_activation_overwrites_a_tap(student: str) -> None:
    network = built(student)
    with torch.no_grad():
        logits = network(images(2))
        assert torch.equal(network.fc(tapped(network, images(2))["embedding"]), logits)
    assert not any(getattr(module, "inplace", False) for module in network.modules())


# the zoo


@pytest.mark.parametrize(("name", "expected"), PUBLISHED.items())
def test_parameters_are_exactly_the_published_ones(name: str, expected: int) -> None:
    with torch.device("meta"):
        assert count_parameters(build({"name": name}, num_classes=100)) == expected


@pytest.mark.parametrize(("name", "millions"), PUBLISHED_ROUNDED.items())
def test_parameters_round_to_the_published_ones(name: str, millions: float) -> None:
    with torch.device("meta"):
        assert round(count_parameters(build({"name": name}, num_classes=100)) / 1e6, 2) == millions


@pytest.mark.parametrize("name", [name for name in OURS if name not in ("mlp", "cnn")])
def test_the_literatures_networks_are_parameter_checked(name: str) -> None:
    assert name in PUBLISHED | PUBLISHED_ROUNDED


@pytest.mark.parametrize("name", ["resnet56", "wrn_40_2", "vgg8", "mobilenetv2"])
def test_convolutions_start_with_he_initialisation_by_fan_out(name: str) -> None:
    for path, module in built(name).named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            expected = (2 / (module.kernel_size[0] ** 2 * module.out_channels)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.1), path
        elif isinstance(module, nn.BatchNorm2d):
            assert module.weight.eq(1).all(), path
            assert module.bias.eq(0).all(), path


def test_a_residual_block_starts_its_shortcut_where_the_paper_does() -> None:
    network = built("wrn_16_2")
    block, features = network.block2[0], torch.randn(2, 32, 8, 8)
    with torch.no_grad():
        active = nn.functional.relu(block.bn1(features))
        residual = block.conv2(nn.functional.relu(block.bn2(block.conv1(active))))
        torch.testing.assert_close(block(features), residual + block.shortcut(active))
        same = network.block2[1](features.repeat(1, 2, 1, 1))
        assert same.shape == (2, 64, 8, 8)
    assert network.block2[1].shortcut is None
    assert [len(built("resnet20").get_submodule(f"layer{i}.0.downsample")) for i in (1, 2, 3)] == [0, 2, 2]


def test_shuffling_interleaves_the_groups() -> None:
    from kd_cli.models.shufflenet import Shuffle

    channels = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert Shuffle(2)(channels).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert Shuffle(3)(channels).flatten().tolist() == [0, 2, 4, 1, 3, 5]


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


# torchvision and external


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
        ({"name": "external", "callable": "no_such_package.build"}, "No module named 'no_such_package'"),
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
