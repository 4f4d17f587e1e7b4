"""kd transfer: shared classes, linear probes, images of other sizes, and what is said over several seeds."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_cli.config.compose import compose
from kd_cli.errors import ConfigError, DataError
from kd_cli.evaluation.linear_probe import PENALTIES, features, fit_logistic, linear_probe, logits_of
from kd_cli.evaluation.transfer import Shared, adapt, summary, zero_shot
from kd_cli.metrics.evaluate import evaluate
from kd_cli.metrics.significance import paired_gain
from kd_cli.saved.network import Saved
from tests.conftest import ROOT, SMALL
from tests.support.images import make_cifar
from tests.support.small import CONF, CPU, make_data, make_student

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def clouds(images: int = 150, size: int = 6, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Overlapping clouds, float64."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % classes
    centres = torch.randn(classes, size, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    return centres[labels] + torch.randn(images, size, generator=random, dtype=torch.float64), labels


def three(**options: int) -> dict:
    return {part: clouds(seed=seed, **options) for seed, part in enumerate(("train", "val", "test"))}


# --- the linear probe


@pytest.mark.parametrize("penalty", [1.0, 1e-2, 1e-4])
def test_the_regression_is_scikit_learns(penalty: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    rows, labels = clouds()
    theirs = linear_model.LogisticRegression(C=1 / (penalty * len(rows)), tol=1e-8, max_iter=10_000)
    theirs.fit(rows.numpy(), labels.numpy())
    weights, converged = fit_logistic(rows, labels, 3, penalty)
    assert converged
    ours, known = logits_of(weights, rows).softmax(1).numpy(), theirs.predict_proba(rows.numpy())
    assert np.abs(ours - known).max() < 2e-3
    assert np.abs(weights[:-1].T.numpy() - theirs.coef_).max() < 2e-2 / penalty**0.5


def test_the_gradient_of_the_objective_vanishes_at_the_solution_from_any_start() -> None:
    rows, labels = clouds()
    for start in (None, torch.randn(7, 3, dtype=torch.float64)):
        weights, converged = fit_logistic(rows, labels, 3, 0.01, start)
        assert converged
        spread = logits_of(weights, rows).softmax(1) - F.one_hot(labels, 3)
        assert (rows.T @ spread / len(rows) + 0.01 * weights[:-1]).abs().max() < 1e-4
        assert spread.mean(dim=0).abs().max() < 1e-4  # the biases are not penalised


def test_the_penalty_is_chosen_on_validation_images_and_the_test_images_change_nothing_but_the_score() -> None:
    parts = three()
    found = linear_probe(parts, 3)
    assert [float(penalty) for penalty in found["val_top1"]] == pytest.approx(PENALTIES)
    best = max(found["val_top1"].values())
    assert found["val_top1"][f"{found['penalty']:g}"] == best
    assert all(top < best for penalty, top in found["val_top1"].items() if float(penalty) > 1.001 * found["penalty"])
    rows, labels = parts["test"]
    wrong = linear_probe({**parts, "test": (rows, (labels + 1) % 3)}, 3)
    assert {**wrong, "top1": 0, "nll": 0} == {**found, "top1": 0, "nll": 0}
    assert found["top1"] > 80 > 30 > wrong["top1"]


def test_the_last_fit_has_the_validation_images_too() -> None:
    parts = three()
    mean, deviation = parts["train"][0].mean(dim=0), parts["train"][0].std(dim=0, correction=0)
    standard = {part: (rows - mean) / deviation for part, (rows, _) in parts.items()}
    found = linear_probe(parts, 3)
    both = torch.cat([standard["train"], standard["val"]]), torch.cat([parts["train"][1], parts["val"][1]])
    weights, _ = fit_logistic(*both, 3, found["penalty"])
    expected = F.cross_entropy(logits_of(weights, standard["test"]), parts["test"][1])
    assert found["nll"] == pytest.approx(float(expected), abs=1e-5)


def test_the_scale_of_features_does_not_matter_nor_does_one_that_never_changes() -> None:
    parts = three()
    plain = linear_probe(parts, 3)
    scales = torch.tensor([1e-3, 1.0, 7.0, 1e3, 50.0, 2.0], dtype=torch.float64)
    moved = {part: (rows * scales + 5, labels) for part, (rows, labels) in parts.items()}
    assert linear_probe(moved, 3)["top1"] == plain["top1"]
    dead = {
        part: (torch.cat([rows, torch.full((len(rows), 1), 4.0)], 1), labels) for part, (rows, labels) in parts.items()
    }
    with_dead = linear_probe(dead, 3)
    assert (with_dead["top1"], with_dead["features"]) == (plain["top1"], 7)


def test_features_are_what_the_classifier_reads_or_the_last_map_pooled() -> None:
    data, network = make_data(), make_student().eval()
    options = {"batch_size": 7, "device": CPU}
    rows, labels = features(network, data, "val", tap=None, **options)
    (batch,) = data.eval_batches("val", batch_size=20, device=CPU)
    maps = network.stage3(network.stage2(network.stage1(batch.images)))
    assert torch.allclose(rows, maps.mean(dim=(2, 3)).double(), atol=1e-6)
    assert torch.equal(labels, batch.labels)
    named, _ = features(network, data, "val", tap="stage1", **options)
    assert torch.allclose(named, network.stage1(batch.images).mean(dim=(2, 3)).double(), atol=1e-6)
    network.taps = {name: path for name, path in network.taps.items() if name != "embedding"}
    assert torch.allclose(features(network, data, "val", tap=None, **options)[0], rows, atol=1e-6)
    network.taps = {}
    with pytest.raises(ValueError, match="has no tap 'final'"):
        features(network, data, "val", tap=None, **options)
    with pytest.raises(ValueError, match=r"neither \[B, D\]"):
        features(nn.Sequential(nn.Flatten(2), nn.Flatten(1)), data, "val", tap="0", **options)


# --- zero-shot


def test_zero_shot_counts_shared_classes_only() -> None:
    shared = Shared({"cat": ["lion", "tiger"], "truck": ["pickup"]}, CIFAR10, ("apple", "lion", "pickup", "tiger"))
    answers = ["cat", "dog", "truck", "airplane", "truck", "cat"]  # first choices; cat before truck where neither is
    labels = torch.tensor([1, 3, 2, 2, 1, 0])
    logits = torch.zeros(6, 10)
    for row, name in enumerate(answers):
        logits[row, CIFAR10.index("cat")] = 1
        logits[row, CIFAR10.index(name)] = 2
    found = zero_shot(logits, labels, shared)
    assert found["images"] == 5  # the apple is left out
    assert found["top1"] == 60  # lion, tiger (dog is no answer, cat comes next), pickup; not airplane → cat, not lion
    assert found["top1_open"] == 40
    assert (found["chance"], found["chance_open"]) == (50, 10)
    assert found["per_class"] == [
        {"class": "cat", "images": 3, "top1": pytest.approx(66.67)},
        {"class": "truck", "images": 2, "top1": 50},
    ]
    with pytest.raises(DataError, match="no test image is of a shared class"):
        zero_shot(logits[:1], torch.tensor([0]), shared)


@pytest.mark.parametrize(
    ("mapping", "complaint"),
    [
        ({"cats": ["lion"]}, "'cats' is none of the network's classes; did you mean 'cat'?"),
        ({"cat": ["lyon"]}, "'lyon' is none of the data's classes; did you mean 'lion'?"),
        ({"cat": ["lion"], "dog": ["lion"]}, "shared.dog: 'lion' is the same as 'cat'"),
    ],
)
def test_a_mapping_that_cannot_be_is_refused(mapping: dict, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Shared(mapping, CIFAR10, ("lion",))
    assert complaint in str(caught.value)


@pytest.mark.parametrize("name", [path.stem for path in (CONF / "transfer").glob("*.yaml")])
def test_every_mapping_composes_with_its_data_and_the_command_line_wins(name: str) -> None:
    config = compose([f"transfer={name}"], config_name="transfer")
    assert config["dataset"]["name"] == name.rpartition("_to_")[2]
    assert config["shared"]
    other = compose([f"transfer={name}", "dataset=synthetic", "dataset.noise=2"], config_name="transfer")
    assert other["dataset"]["name"] == "synthetic"
    assert other["dataset"]["noise"] == 2


# --- the command


@pytest.fixture
def identity() -> str:
    """--config-dir of a user's own mapping: every pattern is itself."""
    folder = Path("mine/transfer")
    folder.mkdir(parents=True)
    lines = [f"  pattern {label}: [pattern {label}]" for label in range(10)]
    (folder / "same.yaml").write_text("\n".join(["# @package _global_", "shared:", *lines, ""]))
    return "--config-dir=mine"


