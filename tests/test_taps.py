"""Features of a network by name."""

from __future__ import annotations

import pytest
import torch
from small import make_batch, make_student
from torch import nn

from kd_cli.taps import Tapped, published_taps

IMAGES = make_batch().images


def test_taps_are_read_by_published_name_module_path_and_side() -> None:
    network = make_student().eval()
    outputs = Tapped(network, ["stage1", "stage2.0", "stage3:in", "embedding"])(IMAGES)
    first = network.stage1(IMAGES)
    second = network.stage2(first)
    torch.testing.assert_close(outputs.features["stage1"], first)
    torch.testing.assert_close(outputs.features["stage2.0"], network.stage2[0](first))
    torch.testing.assert_close(outputs.features["stage3:in"], second)
    torch.testing.assert_close(outputs.features["embedding"], network.stage3(second).mean(dim=(2, 3)))
    torch.testing.assert_close(outputs.logits, network.classifier(outputs.features["embedding"]))
    assert list(outputs.features) == ["stage1", "stage2.0", "stage3:in", "embedding"]


def test_reading_features_does_not_change_the_logits() -> None:
    network = make_student().eval()
    plain = network(IMAGES)
    assert torch.equal(Tapped(network, ["stage1", "embedding"])(IMAGES).logits, plain)


def test_without_taps_there_are_only_logits() -> None:
    network = make_student().eval()
    outputs = Tapped(network)(IMAGES)
    assert torch.equal(outputs.logits, network(IMAGES))
    assert not outputs.features


def test_gradients_flow_through_features() -> None:
    network = make_student()
    Tapped(network, ["stage2"])(IMAGES).features["stage2"].sum().backward()
    assert network.stage1[0].weight.grad is not None
    assert network.stage3[0].weight.grad is None


def test_every_pass_has_features_of_its_own() -> None:
    tapped = Tapped(make_student().eval(), ["stage1"])
    one, other = tapped(IMAGES[:3]), tapped(IMAGES[3:])
    assert len(one.features["stage1"]) == 3
    assert len(other.features["stage1"]) == 5


def test_a_module_that_a_pass_skips_leaves_no_old_feature_behind() -> None:
    network = make_student().eval()
    tapped = Tapped(network, ["dropout"])
    assert "dropout" in tapped(IMAGES).features
    network.forward = lambda images: network.classifier(
        network.stage3(network.stage2(network.stage1(images))).mean((2, 3))
    )
    assert not tapped(IMAGES).features


def test_two_readers_of_one_network_do_not_disturb_each_other() -> None:
    network = make_student().eval()
    one, other = Tapped(network, ["stage1"]), Tapped(network, ["stage2"])
    assert set(one(IMAGES).features) == {"stage1"}
    assert set(other(IMAGES).features) == {"stage2"}


def test_it_holds_a_network_without_being_its_parent() -> None:
    holder = nn.Module()
    holder.teacher = Tapped(make_student())
    assert not list(holder.parameters())


@pytest.mark.parametrize(
    ("tap", "hint"),
    [
        ("stage4", "did you mean 'stage"),
        ("stage2:out", "has no tap 'stage2:out'"),
        ("embeding", "'embedding'"),
    ],
)
def test_a_tap_that_is_not_there_is_refused_with_the_nearest(tap: str, hint: str) -> None:
    with pytest.raises(ValueError, match=f"SmallNet has no tap {tap!r}") as error:
        Tapped(make_student(), [tap])
    assert hint in str(error.value)
    assert "classifier" in str(error.value)


def test_a_network_that_publishes_nothing_has_only_its_module_paths() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(768, 10))
    assert not published_taps(network)
    outputs = Tapped(network, ["1", "1:in"])(IMAGES)
    assert torch.equal(outputs.features["1"], outputs.logits)
    assert torch.equal(outputs.features["1:in"], IMAGES.flatten(1))
