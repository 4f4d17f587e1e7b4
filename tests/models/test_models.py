"""Every network and every yaml of conf/student and conf/teacher."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from kd_cli.errors import ConfigError
from kd_cli.models.base import MODELS, count_parameters
from kd_cli.taps import Tapped, classifier_of
from tests.support.networks import CIFAR, CONF, INJECTED, MNIST, OURS, STUDENTS, build, built, images, options, tapped

# parameters at 100 classes in the tables and logs of the CIFAR-100 distillation literature (arXiv:1910.10699)
PUBLISHED = {
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "resnet18": 11_220_132,  # 11.22, 21.33 and 23.71 M: github.com/weiaicunzai/pytorch-cifar100
    "resnet34": 21_328_292,
    "resnet50": 23_705_252,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
    "vgg8": 3_965_028,
    "vgg13": 9_462_180,
    "mobilenetv2": 812_836,
    "shufflenetv1": 949_258,
    "shufflenetv2": 1_355_528,
}
# at 10 classes, as their author counts them (github.com/akamaster/pytorch_resnet_cifar10)
PUBLISHED_AT_10 = {"resnet20_a": 0.27, "resnet32_a": 0.46, "resnet44_a": 0.66, "resnet56_a": 0.85, "resnet110_a": 1.7}
# at 224 pixels and 1000 classes: DeiT's table 1, Mixer's table 1, and timm's of femto (5.7, 22, 19 and 5.2 M)
PUBLISHED_AT_224 = {
    "vit_tiny": ({}, 5_717_416),
    "vit_tiny distilled": ({"distilled": True}, 5_910_800),
    "vit_small": ({}, 22_050_664),
    "vit_small distilled": ({"distilled": True}, 22_436_432),
    "mixer": ({"width": 512}, 18_528_264),
    "convnext_femto": ({}, 5_217_784),
}
PUBLISHED_ROUNDED = {"resnet8": 0.08, "resnet14": 0.18, "wrn_16_1": 0.18, "vgg11": 9.28}  # millions

# channels and size of every stage and the embedding's dimension at 3×32×32
SHAPES = {
    "resnet20": ([(16, 32), (32, 16), (64, 8)], 64),
    "resnet8x4": ([(64, 32), (128, 16), (256, 8)], 256),
    "resnet18": ([(64, 32), (128, 16), (256, 8), (512, 4)], 512),
    "wrn_40_2": ([(32, 32), (64, 16), (128, 8)], 128),
    "vgg8": ([(64, 32), (128, 16), (256, 8), (512, 4), (512, 4)], 512),
    "vgg13": ([(64, 32), (128, 16), (256, 8), (512, 4), (512, 4)], 512),
    "mobilenetv2": ([(12, 16), (16, 8), (48, 4), (160, 2)], 1280),
    "shufflenetv1": ([(240, 16), (480, 8), (960, 4)], 960),
    "shufflenetv2": ([(116, 16), (232, 8), (464, 4)], 1024),
    "vit_tiny": ([(192, 8)] * 4, 192),
    "vit_small": ([(384, 8)] * 4, 384),
    "mixer": ([(256, 8)] * 4, 256),
    "convnext_femto": ([(48, 16), (96, 8), (192, 4), (384, 2)], 384),
    "cifar10_kl_teacher": ([(64, 16), (32, 8)], 512),
    "cifar10_kl_student": ([(16, 16), (16, 8)], 256),
    "mnist_mlp_teacher": ([], 1200),
    "linear": ([], 3 * 32 * 32),
    "torchvision": ([(64, 8), (128, 4), (256, 2), (512, 1)], 512),
}


# yaml and signature


@pytest.mark.parametrize("student", STUDENTS)
def test_a_students_yaml_lists_exactly_the_options_of_its_network(student: str) -> None:
    given = options(student)
    signature = inspect.signature(MODELS.component(given.pop("name"))).parameters
    assert list(given) == [key for key in signature if key not in INJECTED]


@pytest.mark.parametrize("name", MODELS.names())
def test_a_networks_own_yaml_holds_the_defaults_of_its_signature(name: str) -> None:
    group = "teacher" if vars(MODELS.component(name)).get("ready") else "student"
    given = yaml.safe_load((CONF / group / f"{name}.yaml").read_text(encoding="utf-8"))
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
    only_teachers = {name for name in MODELS.names() if vars(MODELS.component(name)).get("ready")}
    assert {path.stem for path in (CONF / "teacher").glob("*.yaml")} == {*STUDENTS, *only_teachers}


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


@pytest.mark.slow
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
        assert torch.equal(classifier_of(network)(tapped(network, images(2))["embedding"]), logits)
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


@pytest.mark.parametrize(("name", "millions"), PUBLISHED_AT_10.items())
def test_networks_without_shortcut_parameters_have_the_published_number(name: str, millions: float) -> None:
    with torch.device("meta"):
        assert round(count_parameters(build({"name": name})) / 1e6, 1 if name == "resnet110_a" else 2) == millions


@pytest.mark.parametrize("name", [name for name in OURS if name not in ("mlp", "cnn")])
def test_the_literatures_networks_are_parameter_checked(name: str) -> None:
    assert name in PUBLISHED | PUBLISHED_ROUNDED | PUBLISHED_AT_10 | PUBLISHED_AT_224


@pytest.mark.parametrize("name", PUBLISHED_AT_224)
def test_networks_of_imagenet_have_the_published_parameters_there(name: str) -> None:
    given, expected = PUBLISHED_AT_224[name]
    with torch.device("meta"):
        network = build({"name": name.partition(" ")[0], **given}, (3, 224, 224), num_classes=1000)
    assert count_parameters(network) == expected


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


def test_a_shortcut_without_parameters_takes_every_second_pixel_between_channels_of_zeros() -> None:
    shortcut = built("resnet20_a").layer2[0].downsample
    features = images(2, (16, 5, 5))
    expected = torch.zeros(2, 32, 3, 3)
    for row, column in product(range(3), repeat=2):
        expected[:, 8:24, row, column] = features[:, :, 2 * row, 2 * column]
    assert torch.equal(shortcut(features), expected)
    assert [len(built("resnet20_a").get_submodule(f"layer{i}.0.downsample")) for i in (1, 2, 3)] == [0, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_with_imagenets_stem_a_residual_network_is_torchvisions(name: str) -> None:
    options = {"name": "torchvision", "model": name}
    theirs, ours = build(options), build({"name": name, "stem": "imagenet"})
    assert all(torch.equal(value, ours.state_dict()[key]) for key, value in theirs.state_dict().items())
    small, same = built(name), build({**options, "stem": "cifar"}).eval()
    with torch.no_grad():
        assert torch.equal(small(images(2)), same(images(2)))
    assert small.taps == theirs.taps == ours.taps
    with pytest.raises(ConfigError, match=r"stem: vgg11 has no stem .* type student\.stem=imagenet"):
        build({"name": "torchvision", "model": "vgg11", "stem": "cifar"})


TIMMS: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "vit_tiny": ("deit_tiny_patch16_224", {}, {"fc": "head"}),
    "vit_tiny distilled": (
        "deit_tiny_distilled_patch16_224",
        {"distilled": True},
        {"fc.head": "head", "fc.distilled": "head_dist"},
    ),
    "mixer": ("mixer_s16_224", {"width": 512}, {"patch_embed": "stem", "fc": "head"}),
}


@pytest.mark.parametrize("name", TIMMS)
def test_with_the_same_weights_a_network_says_what_timms_says(name: str) -> None:
    timm = pytest.importorskip("timm")
    model, given, renamed = TIMMS[name]
    shape = (3, 64, 64)
    ours = build({"name": name.partition(" ")[0], "patch_size": 16, **given}, shape).eval()
    state = {}
    for key, value in ours.state_dict().items():
        before = next((before for before in renamed if key.startswith(f"{before}.")), None)
        state[key if before is None else renamed[before] + key.removeprefix(before)] = value
    theirs = timm.create_model(model, num_classes=10, img_size=64).eval()
    theirs.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(ours(images(2, shape)), theirs(images(2, shape)), rtol=1e-4, atol=1e-5)


def test_the_heads_of_two_tokens_vote_together_unless_a_loss_teaches_the_second_one_apart() -> None:
    network = build({"name": "vit_tiny", "distilled": True, "patch_size": 16})
    own, second = network.fc.head, network.fc.distilled
    with torch.no_grad():
        tokens = torch.randn(2, 2 * 192)
        apart = own(tokens[:, :192]), second(tokens[:, 192:])
        for mode in (True, False):
            assert torch.equal(network.train(mode).fc(tokens), (apart[0] + apart[1]) / 2)
        said = Tapped(network.train(), ["distill_logits", "embedding"])(images(2))
        assert torch.equal(said.logits, own(said.features["embedding"][:, :192]))
        assert torch.equal(said.features["distill_logits"], second(said.features["embedding"][:, 192:]))
        said = Tapped(network.eval(), ["distill_logits"])(images(2))
        assert not torch.equal(said.logits, said.features["distill_logits"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_tiny", "mixer", "convnext_femto", "resnet18", "resnet20_a"])
def test_an_exported_network_takes_any_number_of_images(name: str) -> None:
    given = {"name": name, **({"patch_size": 8, "distilled": True} if name == "vit_tiny" else {})}
    network = build(given).eval()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(network, (images(2),), dynamic_shapes=({0: batch},)).module()
    with torch.no_grad():
        torch.testing.assert_close(program(images(3)), network(images(3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "size", "message"),
    [
        ({"name": "vit_tiny"}, 30, r"images of 30 pixels are no whole .* of 4; type student\.patch_size=3 "),
        ({"name": "mixer", "patch_size": 7}, 32, r"patches of 7; type student\.patch_size=4 "),
        ({"name": "mixer", "depth": 3}, 32, "depth: 3 is not possible"),
        ({"name": "convnext_femto", "patch_size": 8}, 32, r"have 4 patches of 8 on a side.*type student\.patch_size=1"),
    ],
)
def test_patches_that_cannot_be_are_refused(given: dict[str, Any], size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(given, (3, size, size))
    build({**given, "patch_size": 1} if size < 32 else {"name": given["name"]}, (3, size, size))


def test_shuffling_interleaves_the_groups() -> None:
    from kd_cli.models.shufflenet import Shuffle

    channels = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert Shuffle(2)(channels).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert Shuffle(3)(channels).flatten().tolist() == [0, 2, 4, 1, 3, 5]
