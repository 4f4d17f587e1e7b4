"""What is frozen stays as it is; rates by layer and weight decay are timm's, where timm knows the network."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from kd_cli.config.recipe import Recipe
from kd_cli.errors import ConfigError
from kd_cli.models.base import MODELS
from kd_cli.training.groups import freeze, frozen_norms, head_of, layers_of, parameter_groups
from kd_cli.training.task import Supervised
from kd_cli.training.trainer import Trainer
from tests.support.advice import offered, unreadable
from tests.support.small import CPU, make_data, make_student


def learned(network: nn.Module) -> list[str]:
    return [name for name, parameter in network.named_parameters() if parameter.requires_grad]


def trained(network: nn.Module, **recipe: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    before = copy.deepcopy(network.state_dict())
    list(Trainer(Recipe(epochs=2, lr=0.05, **recipe), seed=0, device=CPU).epochs(Supervised(network), make_data()))
    return before, network.state_dict()


@pytest.mark.parametrize("recipe", [{}, {"ema_decay": 0.5}, {"swa_epochs": 1}, {"weight_decay": 0.1}])
def test_what_is_frozen_stays_with_its_statistics_and_all_else_moves(recipe: dict[str, Any]) -> None:
    before, after = trained(make_student(), freeze=("stage1", "stage2.*"), **recipe)
    frozen = [name for name in before if name.startswith(("stage1", "stage2"))]
    assert any("running_mean" in name for name in frozen)
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert not any(torch.equal(before[name], after[name]) for name in before if name not in frozen)


def test_an_average_of_frozen_parts_is_what_they_are() -> None:
    network = make_student()
    trainer = Trainer(Recipe(epochs=2, lr=0.05, freeze=("stage1",), swa_epochs=2), seed=0, device=CPU)
    list(trainer.epochs(Supervised(network), make_data()))
    averaged, own = trainer.deployed.state_dict(), network.state_dict()
    assert all(torch.equal(averaged[name], own[name]) == name.startswith("stage1") for name in own if "num" not in name)


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        (["stage1", "stage2"], ("stage3", "classifier")),
        (["stage[12].*"], ("stage3", "classifier")),
        (["*.weight"], ("stage1.0.bias", "stage1.1.bias", "stage2", "stage3", "classifier.bias")),
        (["stage1.0.weight"], ("stage1.0.bias", "stage1.1", "stage2", "stage3", "classifier")),
    ],
)
def test_patterns_name_parameters_and_modules(patterns: list[str], left: tuple[str, ...]) -> None:
    network = make_student()
    freeze(network, patterns)
    matched = [name for name in learned(network) if name.startswith(left)]
    assert matched == learned(network)
    assert 0 < len(matched) < len(list(network.parameters()))


def test_normalisation_is_frozen_by_its_name_or_with_all_of_its_parameters() -> None:
    for patterns, frozen in ((["stage1.1"], 1), (["*.1.weight", "*.1.bias"], 3), (["stage1.1.weight"], 0)):
        network = make_student()
        freeze(network, patterns)
        assert len(frozen_norms(network)) == frozen
    bare = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False)), nn.Conv2d(4, 2, 1))
    freeze(bare, ["0"])
    assert frozen_norms(bare) == [bare[0][1]]


def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(ConfigError) as told:
        freeze(make_student(), ["stage1", "stge2.*"], what="student=small", alone="distill_trainer")
    assert "'stge2.*' matches no parameter or module of student=small; nearest: stage2" in str(told.value)
    assert "distill_trainer.freeze" in str(told.value)
    assert offered(str(told.value)) == ["trainer.freeze=[stage2]", "distill_trainer.freeze=[stage2]"]
    assert not unreadable(str(told.value))


def test_a_network_that_is_frozen_as_a_whole_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.freeze: \['\*'\] leaves nothing to learn in student=small"):
        freeze(make_student(), ["*"], what="student=small")


def timm_network(name: str, **options: Any) -> nn.Module:
    return pytest.importorskip("timm").create_model(name, num_classes=10, **options)


NETWORKS = {
    "resnet18": {},
    "vit_tiny_patch16_224": {"depth": 3},
    "convnext_atto": {},
    "deit_tiny_distilled_patch16_224": {},
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("layer_decay", [0.65, None])
def test_rates_and_weight_decay_are_those_of_timms_own_groups(name: str, layer_decay: float | None) -> None:
    network = timm_network(name, **NETWORKS[name])
    from timm.optim import create_optimizer_v2

    theirs = create_optimizer_v2(network, "adamw", lr=0.1, weight_decay=0.05, layer_decay=layer_decay)
    wanted = {
        id(each): (group.get("lr_scale", 1.0), group["weight_decay"])
        for group in theirs.param_groups
        for each in group["params"]
    }
    recipe = Recipe(optimizer="adamw", weight_decay=0.05, layer_decay=layer_decay, decay_norm_and_bias=False)
    groups = parameter_groups(Supervised(network), network, list(network.parameters()), recipe)
    found = {id(each): (group["factor"], group["weight_decay"]) for group in groups for each in group["params"]}
    for name, parameter in network.named_parameters():
        assert found[id(parameter)] == pytest.approx(wanted[id(parameter)]), name


def torchvision_network(name: str) -> nn.Module:
    return getattr(torchvision.models, name)(num_classes=10)


def blocks(network: nn.Module) -> list[str]:
    """The first parameter of each layer."""
    layers = layers_of(network)
    return [next(name for name, own in layers.items() if own == number) for number in range(max(layers.values()) + 1)]


@pytest.mark.parametrize(
    ("make", "count", "last"),
    [
        (lambda: torchvision_network("resnet18"), 6, "fc"),  # conv1 with bn1, four stages, fc
        (lambda: torchvision_network("mobilenet_v3_small"), 15, "classifier.3"),
        (lambda: torchvision_network("vit_b_16"), 14, "heads.head"),
        (lambda: torchvision_network("densenet121"), 9, "classifier"),
        (lambda: MODELS.build({"name": "resnet20"}, num_classes=10, in_channels=3, image_size=32), 5, "fc"),
        (lambda: MODELS.build({"name": "vgg8"}, num_classes=10, in_channels=3, image_size=32), 6, "fc"),
        (make_student, 4, "classifier"),
    ],
    ids=["resnet18", "mobilenet", "vit", "densenet", "resnet20", "vgg8", "small"],
)
def test_layers_are_the_blocks_of_a_network_in_their_order_and_its_classifier(make: Any, count: int, last: str) -> None:
    network = make()
    layers, names = layers_of(network), dict(network.named_parameters())
    assert layers.keys() == names.keys()
    assert len(blocks(network)) == count
    assert {name for name, layer in layers.items() if layer == count - 1} == {f"{last}.weight", f"{last}.bias"}
    assert head_of(network) == [network.get_submodule(last)]
    tables = [name for name in names if "token" in name or "pos_embedding" in name]
    assert all(layers[name] == 0 for name in tables)


def rates(network: nn.Module, **recipe: Any) -> dict[str, float]:
    groups = parameter_groups(Supervised(network), network, list(network.parameters()), Recipe(**recipe))
    names = {id(each): name for name, each in network.named_parameters()}
    return {names[id(each)]: group["factor"] for group in groups for each in group["params"]}


def test_the_classifier_has_the_whole_rate_and_the_backbone_its_part_of_it() -> None:
    found = rates(make_student(), backbone_lr_factor=0.1)
    assert {name for name, factor in found.items() if factor == 1} == {"classifier.weight", "classifier.bias"}
    assert {factor for name, factor in found.items() if "stage" in name} == {0.1}
    both = rates(make_student(), backbone_lr_factor=0.1, layer_decay=0.5)
    assert both["stage3.0.weight"] == pytest.approx(0.05)
    assert both["stage1.0.weight"] == pytest.approx(0.0125)
    assert both["classifier.bias"] == 1


def test_a_network_without_a_classifier_that_is_known_has_no_backbone() -> None:
    network = nn.Sequential(nn.Conv2d(3, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ConfigError, match=r"trainer\.backbone_lr_factor: 0\.1 is not possible; no classifier is known"):
        rates(network, backbone_lr_factor=0.1)
    assert set(rates(network, layer_decay=0.5).values()) == {1.0}


def test_each_layer_moves_at_its_rate() -> None:
    """With SGD the first step of each weight is its rate times its gradient."""
    networks = make_student(), make_student()
    moved = []
    for network, recipe in zip(networks, ({}, {"layer_decay": 0.5}), strict=True):
        before = copy.deepcopy(dict(network.named_parameters()))
        trainer = Trainer(
            Recipe(epochs=1, optimizer="sgd", lr=0.1, limit_train_batches=1, **recipe), seed=0, device=CPU
        )
        list(trainer.epochs(Supervised(network), make_data()))
        moved.append({name: (each - before[name]).detach() for name, each in network.named_parameters()})
    for name, layer in layers_of(networks[0]).items():
        torch.testing.assert_close(moved[1][name], 0.5 ** (3 - layer) * moved[0][name], rtol=1e-3, atol=1e-6)


def test_weight_decay_leaves_norms_and_biases_alone_where_it_shall() -> None:
    network = make_student()
    parameters = list(network.parameters())
    groups = parameter_groups(
        Supervised(network), network, parameters, Recipe(weight_decay=0.1, decay_norm_and_bias=False)
    )
    decay = {id(each): group["weight_decay"] for group in groups for each in group["params"]}
    assert {decay[id(each)] for each in parameters if each.dim() > 1} == {0.1}
    assert {decay[id(each)] for each in parameters if each.dim() == 1} == {0.0}
