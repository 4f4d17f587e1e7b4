"""kd check: one step of a pair and a loss."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import HERE

SMALL = ("dataset=synthetic", "dataset.num_train=100", "dataset.num_test=20")


def test_check_shows_networks_features_layers_and_cost_and_writes_nothing(kd) -> None:
    pair = (*SMALL, "teacher=resnet14", "student=resnet8x4", "loss=fitnet")
    shown = kd("check", *pair).out
    for word in ("resnet14", "resnet8x4", "stage-2", "128 × ", "times a step without", "fitnet works on this pair"):
        assert word in shown
    result = kd("check", *pair, "--json").json
    assert result["features"][0]["student_shape"][0] == 128
    assert result["features"][0]["teacher_shape"][0] == 32
    assert any(shape[:2] == [32, 128] for shape in result["layers"].values())
    assert set(result["weighted_terms"]) == {"ce", "fitnet"}
    assert result["networks"]["student"]["parameters"] > result["networks"]["teacher"]["parameters"]
    assert result["step_ms"] > 0
    assert not list(Path("outputs").rglob("*"))


def test_flops_are_those_of_the_multiplications_and_additions(kd) -> None:
    mlp = ("teacher=linear", "student=linear", "dataset.image_size=8", "dataset.channels=1")
    result = kd("check", *SMALL, *mlp, "loss=kd", "--json").json
    assert result["networks"]["student"]["flops_per_image"] == 2 * 64 * 10


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("teacher=mlp", "student=resnet8", "loss=at"), "loss=at cannot work on this pair: MLP publishes no stages"),
        (("loss=dkd", "dataset.num_classes=2"), "loss=dkd cannot work on this pair"),
        (("loss=att",), "att"),
    ],
)
def test_check_says_why_a_pair_cannot_work(options: tuple[str, ...], reason: str, kd) -> None:
    assert reason in kd("check", *SMALL, *options, code=2).message


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("ensemble.size=2",), "teacher + teacher-2 → distilled: loss=at cannot work on this pair: Ensemble"),
        (("assistants=[{name: mlp}]",), "teacher → assistant-1: loss=at cannot work on this pair: MLP"),
        (("specialists.groups=9",), "do not fit 10 classes"),
    ],
)
def test_check_tries_every_pair_of_a_procedure(options: tuple[str, ...], reason: str, kd) -> None:
    assert reason in kd("check", *SMALL, "teacher=cnn", "student=cnn", "loss=at", *options, code=2).message


def test_many_pairs_are_checked_by_one_sweep(kd) -> None:
    shown = kd("check", *SMALL, "-m", HERE, "loss=kd,at", "student=mlp,cnn", code=1)
    assert shown.out.count("completed") == 3
    assert "loss=at student=mlp" in shown.message


def test_checks_are_made_anew_and_are_nothing_to_search_with(kd) -> None:
    pairs = ("check", *SMALL, "-m", HERE, "loss=kd,dkd")
    for _ in range(2):
        shown = kd(*pairs)
        assert "holds this sweep" not in shown.out
    assert "needs an accuracy" in kd(*pairs, "hydra/sweeper=optuna", code=2).message


def test_a_loss_without_a_teacher_is_checked_without_one(kd) -> None:
    assert set(kd("check", *SMALL, "loss=label_smoothing", "--json").json["networks"]) == {"student"}


@pytest.mark.slow
def test_a_stem_for_large_images_is_told(kd) -> None:
    shown = kd("check", *SMALL, "dataset.image_size=32", "teacher=torchvision", "student=resnet18", "loss=kd")
    assert "teacher=torchvision is made for larger images" in shown.err
    assert "teacher.stem=cifar" in shown.err
    assert "student=resnet18 is" not in shown.err
