"""Stems for large images on small ones."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from kd_cli import console
from kd_cli.experiments.stem import note_stem
from kd_cli.models.base import build_model
from kd_cli.types import DataSpec
from tests.support.networks import STUDENTS, options


def noted(given: dict[str, Any], side: int, monkeypatch: pytest.MonkeyPatch) -> str:
    said: list[str] = []
    monkeypatch.setattr(console, "notice", said.append)
    spec = DataSpec(10, 100, (3, side, side), tuple("abcdefghij"))
    torch.manual_seed(0)
    network = build_model(given, spec, where="student")
    note_stem("student", given, network, torch.zeros(2, 3, side, side))
    assert network.training
    return " ".join(said)


TORCHVISION = {"name": "torchvision", "model": "resnet18", "stem": "imagenet"}
TIMM = {"name": "external", "callable": "timm.create_model"}
LARGE: dict[str, tuple[dict[str, Any], int, str]] = {
    "7×7 and a pooling": (TORCHVISION, 32, "stages see 8×8, 4×4, 2×2, 1×1, .* type student.stem=cifar"),
    "of MNIST's size": (TORCHVISION, 28, "of 28×28 pixels its stages see 7×7, .* type student.stem=cifar"),
    "of 64 pixels": (TORCHVISION, 64, "of 64×64 pixels its stages see 16×16, .* type student.stem=cifar"),
    "of our own name": (
        {"name": "resnet18", "stem": "imagenet"},
        32,
        "student=resnet18 is made for .*student.stem=cifar",
    ),
    "inverted residuals": (
        {"name": "torchvision", "model": "mobilenet_v3_small"},
        32,
        "student.image_size=128, and it is shown the same images enlarged, or .* student=resnet18",
    ),
    "timm's": ({**TIMM, "kwargs": {"model_name": "test_resnet"}}, 32, "student=external is made for .*image_size=128"),
    "timm's patches of 4": ({**TIMM, "kwargs": {"model_name": "test_convnext"}}, 32, "see 8×8, 4×4, 2×2, 1×1"),
    "patches of 16": ({"name": "vit_tiny", "patch_size": 16}, 32, "stages see 2×2, .* type student.patch_size=4"),
    "patches of 14": ({"name": "mixer", "patch_size": 14}, 28, "stages see 2×2, .* type student.patch_size=4"),
    "patches of 4": ({"name": "convnext_femto", "patch_size": 4}, 32, "stages see 8×8, .* type student.patch_size=2"),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_stem_for_large_images_is_told_on_small_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given, side, said = LARGE[name]
    if given["name"] == "external":
        pytest.importorskip("timm")
    assert re.search(said, noted(given, side, monkeypatch))


@pytest.mark.slow
@pytest.mark.parametrize(
    "student", [student for student in STUDENTS if student not in ("external", "timm", "torchvision")]
)
def test_of_networks_for_small_images_nothing_is_said(student: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for side in (28, 32):
        assert not noted(options(student), side, monkeypatch)


def test_larger_images_need_no_other_stem_and_nor_do_images_that_are_shown_larger(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not noted(TORCHVISION, 96, monkeypatch)
    assert not noted({**TORCHVISION, "image_size": 96}, 32, monkeypatch)
    assert not noted({"name": "resnet8"}, 8, monkeypatch)
