"""Precision and determinism are switched for a training, on CUDA alone, and put back behind it.

PyTorch's switches can be set and read where there is no such device.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_cli import arithmetic as rules
from kd_cli.arithmetic import EXACT, Switches, arithmetic, current, exact, refusing, start_cuda, switch
from kd_cli.errors import ConfigError
from kd_cli.metrics.evaluate import evaluating
from tests.conftest import SMALL
from tests.support.small import CPU, make_student

CUDA = torch.device("cuda")
UNORDERED = """
from torch import nn, zeros_like


class Puts(nn.Module):
    def __init__(self, num_classes, in_channels, image_size):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))

    def forward(self, images):
        logits = self.layers(images)
        return logits + zeros_like(logits).put_(logits.argmax()[None], logits.new_ones(1)) if self.training else logits
"""


def state() -> dict[str, Any]:
    """What PyTorch says of its switches."""
    return {
        "products": torch.backends.cuda.matmul.allow_tf32,
        "convolutions": torch.backends.cudnn.allow_tf32,
        "one order": torch.backends.cudnn.deterministic,
        "measures": torch.backends.cudnn.benchmark,
        "refuses": torch.are_deterministic_algorithms_enabled(),
    }


EXACT_STATE = {"products": False, "convolutions": False, "one order": True, "measures": False, "refuses": False}


@pytest.fixture(autouse=True)
def _put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(rules, "_current", None)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = state()
    yield
    torch.set_deterministic_debug_mode(0)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before["products"], before["convolutions"]
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before["one order"], before["measures"]


def test_on_the_cpu_no_switch_is_touched() -> None:
    before = state()
    with arithmetic("tf32", True, CPU), evaluating(make_student()):
        switch(current())
        assert state() == before
    assert state() == before
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_on_cuda_a_training_has_the_precision_that_it_says(precision: str, deterministic: bool) -> None:
    start_cuda()
    assert state() == EXACT_STATE
    tf32 = precision == "tf32"
    with arithmetic(precision, deterministic, CUDA):
        assert state() == {
            "products": tf32,
            "convolutions": tf32,
            "one order": deterministic,
            "measures": False,
            "refuses": deterministic,
        }
    assert state() == EXACT_STATE


def test_an_evaluation_inside_of_a_training_is_exact_and_refuses_what_the_training_refuses() -> None:
    with arithmetic("tf32", True, CUDA):
        with exact(CUDA):
            assert state() == EXACT_STATE | {"refuses": True}
        assert state()["products"]
        assert state()["convolutions"]


def test_the_switches_are_put_back_behind_an_error() -> None:
    with pytest.raises(KeyError), arithmetic("tf32", True, CUDA):
        raise KeyError
    assert state() == EXACT_STATE


def test_two_trainings_in_turns_each_find_their_own_switches() -> None:
    one, other = arithmetic("tf32", True, CUDA), arithmetic("fp32", False, CUDA)
    with one:
        mine = current()
        with other:
            assert current() == Switches(tf32=False, refuses=False, one_order=False)
            switch(mine)  # the first has its turn
            assert state()["convolutions"]
    assert current() == EXACT


def test_a_device_that_is_picked_again_leaves_a_training_alone() -> None:
    start_cuda()
    with arithmetic("tf32", True, CUDA):
        start_cuda()
        assert state()["convolutions"]


@pytest.mark.parametrize(
    ("given", "taken"), [(None, ":4096:8"), (":4096:8", ":4096:8"), (":16:8", ":16:8"), (":0:0", ":4096:8")]
)
def test_cublas_has_a_workspace_that_keeps_the_order_of_sums(
    given: str | None, taken: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if given is not None:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", given)
    start_cuda()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == taken
    said = capsys.readouterr().err
    assert ("CUBLAS_WORKSPACE_CONFIG=:0:0" in said) == (given == ":0:0")


def test_an_operation_without_a_deterministic_kernel_is_named_with_what_to_type() -> None:
    with (
        arithmetic("fp32", True, CUDA),
        pytest.raises(ConfigError) as refused,
        refusing("a test", "teacher_trainer"),
    ):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))  # one of those that the CPU refuses too
    assert "teacher_trainer.deterministic: a test needs put_" in str(refused.value)
    assert "type teacher_trainer.deterministic=false" in str(refused.value)


def test_any_other_error_is_left_as_it_is() -> None:
    with pytest.raises(RuntimeError, match="must match the size"), refusing("this test", "trainer"):
        torch.ones(2) + torch.ones(3)


def test_a_training_that_needs_one_ends_as_a_failed_run_that_says_what_to_type(kd) -> None:
    Path("unordered.py").write_text(UNORDERED)
    words = (*SMALL, "plugins=[unordered.py]", "student=external", "student.callable=unordered.Puts")
    words = tuple(word for word in words if word not in ("student=mlp", "student.hidden=[8]"))
    torch.set_deterministic_debug_mode("error")  # as a training on CUDA does
    message = kd("train-baseline", *words, "hydra.run.dir=run", code=2).message
    assert "trainer.deterministic: the baseline's training needs put_" in message
    assert "trainer.deterministic=false" in message
    assert json.loads(Path("run/run.json").read_text())["status"] == "failed"
    torch.set_deterministic_debug_mode("default")
    kd("train-baseline", *words, "hydra.run.dir=run")  # goes on with it