OTHER = ("dataset=synthetic", "dataset.num_train=200", "dataset.num_test=100")


def test_zero_shot_on_the_very_data_is_the_recorded_accuracy(kd, identity: str) -> None:
    result = kd("train-baseline", *SMALL, "--json").json
    same = ("dataset=synthetic", "dataset.num_train=300", "dataset.num_test=100", "dataset.mean=[0.1]")
    tried = kd("transfer", result["run"], *same, "transfer=same", identity, "--no-probe", "--json")
    (network,) = tried.json["networks"]
    assert network["zero_shot"]["top1"] == network["zero_shot"]["top1_open"] == result["test_top1"]
    assert "probe" not in network
    assert "dataset.mean=[0.1] has no effect" in tried.message


@pytest.fixture
def _two_penalties(monkeypatch: pytest.MonkeyPatch) -> None:
    """How one of many is chosen is tested above."""
    monkeypatch.setattr("kd_cli.evaluation.linear_probe.PENALTIES", (1e-1, 1e-2))


@pytest.mark.usefixtures("_two_penalties")
def test_seeds_are_paired_and_images_are_made_to_fit(kd) -> None:
    kd("run", "-m", *SMALL, "teacher.hidden=[4]", "student.hidden=[4]", "seed=0,1", "hydra.sweep.dir=sweep")
    other = (*OTHER, "dataset.image_size=20", "dataset.channels=1")
    shown = kd("transfer", "sweep", *other, "--json")  # people's text is on standard error
    found = shown.json
    tops = {(row["role"], row["seed"]): row["probe"]["top1"] for row in found["networks"]}
    assert set(tops) == {(role, seed) for role in ("teacher", "baseline", "distilled") for seed in (0, 1)}
    gain = paired_gain([round(tops["distilled", seed] - tops["baseline", seed], 2) for seed in (0, 1)])
    assert found["gain"]["probe"] == {**vars(gain), "verdict": gain.verdict}
    assert found["roles"]["baseline"]["probe"]["mean"] == pytest.approx(
        (tops["baseline", 0] + tops["baseline", 1]) / 2, abs=0.006
    )
    assert gain.sentence("linear probe top-1") in shown.err
    assert shown.err.count("the images of synthetic, 20×20 grey, are made 16×16 colour") == 1
    mixed = kd("transfer", "sweep/seed=0/baseline", "sweep/seed=0/baseline", *OTHER, "--json")
    assert mixed.json["gain"] == mixed.json["roles"] == {}
    assert "differ in more than their seed" in mixed.message


