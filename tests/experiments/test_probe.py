"""teacher.probe: a frozen encoder's classifier is fitted to its embeddings, and teaches as any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kd_cli.config.compose import compose
from kd_cli.data.base import load_dataset
from kd_cli.errors import ConfigError
from kd_cli.evaluation.linear_probe import choose_probe, features, linear_probe, logits_of
from kd_cli.experiments.probe import check_probe
from tests.conftest import SMALL
from tests.evaluation.test_transfer import three
from tests.support.small import CPU, make_data, make_student

pytest.importorskip("timm")

VIT = (
    *("teacher=timm", "teacher.model=vit_tiny_patch16_224"),
    "teacher.kwargs={depth: 1, embed_dim: 24, num_heads: 2, patch_size: 4}",
)
DATA = tuple(word for word in SMALL if not word.startswith("teacher"))
PROBE = (*DATA, *VIT, "teacher.probe=true")


@pytest.fixture(autouse=True)
def _few_penalties(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weakest ones take the most steps by far."""
    monkeypatch.setattr("kd_cli.evaluation.linear_probe.PENALTIES", (10.0, 0.1, 0.001))


def weights(run: str) -> dict[str, Tensor]:
    (file,) = Path(run).glob("checkpoints/*/model.safetensors")
    return load_file(file)


def record(run: str) -> dict[str, Any]:
    return json.loads((Path(run) / "run.json").read_text())


def encoder(seed: int = 7) -> str:
    """A file of weights, without a classifier for these classes."""
    import timm

    torch.manual_seed(seed)
    network = timm.create_model(
        "vit_tiny_patch16_224", depth=1, embed_dim=24, num_heads=2, patch_size=4, img_size=16, num_classes=0
    )
    save_file(network.state_dict(), "encoder.safetensors")
    return "teacher.pretrained=encoder.safetensors"


def test_its_layer_says_of_embeddings_what_the_probe_says_of_standardised_ones() -> None:
    parts = three()
    probe = choose_probe(parts["train"], parts["val"], 3)
    weight, bias = probe.linear()
    rows = parts["test"][0]
    assert torch.allclose(rows @ weight.T + bias, logits_of(probe.weights, probe.standardised(rows)), atol=1e-9)
    found = linear_probe(parts, 3)
    assert {**probe.facts(), "converged": True} == {key: found[key] for key in probe.facts()} | {"converged": True}


def test_an_encoder_learns_its_classifier_alone_and_is_reported_as_any_teacher(kd) -> None:
    given = encoder()
    result = kd("run", *PROBE, given, "loss=kd", "hydra.run.dir=there", "--json").json
    assert result["teacher"]["epochs"] == result["teacher"]["best_epoch"] == 1
    assert result["teacher"]["test_top1"] > 20 > 10  # of ten classes
    now, before = weights("there/teacher"), load_file("encoder.safetensors")
    assert all(torch.equal(now[name], tensor) for name, tensor in before.items())
    assert set(now) - set(before) == {"head.weight", "head.bias"}
    told = record("there/teacher")["probe"]
    assert told["features"] == 24
    assert told["val_top1"][f"{told['penalty']:g}"] == max(told["val_top1"].values())
    taught = record("there/distilled")["teacher"]
    assert taught["val_top1"] == result["teacher"]["val_top1"] == pytest.approx(max(told["val_top1"].values()))
    (row,) = kd("evaluate", "there/teacher", "--json").json["evaluations"]
    assert row["top1"] == result["teacher"]["test_top1"]


def test_the_probe_is_that_of_kd_transfer_and_does_not_see_validation_images(kd) -> None:
    kd("train-teacher", *PROBE, encoder(), "hydra.run.dir=there")
    from kd_cli.saved.network import Saved

    saved, data = Saved(Path("there")), load_dataset(compose(DATA)["dataset"])
    network = saved.network(CPU, data.spec)
    parts = {
        part: features(network, data, part, tap="embedding", batch_size=500, device=CPU) for part in ("train", "val")
    }
    weight, bias = choose_probe(parts["train"], parts["val"], data.spec.num_classes).linear()
    assert torch.allclose(weights("there")["head.weight"], weight.float(), atol=1e-5)
    assert torch.allclose(weights("there")["head.bias"], bias.float(), atol=1e-5)


