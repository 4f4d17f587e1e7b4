"""Features of a network by name."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from kd_cli.taps import Tapped, published_taps, select
from tests.support.small import make_batch, make_student

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


def test_the_final_map_is_the_deepest_stage_unless_another_is_published() -> None:
    network = make_student().eval()
    assert torch.equal(*Tapped(network, ["final", "stage3"])(IMAGES).features.values())
    network.taps = {**network.taps, "final": "stage2"}
    assert torch.equal(*Tapped(network, ["final", "stage2"])(IMAGES).features.values())
    network.taps = {"embedding": "classifier:in"}
    assert torch.equal(*Tapped(network, ["final", "embedding"])(IMAGES).features.values())


def test_groups_and_counts_from_the_deepest_are_read() -> None:
    network = make_student().eval()
    features = Tapped(network, ["stages", "stage-1", "stage-3"])(IMAGES).features
    assert list(features) == ["stage1", "stage2", "stage3", "stage-1", "stage-3"]
    assert torch.equal(features["stage-1"], features["stage3"])
    assert torch.equal(features["stage-3"], features["stage1"])
    assert [len(each[0]) for each in select(features, ["stages"])] == [4, 6, 8]
    with pytest.raises(ValueError, match="has no tap 'stage-4'"):
        Tapped(network, ["stage-4"])
    network.taps = {"embedding": "classifier:in"}
    with pytest.raises(ValueError, match="SmallNet publishes no preacts; its taps: embedding"):
        Tapped(network, ["preacts"])


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


def test_outside_of_its_passes_nothing_is_kept() -> None:
    network = make_student()
    tapped = Tapped(network, ["stage1", "embedding"])
    tapped(IMAGES)
    network(IMAGES)
    network.classifier(torch.zeros(1, 8))
    assert tapped._kept.features is None
    copy.deepcopy(network)  # would refuse tensors that belong to a graph


def test_a_copy_together_with_its_network_reads_the_copied_network() -> None:
    network = make_student().eval()
    copied, copied_network = copy.deepcopy((Tapped(network, ["stage3"]), network))
    with torch.no_grad():
        network.stage3[0].weight.zero_()
        expected = copied_network.stage3(copied_network.stage2(copied_network.stage1(IMAGES)))
        assert torch.equal(copied(IMAGES).features["stage3"], expected)
    assert expected.any()


def test_a_copy_of_a_tapped_layer_brings_no_network_along() -> None:
    network = make_student()
    tapped = Tapped(network, ["embedding", "stage3"])
    sizes = []
    for layer in (network.classifier, nn.Linear(8, 10)):
        torch.save(copy.deepcopy(layer), file := io.BytesIO())
        sizes.append(len(file.getvalue()))
    assert sizes[0] < sizes[1] + 1000
    assert tapped.module is network


def test_the_input_of_an_activation_in_place_is_what_it_was_given() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(768, 10), nn.ReLU(inplace=True)).eval()
    outputs = Tapped(network, ["2:in"])(IMAGES)
    assert (outputs.features["2:in"] < 0).any()
    assert torch.equal(outputs.features["2:in"].relu(), outputs.logits)


class InPlace(nn.Module):
    """Two layers, and between them a sum and a ReLU in place, as in torchvision's ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(768, 10)
        self.second = nn.Linear(10, 10)
        self.both = nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.both((images, images))
        maps = self.first(images.flatten(1))
        maps += 1
        return self.second(maps.relu_())


@pytest.mark.parametrize("grad", [True, False])
def test_the_output_that_a_path_names_is_what_the_module_gave_even_if_it_is_overwritten(grad: bool) -> None:
    network = InPlace()
    with torch.inference_mode(not grad):
        outputs = Tapped(network, ["first", "second:in"])(IMAGES)
        assert torch.equal(outputs.features["first"], network.first(IMAGES.flatten(1)))
        assert torch.equal(outputs.features["second:in"], (outputs.features["first"] + 1).relu())
    if grad:
        outputs.features["first"].sum().backward()
        assert network.first.weight.grad.any()


@pytest.mark.parametrize("tap", ["both", "both:in"])
def test_a_tap_that_is_no_tensor_is_refused(tap: str) -> None:
    with pytest.raises(ValueError, match=f"^taps: {tap} is a tuple and no tensor; take a layer inside or behind it"):
        Tapped(InPlace(), [tap])(IMAGES)


def test_of_a_module_that_runs_twice_the_last_call_counts() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU(inplace=True)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.relu(self.relu(images.flatten(1)) - 1)

    outputs = Tapped(Twice(), ["relu:in", "relu"])(IMAGES.clone())
    assert torch.equal(outputs.features["relu:in"], IMAGES.flatten(1).relu() - 1)
    assert torch.equal(outputs.features["relu"], outputs.logits)


@pytest.mark.parametrize(
    ("place", "shape", "message"),
    [
        ("0:tokens", (2, 3, 16, 16), r"0:tokens is \[2, 3, 16, 16\], no tokens \[B, N, C\]; name it without :tokens"),
        ("0:last", (2, 17, 5), r"0:last is \[2, 17, 5\], no \[B, H, W, C\]; name it without :last"),
        ("0:tokens3", (2, 17, 5), "has 17 tokens, and without the first 3 they are no square image"),
        ("0:tokens17", (2, 17, 5), "has 17 tokens, and without the first 17 they are no square image"),
        ("0:tokens18", (2, 17, 5), "has 17 tokens, and without the first 18 they are no square image"),
    ],
)
def test_what_is_no_map_in_the_form_that_is_named_is_refused(place: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tapped(nn.Sequential(nn.Identity()), [place])(torch.zeros(shape))


def test_maps_with_their_channels_last_and_tokens_become_maps() -> None:
    last, tokens = torch.randn(2, 3, 4, 5), torch.randn(2, 2 + 9, 5)
    network = nn.Sequential(nn.Identity())
    assert torch.equal(Tapped(network, ["0:last"])(last).features["0:last"][1, 2], last[1, :, :, 2])
    for place in ("0:tokens", "0:tokens2"):  # 11 tokens: 9 are the largest square
        assert torch.equal(Tapped(network, [place])(tokens).features[place][1, 4, 2], tokens[1, 8:, 4])