def test_the_network_sees_its_own_size_and_normalisation(kd) -> None:
    run = kd("train-baseline", *SMALL, "dataset.mean=[0.1,0.2,0.3]", "dataset.std=[0.5]", "--json").json["run"]
    saved, data = Saved(Path(run)), make_data(channels=1, image_size=32, mean=[0.9])
    adapted = adapt(data, saved)
    assert adapted.spec.image_shape == (3, 16, 16)
    (batch,) = adapted.eval_batches("test", batch_size=50, device=CPU)
    (plain,) = make_data(channels=1, image_size=32).eval_batches("test", batch_size=50, device=CPU)
    grey = F.interpolate(plain.images, size=(16, 16), mode="bilinear", antialias=True)
    expected = (grey - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)) / 0.5
    assert (batch.images - expected).abs().max() < 0.5 / 255 / 0.5 + 1e-4
    assert evaluate(saved.network(CPU), adapted, "test", batch_size=50, device=CPU)["images"] == 50


def test_runs_that_differ_in_more_than_their_seed_have_no_means() -> None:
    rows = [{"role": "distilled", "seed": seed, "probe": {"top1": 50.0 + seed}} for seed in (0, 1)]
    assert summary(rows, [{"loss": 1}, {"loss": 1}])["roles"]["distilled"]["probe"] == {"mean": 50.5, "std": 0.71}
    assert summary(rows, [{"loss": 1}, {"loss": 2}]) == {}
    assert summary([rows[0], rows[0]], [{}, {}]) == {}