def test_the_encoder_is_asked_about_each_image_once_whatever_the_seed(kd, monkeypatch: pytest.MonkeyPatch) -> None:
    from kd_cli.experiments.probe import _Embedder

    asked: list[int] = []
    plain = _Embedder.forward
    monkeypatch.setattr(_Embedder, "forward", lambda self, x: asked.append(len(x)) or plain(self, x))
    given = encoder()
    first = kd("train-teacher", *PROBE, given, "--json").json
    assert sum(asked) == 300 + 30 + 270  # and the first batch of each part to be compared with what is kept
    asked.clear()
    second = kd("train-teacher", *PROBE, given, "seed=1", "--json").json
    assert sum(asked) == 300
    assert first["weights_sha256"] == second["weights_sha256"]
    asked.clear()
    kd("run", *PROBE, given, "seed=2", "loss=kd", "trainer.epochs=1")  # which builds the teacher anew
    assert sum(asked) == 300
    assert (
        kd("train-teacher", *PROBE, given, "teacher_cache=false", "--json").json["weights_sha256"]
        == (first["weights_sha256"])
    )


@pytest.mark.parametrize("kept", [(), ("checkpoints",)])
def test_a_run_that_was_stopped_ends_with_the_same_bits(kd, kept: tuple[str, ...]) -> None:
    words = ("run", *PROBE, encoder(), "loss=kd", "hydra.run.dir=there", "--json")
    before = kd(*words).json
    for name in ("result.json", "teacher/result.json", "baseline/result.json", "distilled/result.json"):
        Path("there", name).unlink()
    for name in () if kept else ("checkpoints",):
        shutil.rmtree(Path("there/teacher") / name)
    after = kd(*words).json
    for stage in ("teacher", "baseline", "distilled"):
        assert after[stage]["weights_sha256"] == before[stage]["weights_sha256"]


def test_losses_of_logits_and_of_embeddings_work_with_an_encoder(kd) -> None:
    given = encoder()
    kd("train-teacher", *PROBE, given, "hydra.run.dir=taught")
    words = ("distill", *PROBE, given, "teacher.checkpoint=taught", "trainer.epochs=1")
    cnn = [word for word in words if not word.startswith("student")] + ["student=cnn_tiny"]
    kd(*words, "loss=dkd")
    kd(*cnn, "loss=srrl")


REFUSED = {
    "a ready teacher": (("teacher.ready=true",), "type teacher.probe=false", 2),
    "an ensemble": (("ensemble.size=2",), "type ensemble.size=1", 2),
    "specialists": (("specialists.groups=2",), "type specialists.groups=0", 2),
    "several devices": (("devices=2",), "type devices=1", 2),  # said by two processes
    "no validation": (("dataset.val_fraction=0",), "type dataset.val_fraction=0.1", 3),
    "two classifiers": (("teacher.model=deit_tiny_distilled_patch16_224",), "not those of its last linear layer", 2),
}


SLOW = {"several devices": [pytest.mark.slow]}


@pytest.mark.parametrize(
    ("words", "told", "code"),
    [pytest.param(*case, id=name, marks=SLOW.get(name, ())) for name, case in REFUSED.items()],
)
def test_what_can_have_no_probe_is_told_before_anything_is_written(kd, words, told: str, code: int) -> None:
    assert told in kd("run", *PROBE, *words, "loss=kd", "hydra.run.dir=there", code=code).message
    assert not Path("there").exists()


def test_a_network_without_a_linear_classifier_is_told() -> None:
    network, model = make_student(), {"name": "cnn", "pretrained": "file.pth"}
    check_probe(network, model, make_data())
    network.taps = {}
    with pytest.raises(ConfigError, match="teacher=cnn publishes no linear classifier with a bias"):
        check_probe(network, model, make_data())


def test_random_weights_and_options_without_effect_are_told(kd) -> None:
    said = kd("train-teacher", *PROBE, "trainer.lr=0.1", "trainer.eval_batch_size=50", "hydra.run.dir=there").err
    assert "they are random" in " ".join(said.split())
    assert "trainer.lr has no effect: a linear probe has no epochs" in " ".join(said.split())
    assert "eval_batch_size has no effect" not in said
    assert "they are random" not in kd("train-teacher", *PROBE, encoder()).err
    said = kd("resume", "there", "trainer.epochs=4", code=2).message
    assert "its classifier is a linear probe" in said
    said = kd("distill", *PROBE, "teacher.checkpoint=there", "loss=kd").err
    assert "teacher.probe has no effect on kd distill" in " ".join(said.split())
