"""kd profile: what networks cost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save
from torch import nn

from kd_cli.metrics.cost import count_flops, peak_memory, stored_bytes, threads, time_networks
from kd_cli.report.charts.costs import cost_chart, spread_out

QUICK = ("--batch-sizes", "4", "--seconds", "0", "--device", "cpu")


def small_network() -> nn.Sequential:
    """5 filters of 3×3 on 8×8 pixels, then a classifier of 3 classes."""
    return nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(180, 3)).eval()


def test_flops_are_those_counted_by_hand() -> None:
    by_hand = 2 * (6 * 6 * 5 * 2 * 3 * 3) + 2 * 180 * 3
    assert count_flops(small_network(), torch.zeros(1, 2, 8, 8)) == by_hand
    assert count_flops(small_network(), torch.zeros(7, 2, 8, 8)) == by_hand


def test_the_flops_of_a_transformer_do_not_hide_in_its_fast_path() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, dim_feedforward=32, batch_first=True).eval()
    tokens, width, hidden = 5, 16, 32
    by_hand = 2 * tokens * width * (3 * width + width + 2 * hidden) + 2 * (2 * tokens * tokens * width)
    assert count_flops(layer, torch.zeros(1, tokens, width)) == by_hand
    assert torch.backends.mha.get_fastpath_enabled()


def test_bytes_are_those_of_written_files(tmp_path: Path) -> None:
    network = small_network()
    sizes = stored_bytes(network)
    (tmp_path / "a.safetensors").write_bytes(save(network.state_dict()))
    assert sizes["fp32"] == (tmp_path / "a.safetensors").stat().st_size
    weights, others, counter = 5 * 2 * 9 + 180 * 3, 5 + 4 * 5 + 3, 1
    fp32 = sizes["fp32"] - 4 * (weights + others) - 8 * counter  # what is left is the header
    fp16 = sizes["fp16"] - 2 * (weights + others) - 8 * counter
    int8 = sizes["int8"] - weights - 4 * (others + 5 + 3) - 8 * counter
    assert 0 < fp16 <= fp32 < int8 < 1000  # that of int8 also names the scales


def test_peak_memory_is_weights_batch_and_the_tensors_that_live_at_once() -> None:
    layers = [layer for _ in range(3) for layer in (nn.Linear(1000, 1000), nn.ReLU())]
    network = nn.Sequential(*layers).eval()
    weights = sum(parameter.nbytes for parameter in network.parameters())
    for batch in (1, 2000):
        least = weights + 4 * batch * (1000 + 2 * 1000)  # of six activations two live at once
        assert least <= peak_memory(network, torch.zeros(batch, 1000)) <= 1.2 * least


def test_every_network_has_its_passes_in_the_time_that_is_given() -> None:
    networks = {name: small_network() for name in ("one", "other")}
    images = {"one": torch.zeros(1, 2, 8, 8), "other": torch.zeros(3, 2, 8, 8)}
    for timing in time_networks(networks, images, seconds=0).values():
        assert timing.passes >= 5
        assert 0 < timing.quartiles[0] <= timing.median <= timing.quartiles[1]
    assert {name: timing.batch_size for name, timing in time_networks(networks, images, seconds=0).items()} == {
        "one": 1,
        "other": 3,
    }


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with threads(before + 1) as count:
        assert (count, torch.get_num_threads()) == (before + 1, before + 1)
    assert torch.get_num_threads() == before
    with threads(None) as count:
        assert count == before


def test_a_comparison_is_measured_against_its_teacher(kd, comparison: Path) -> None:
    result = kd("profile", str(comparison), *QUICK, "--json").json
    recorded = json.loads((comparison / "result.json").read_text())
    assert result["reference"] == "teacher"
    assert [row["name"] for row in result["networks"]] == ["teacher", "baseline", "distilled"]
    teacher, _, distilled = result["networks"]
    for row in result["networks"]:
        assert row["test_top1"] == recorded[row["name"]]["test_top1"]
        assert row["parameters"] == recorded[row["name"]]["parameters"]
        (weights,) = (Path(row["runs"][0]) / "checkpoints").glob(
            f"epoch-{recorded[row['name']]['best_epoch']:04d}/model.*"
        )
        assert row["bytes"]["fp32"] == weights.stat().st_size
        assert [speed["batch_size"] for speed in row["speed"]] == [1, 4]
    assert set(teacher["ratios"].values()) == {1.0}
    expected = round(teacher["parameters"] / distilled["parameters"], 3)
    assert distilled["ratios"]["parameters"] == expected > 1
    flops = teacher["flops_per_image"] / distilled["flops_per_image"]
    assert distilled["ratios"]["flops"] == round(flops, 3) > 1
    latencies = (row["speed"][0]["median_ms"] for row in (teacher, distilled))
    assert distilled["ratios"]["latency"] == pytest.approx(next(latencies) / next(latencies), abs=1e-3)


def test_networks_of_one_architecture_are_measured_once_and_it_is_said(kd, comparison: Path) -> None:
    result = kd("profile", str(comparison), *QUICK, "--json").json
    teacher, baseline, distilled = result["networks"]
    assert [row["measured_as"] for row in result["networks"]] == ["teacher", "baseline", "baseline"]
    assert baseline["speed"] == distilled["speed"] != teacher["speed"]
    assert "distilled is the same network as baseline: measured once" in kd("profile", str(comparison), *QUICK).out


def test_networks_are_measured_by_name_with_random_weights(kd) -> None:
    shape = ("--image-size", "16", "--channels", "1", "--classes", "7")
    result = kd("profile", "linear", "mlp", *shape, *QUICK, "--json").json
    linear, mlp = result["networks"]
    assert result["reference"] == "linear"
    assert linear["parameters"] == 256 * 7 + 7
    assert linear["flops_per_image"] == 2 * 256 * 7
    assert linear["test_top1"] is None
    assert mlp["ratios"]["parameters"] < 1


def test_a_network_beside_a_run_sees_the_runs_images(kd, comparison: Path) -> None:
    result = kd("profile", str(comparison / "distilled"), "linear", *QUICK, "--json").json
    assert result["networks"][1]["flops_per_image"] == 2 * 3 * 16 * 16 * 10


def test_a_shape_that_nothing_has_use_for_is_noticed(kd, comparison: Path) -> None:
    outcome = kd("profile", str(comparison / "distilled"), "--classes", "3", *QUICK, "--json")
    assert "have no effect on trained networks" in outcome.message
    assert outcome.json["networks"][0]["ratios"]["parameters"] == 1


def test_two_runs_of_one_kind_are_told_apart(kd, comparison: Path) -> None:
    runs = [str(comparison / name) for name in ("baseline", "distilled")]
    again = [runs[1], str(comparison / "distilled" / "checkpoints" / "epoch-0002")]
    names = [row["name"] for row in kd("profile", *again, *QUICK, "--json").json["networks"]]
    assert len(set(names)) == 2
    assert all(name.endswith("distilled") for name in names)


def test_an_ensemble_costs_what_its_members_cost(kd) -> None:
    small = ("dataset=synthetic", "dataset.num_train=100", "dataset.num_test=20", "teacher=mlp", "student=linear")
    run = kd("run", *small, "ensemble.size=2", "trainer.epochs=1", "--json").json
    teacher = kd("profile", run["run"], *QUICK, "--json").json["networks"][0]
    assert teacher["parameters"] == 2 * run["teacher"]["parameters"]
    assert len(teacher["runs"]) == 2
    assert teacher["test_top1"] is None


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("resnet21",), "resnet21 is neither a run nor a network; did you mean 'resnet"),
        (("linear", "--batch-sizes", "1,x"), "--batch-sizes: 'x' is no number of images"),
        (("linear", "--batch-sizes", "0"), "--batch-sizes: '0' is no number of images"),
        (("linear", "--picture", "a.jpg"), "--picture: a.jpg is neither .png nor .svg"),
        (("linear", "--picture", "a.png"), "nothing to draw without an accuracy"),
        (("student.hidden=[3]",), "name a run or a network"),
    ],
)
def test_what_cannot_be_measured_is_said(kd, words: tuple[str, ...], reason: str) -> None:
    assert reason in kd("profile", *words, "--seconds", "0", code=2).message


def test_the_picture_has_three_panels_and_names_every_network(kd, comparison: Path) -> None:
    outcome = kd("profile", str(comparison), "linear", *QUICK, "--picture", "cost.svg")
    assert "linear" in outcome.message
    drawing = Path("cost.svg").read_text()
    for word in ("parameters", "FLOPs per image", "latency of one image, ms"):
        assert f">{word}<" in drawing
    assert drawing.count(">distilled<") == 3
    assert ">linear<" not in drawing
    kd("profile", str(comparison), *QUICK, "--picture", "cost.png")
    with Image.open("cost.png") as image:
        assert image.width > 2.5 * image.height


def row(name: str, accuracy: float, cost: float) -> dict:
    speed = [{"median_ms": cost, "quartiles_ms": [0.9 * cost, 1.1 * cost]}]
    return {"name": name, "test_top1": accuracy, "parameters": cost, "flops_per_image": cost, "speed": speed}


def test_scales_are_logarithmic_where_costs_are_far_apart() -> None:
    def kinds(*costs: float) -> set[str]:
        chart = cost_chart([row(str(cost), 90, cost) for cost in costs]).to_dict()
        return {panel["layer"][-1]["encoding"]["x"]["scale"].get("type", "linear") for panel in chart["hconcat"]}

    assert kinds(1, 2) == {"linear"}
    assert kinds(1, 200) == {"log"}


def test_labels_do_not_cover_each_other() -> None:
    assert spread_out([1, 5, 9], 1) == [1, 5, 9]
    placed = spread_out([5, 5.1, 5, 9], 1)
    assert sorted(placed) == pytest.approx([4.275, 5.275, 6.275, 8.275], abs=1)
    assert min(abs(one - other) for i, one in enumerate(placed) for other in placed[:i]) >= 1 - 1e-9