def test_cifar10_meets_cifar100(kd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cifar(tmp_path, monkeypatch, "cifar10", CIFAR10)
    names = ("apple", "fox", "leopard", "lion", "pickup_truck", "tiger", "wolf")
    make_cifar(tmp_path, monkeypatch, "cifar100", names)
    where = ("dataset.root=" + str(tmp_path), "dataset.download=false")
    network = ("student=mlp", "student.hidden=[8]", "trainer.epochs=1")
    run = kd("train-baseline", "dataset=cifar10", *where, *network, "--json").json["run"]
    found = kd("transfer", run, "transfer=cifar10_to_cifar100", *where, "--json").json
    (row,) = found["networks"]
    assert found["dataset"] == "cifar100"
    assert row["zero_shot"]["images"] == 17  # of 20 test images three are apples
    assert [each["class"] for each in row["zero_shot"]["per_class"]] == ["cat", "dog", "truck"]
    assert [each["images"] for each in row["zero_shot"]["per_class"]] == [9, 5, 3]
    assert row["zero_shot"]["chance"] == 33.33
    assert row["probe"]["features"] == 8


def test_what_cannot_be_done_says_what_to_type(kd) -> None:
    run = kd("train-baseline", *SMALL, "trainer.epochs=1", "--json").json["run"]
    for words, complaint, code in (
        ([], "You must specify 'dataset'", 2),
        (["transfer=nope"], "there is no transfer 'nope'", 2),
        ([*OTHER, "--tap", "stage9"], "has no tap 'stage9'", 2),
        ([*OTHER, "--no-probe"], "nothing is left to do", 2),
        ([*OTHER, "dataset.val_fraction=0"], "type dataset.val_fraction=0.1", 3),
        ([*OTHER, "dataset.nois=1"], "did you mean 'dataset.noise'", 2),
        ([*OTHER, "+shared.zebra=horse"], "shared.zebra: 'horse' is not a list", 2),
    ):
        assert complaint in kd("transfer", run, *words, code=code).message
    assert "name a run: kd transfer outputs/…" in kd("transfer", *OTHER, code=2).message


@pytest.mark.usefixtures("_two_penalties")
def test_specialists_are_left_out(kd) -> None:
    small = ("trainer.epochs=1", "specialists.groups=1", "specialists.classes=3", "hydra.run.dir=there")
    kd("run", *SMALL, "teacher.hidden=[8]", *small)
    shown = kd("transfer", "there", *OTHER, "--json")
    assert {row["role"] for row in shown.json["networks"]} == {"teacher", "baseline", "distilled"}
    assert "there/specialist-1 is left out" in shown.message
    assert "no network is left" in kd("transfer", "there/specialist-1", *OTHER, code=2).message


def test_the_commands_of_the_page_work(kd) -> None:
    """With two batches of training; what takes long, corruptions and probes, has tests of its own."""
    page = (ROOT / "docs" / "evaluating.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL)
    train, evaluate_one, transfer_all = [shlex.split(line)[1:] for block in blocks for line in block.splitlines()]
    quick = ("seed=0,1", "trainer.epochs=1", "trainer.limit_train_batches=2")
    kd(*[word for word in train if not word.startswith(("seed=", "trainer.epochs="))], *quick)
    assert evaluate_one.pop() == "--corruptions"
    assert len(kd(*evaluate_one, "--json").json["evaluations"]) == 3
    found = kd(*transfer_all, "--no-probe", "--json").json
    assert len(found["networks"]) == 6
    assert found["networks"][0]["zero_shot"]["images"] == 359
