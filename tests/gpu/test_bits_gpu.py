"""The same bits: run twice, broken off and resumed, without the loss's weight, without the cache, in a graph."""

from __future__ import annotations

from itertools import product

import pytest

from benchmarks.gpu.bits import CHECKS
from benchmarks.gpu.lab import SMALL, Lab, bits, options
from kd_cli.errors import ConfigError
from kd_cli.losses.base import LOSSES

pytestmark = pytest.mark.gpu

EAGER = {"kdsvd"}  # whose steps cannot be recorded: its eigenvectors are the host's
SAME = [name for name in CHECKS if name != "graph"]
HARD = {
    "trainer.optimizer": "adamw",
    "trainer.schedule": "cosine",
    "trainer.warmup_epochs": 1.5,
    "trainer.ema_decay": 0.8,
    "trainer.clip_grad_norm": 1.0,
    "trainer.accumulate": 2,
    "trainer.label_smoothing": 0.1,
    "trainer.epochs": 3,
}
FINE_TRAINER = {
    "optimizer": "adamw",
    "freeze": "[blocks.0]",
    "layer_decay": 0.7,
    "backbone_lr_factor": 0.5,
    "weight_decay": 0.05,
    "decay_norm_and_bias": "false",
    "class_weights": "balanced",
    "schedule": "plateau",
    "patience": 1,
    "select_by": "nll",
    "swa_epochs": 2,
    "epochs": 4,
}
FINE = {  # the teacher is another network
    **{f"{stage}_trainer.{key}": value for stage in ("baseline", "distill") for key, value in FINE_TRAINER.items()},
    "dataset.balanced": "true",
}


@pytest.mark.parametrize(("loss", "check"), list(product(LOSSES.names(), SAME)))
def test_the_bits_are_the_same(lab: Lab, loss: str, check: str) -> None:
    assert CHECKS[check](lab, loss)


@pytest.mark.parametrize("loss", LOSSES.names())
def test_a_loss_is_in_a_graph_with_the_same_bits_or_named_as_eager(
    lab: Lab, loss: str, cuda: None, caplog: pytest.LogCaptureFixture
) -> None:
    eager = lab.bits(loss, {"trainer.cuda_graphs": False})
    if loss not in EAGER:
        assert lab.bits(loss, {"trainer.cuda_graphs": True}) == eager
        return
    with pytest.raises(ConfigError, match="cuda_graphs: true is not possible"):
        lab.train("distill", {"trainer.cuda_graphs": True}, loss=loss)
    assert bits(lab.train("distill", loss=loss)) == eager
    assert "no CUDA graph is made" in caplog.text


@pytest.mark.parametrize("recipe", [HARD, FINE], ids=["hard", "fine"])
@pytest.mark.parametrize("check", CHECKS)
def test_so_are_those_of_a_hard_recipe_with_dropout(device: str, check: str, recipe: dict, tmp_path_factory) -> None:
    """Everything that has a state, and a student whose dropout is seeded at each step."""
    words = (*SMALL, "student=cnn_small", "student.dropout=0.2", *(f"{key}={value}" for key, value in recipe.items()))
    if check == "graph" and "cuda_graphs" not in options():
        pytest.skip("this build has no CUDA graphs")
    assert CHECKS[check](Lab(tmp_path_factory.mktemp("hard"), device, words), "kd")


@pytest.mark.parametrize("edit", [{"seed": 1}, {"trainer.lr": 0.02}], ids=str)
def test_another_training_has_other_bits(lab: Lab, edit: dict) -> None:
    assert lab.bits("kd", edit)["weights"] != lab.bits("kd")["weights"]
