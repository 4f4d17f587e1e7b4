"""The validation score that chooses: the epoch, when to stop, what a search maximises; and weights of classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_cli.config.recipe import Recipe, Score, chosen_by, score_name, score_text
from kd_cli.errors import ConfigError
from kd_cli.experiments.build import class_weights
from kd_cli.losses.base import build_loss
from kd_cli.metrics.evaluate import predict
from kd_cli.metrics.scores import selection
from kd_cli.runs.metrics import read_metrics
from kd_cli.training.fit import best_epoch
from kd_cli.training.task import Distillation, Supervised, cross_entropy
from kd_cli.training.trainer import Trainer
from tests.conftest import SMALL
from tests.data.test_balanced import skewed
from tests.support.advice import unreadable
from tests.support.small import CPU, SPEC, loss_options, make_batch, make_data, make_student, make_teacher

NAMES = ("a", "b", "other", "nothing")
ROWS = [
    {"epoch": 1, "val_top1": 90.0, "val_loss": 0.5, "val_macro_f1": 70.0, "val_balanced_accuracy": 60.0},
    {"epoch": 2, "val_top1": 92.0, "val_loss": 0.6, "val_macro_f1": 65.0, "val_balanced_accuracy": 72.0},
    {"epoch": 3, "val_top1": 91.0, "val_loss": 0.3, "val_macro_f1": 69.0, "val_balanced_accuracy": 61.0},
    {"epoch": 4, "val_top1": 80.0, "val_loss": 0.4, "val_macro_f1": 80.0, "val_balanced_accuracy": 72.0},
]


def said(images: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes - 1, (images,), generator=random) ** 2 % (classes - 1)  # some classes are not there
    logits = torch.randn(images, classes, generator=random) + 1.5 * F.one_hot(labels, classes)
    return logits, labels


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_balanced_accuracy_and_macro_f1_are_scikit_learns(seed: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    logits, labels = said(40, 9, seed)
    answers = logits.argmax(dim=1)
    balanced = 100 * metrics.balanced_accuracy_score(labels, answers)
    assert selection("balanced_accuracy", logits, labels)["val_balanced_accuracy"] == pytest.approx(balanced, abs=0.006)
    macro = 100 * metrics.f1_score(labels, answers, average="macro")
    assert selection("macro_f1", logits, labels)["val_macro_f1"] == pytest.approx(macro, abs=0.006)
    assert selection("top1", logits, labels) == selection("nll", logits, labels) == {}


@pytest.mark.parametrize(("select_by", "best"), [("top1", 2), ("nll", 3), ("macro_f1", 4), ("balanced_accuracy", 4)])
def test_the_best_epoch_is_that_of_the_score_and_of_equal_ones_that_with_the_smaller_loss(
    select_by: Score, best: int
) -> None:
    assert best_epoch(ROWS, select_by) == best


@pytest.mark.parametrize("select_by", get_args(Score))
def test_records_hold_the_score_of_the_network_at_the_end_of_each_epoch(select_by: Score) -> None:
    data, task = make_data(), Supervised(make_student())
    trainer = Trainer(Recipe(epochs=2, lr=0.01, select_by=select_by), seed=0, device=CPU)
    *_, last = trainer.epochs(task, data)
    wanted = selection(select_by, *predict(task.network, data, "val", batch_size=500, device=CPU))
    assert wanted.items() <= last.items()
    assert score_name(select_by) in last
    others = {score_name(each) for each in get_args(Score)} - {score_name(select_by), "val_top1", "val_loss"}
    assert not others & last.keys()


@pytest.mark.parametrize("select_by", get_args(Score))
def test_a_run_is_judged_stopped_and_reported_by_its_score(kd, select_by: Score) -> None:
    words = ("dataset.noise=4", f"trainer.select_by={select_by}", "trainer.epochs=12", "trainer.early_stopping=2")
    shown = kd("train-baseline", *SMALL, *words, "trainer.lr=0.03", "hydra.run.dir=there")
    result, rows = json.loads(Path("there/result.json").read_text()), read_metrics(Path("there"))
    assert result["best_epoch"] == best_epoch(rows, select_by)
    assert result["epochs"] == min(12, result["best_epoch"] + 2)
    chosen = rows[result["best_epoch"] - 1]
    assert result[score_name(select_by)] == chosen[score_name(select_by)]
    assert result.get("select_by", "top1") == select_by
    assert score_text(chosen, select_by) in shown.out
    kd("report", "there", "--out", "report")
    (row,) = json.loads(Path("report/results.json").read_text())["runs"]
    assert row.get("select_by", "top1") == select_by
    assert row[score_name(select_by)] == chosen[score_name(select_by)]
    assert len(row["curves"][score_name(select_by)]) == len(rows)
    score = chosen_by(chosen, select_by)
    assert bool(score) == (select_by != "top1")
    assert [
        f" %  {score}  " in line for line in shown.out.splitlines() if f"epoch {chosen['epoch']:>2}/12" in line
    ] == [bool(score)]
    for file in ("report.html", "report.md"):
        assert score in Path("report", file).read_text()
    header = Path("report/results.csv").read_text().splitlines()[0].split(",")
    assert ("select_by" in header and score_name(select_by) in header) == bool(score)


def test_a_comparison_shows_what_chose_its_epochs(kd) -> None:
    words = ("trainer.epochs=1", "distill_trainer.select_by=nll", "hydra.run.dir=there")
    shown = kd("run", *SMALL, *words)
    result = json.loads(Path("there/result.json").read_text())
    rows = [line for line in shown.out.splitlines() if "1/1" in line and "epoch" not in line]
    assert [f"NLL {result['distilled']['val_loss']:.4f}" in row for row in rows] == [False, False, True]
    assert "chosen by" in shown.out


def test_a_search_minimises_likelihood_where_that_chooses(kd) -> None:
    pytest.importorskip("optuna")
    words = (
        "trainer.lr=0.0001,0.03,0.001",
        "trainer.select_by=nll",
        "hydra/launcher=basic",
        "hydra.sweeper.n_trials=3",
    )
    search = ("-m", "hydra/sweeper=optuna", "hydra.sweep.dir=search", *SMALL, *words)
    shown = kd("train-baseline", *search, "--json").json
    losses = {point["point"]: point["val_loss"] for point in shown["points"]}
    found = shown["optuna_results"]
    assert (found["objective"], found["direction"]) == ("val_loss", "minimize")
    assert found["best"]["point"] == min(losses, key=lambda point: losses[point])


def test_the_report_says_by_what_it_chose() -> None:
    from kd_cli.report.compared import Setting
    from kd_cli.report.findings import _choice

    def setting(name: str, **scores: float) -> Setting:
        runs = {"distilled": {seed: {"test_top1": 90.0 + seed, **scores} for seed in (0, 1)}}
        return Setting(name, {}, runs)

    known = {"select_by": "nll", "val_top1": 80.0}
    (sentence,) = _choice([setting("a", val_loss=0.4, **known), setting("b", val_loss=0.2, **known)])
    assert sentence.startswith("On validation b is best by likelihood (0.2000 ± 0.0000 nats)")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("trainer.select_by=nll",), "trainer.select_by: nll needs validation images"),
        (("trainer.schedule=plateau",), "trainer.schedule: plateau needs validation images"),
        (("trainer.early_stopping=2",), "trainer.early_stopping needs validation images"),
    ],
)
def test_what_validation_decides_is_refused_without_any(kd, words: tuple[str, ...], named: str) -> None:
    message = kd("run", *SMALL, "dataset.val_fraction=0", *words, code=2).message
    assert named in message
    assert "dataset.val_fraction=0.1" in message


def test_weights_of_classes_are_torchs() -> None:
    batch, weights = make_batch(32), torch.linspace(0.2, 3, 10)
    logits = torch.randn(32, 10)
    for smoothing in (0.0, 0.1):
        ours = cross_entropy(logits, batch.labels, smoothing, weights)
        expected = torch.nn.CrossEntropyLoss(weight=weights, label_smoothing=smoothing)(logits, batch.labels)
        assert torch.equal(ours, expected)
    assert cross_entropy(logits.bfloat16(), batch.labels, 0.0, weights).dtype == torch.float32


def test_balanced_weights_are_scikit_learns() -> None:
    utils, data = pytest.importorskip("sklearn.utils.class_weight"), skewed()
    expected = utils.compute_class_weight("balanced", classes=np.arange(10), y=data.labels("train").numpy())
    found = class_weights(Recipe(class_weights="balanced"), data, CPU)
    assert found is not None
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    assert len(set(found.tolist())) > 1
    assert class_weights(Recipe(), data, CPU) is None


def test_a_class_without_images_has_weight_1() -> None:
    found = class_weights(Recipe(class_weights="balanced"), skewed().narrowed([0, 1]).known_as(NAMES), CPU)
    assert found is not None
    assert found.tolist() == pytest.approx([180 / (4 * 90), 180 / (4 * 10), 180 / (4 * 80), 1.0])


def test_weights_of_another_number_than_classes_are_refused_with_what_to_type(kd) -> None:
    message = kd("run", *SMALL, "trainer.class_weights=[1,2,3]", code=2).message
    assert "trainer.class_weights: 3 weights are given for 10 classes" in message
    assert not unreadable(message)
    for value in ("[1,0,1]", "balancd", "[]"):
        assert "trainer.class_weights" in kd("run", *SMALL, f"trainer.class_weights={value}", code=2).message


def test_a_list_of_weights_stands_for_no_specialist(kd) -> None:
    words = ("experiment=specialists", "trainer.class_weights=[1,1,1,1,1,1,1,1,1,2]")
    message = kd("run", *SMALL, *words, code=2).message
    assert "trainer.class_weights: a specialist has classes of its own" in message
    assert not unreadable(message)


def test_a_distillation_weighs_the_labels_alone() -> None:
    batch, weights = make_batch(16), torch.linspace(0.2, 3, 10)

    def terms(given: Tensor | None) -> dict[str, Tensor]:
        method, mix = build_loss(loss_options("kd"))
        task = Distillation(make_student(), make_teacher(), method, mix, SPEC, name="kd", class_weights=given).eval()
        return dict(task(batch).terms)

    plain, weighted = terms(None), terms(weights)
    assert plain["ce"] != weighted["ce"]
    assert {name: float(term) for name, term in plain.items() if name != "ce"} == {
        name: float(term) for name, term in weighted.items() if name != "ce"
    }


ALL = (
    *("trainer.freeze=[hidden.0.bias]", "trainer.backbone_lr_factor=0.5", "trainer.layer_decay=0.8"),
    *("trainer.decay_norm_and_bias=false", "trainer.weight_decay=0.01", "trainer.class_weights=balanced"),
    *("trainer.schedule=plateau", "trainer.patience=1", "trainer.select_by=macro_f1", "trainer.swa_epochs=2"),
    *("trainer.epochs=4", "dataset.balanced=true"),
)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lamb", "muon"])
def test_with_all_options_a_distillation_without_weight_is_the_baseline(kd, optimizer: str) -> None:
    pytest.importorskip("timm" if optimizer == "lamb" else "torch")
    words = ("student.hidden=[12,8]", f"trainer.optimizer={optimizer}", "loss.weight=0", "loss.ce_weight=1")
    found = kd("run", *SMALL, *ALL, *words, "--json").json
    assert found["baseline"]["weights_sha256"] == found["distilled"]["weights_sha256"]
    assert found["baseline"]["val_macro_f1"] == found["distilled"]["val_macro_f1"]
    assert "recipe_differences" not in found


def test_a_stage_has_options_of_its_own(kd) -> None:
    words = ("distill_trainer.freeze=[hidden]", "distill_trainer.select_by=nll")
    found = kd("run", *SMALL, *words, "--json").json
    assert found["recipe_differences"] == {"freeze": [[], ["hidden"]], "select_by": ["top1", "nll"]}
    assert "select_by" not in found["baseline"]


def test_a_part_that_is_not_there_is_told_before_anything_is_trained(kd) -> None:
    message = kd("run", *SMALL, "trainer.freeze=[hiden.0]", code=2).message
    assert "trainer.freeze: 'hiden.0' matches no parameter or module of teacher=mlp; nearest: hidden.0" in message
    assert "teacher_trainer.freeze=[hidden.0]" in message
    assert not list(Path().rglob("run.json"))
    assert (
        "leaves nothing to learn in student=mlp" in kd("train-baseline", *SMALL, "trainer.freeze=['*']", code=2).message
    )


def test_lamb_without_timm_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from kd_cli.config.recipe import check_possible

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'kd-cli\[timm\]'"):
        check_possible(Recipe(optimizer="lamb"), on_cuda=False)
