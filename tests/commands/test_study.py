"""The ten studies: each composes on its own, runs on any data, and ends in an answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from kd_cli.commands.list import choices
from kd_cli.config.compose import compose
from kd_cli.evaluation import linear_probe
from kd_cli.storage.files import read_json
from tests.conftest import HERE, ROOT, SMALL
from tests.support.sample import some

STUDIES = [choice["name"] for choice in choices("study", [])]
FAST = (*SMALL, HERE, "trainer.epochs=1", "dataset.num_train=200")


def only_study() -> Path:
    (record,) = Path("outputs/studies").glob("*/*/sweep.json")
    return record.parent


def test_the_nine_studies_of_the_experiments_are_there() -> None:
    assert set(STUDIES) >= {
        *("temperature", "weights", "teacher_quality", "student_capacity", "loss_function"),
        *("augmentation", "epochs", "efficiency", "transfer"),
    }


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_composes_says_its_question_and_has_three_seeds_at_least(name: str) -> None:
    study = compose([f"study={name}"])["study"]
    assert study["name"] == name
    assert study["question"].endswith("?")
    text = (ROOT / "conf" / "study" / f"{name}.yaml").read_text()
    (seeds,) = (line.split(":")[1].split(",") for line in text.splitlines() if line.strip().startswith("seed:"))
    assert len(seeds) >= 3


def test_a_study_ends_in_a_table_a_verdict_a_picture_and_a_report(kd) -> None:
    shown = kd("study", "temperature", *FAST, "loss.temperature=1,8", "seed=0,1")
    assert "How soft should the targets be?" in shown.out
    assert "loss.temperature=8" in shown.out
    assert "Over 2 seeds, against the baseline of its seed, distillation" in shown.out
    folder = only_study()
    assert {"report.html", "report.md", "results.csv", "results.json", "study.png", "study.svg"} <= {
        path.name for path in folder.iterdir()
    }
    results = json.loads((folder / "results.json").read_text())
    assert [group["settings"] for group in results["groups"]] == [{"loss.temperature": 1}, {"loss.temperature": 8}]
    assert all(group["seeds"] == [0, 1] for group in results["groups"])
    assert results["study"]["name"] == "temperature"


def test_the_weights_of_the_two_words_sum_to_one_unless_both_are_typed(kd) -> None:
    kd("study", "weights", *FAST, "loss.kl_weight=0.3", "seed=0,1", "--json")
    loss = read_json(only_study() / "seed=0/distilled/run.json")["loss"]
    assert (loss["kl_weight"], loss["ce_weight"], loss["temperature"]) == (0.3, 0.7, 2.0)
    kept = compose(["study=weights", "loss.kl_weight=0.3", "loss.ce_weight=0.9"])["loss"]
    assert (kept["kl_weight"], kept["ce_weight"]) == (0.3, 0.9)


@pytest.mark.slow
def test_the_study_of_efficiency_measures_what_the_networks_cost(kd) -> None:
    results = kd("study", "efficiency", *FAST, "seed=0", "--json").json
    assert {run["stage"] for run in results["runs"] if run["speed"]} == {"teacher", "baseline", "distilled"}
    assert any("% of its FLOPs" in sentence for sentence in results["findings"])


@pytest.mark.slow
def test_the_study_of_transfer_tries_the_networks_on_other_data(kd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_probe, "PENALTIES", (1e-1, 1e-2))
    networks = ("teacher=mlp", "teacher.hidden=[8]", "student=mlp", "student.hidden=[8]")
    digits = ("dataset=mnist_mini", *networks, HERE, "trainer.epochs=1", "seed=0,1")
    results = kd("study", "transfer", *digits, "trainer.limit_train_batches=5", "--json").json
    assert results["transfer"]["roles"]["distilled"]["seeds"] == 2
    assert any(sentence.startswith("On digits: Over 2 seeds distillation") for sentence in results["findings"])


def test_an_unknown_study_is_refused_with_the_nearest(kd) -> None:
    refused = kd("study", "temprature", code=2)
    assert "there is no study 'temprature'; did you mean 'temperature'?" in refused.message


def test_a_study_that_sets_options_of_its_loss_refuses_another_loss_before_anything_runs(kd) -> None:
    refused = kd("study", "weights", *FAST, "loss=dkd", code=2)
    assert "loss=dkd is not possible: study=weights sets options that only loss=kd has" in refused.message
    assert not Path("outputs").exists()


def test_a_study_whose_point_fails_answers_with_the_others_and_says_so(kd) -> None:
    shown = kd("study", "temperature", *FAST, "loss.temperature=-1,2", "seed=0", code=1)
    assert "1 of 2 points did not finish" in shown.message
    assert "With one seed distillation changed test top-1" in shown.out
    assert "hydra.run.dir=" in shown.out.partition("Not finished")[2]


@pytest.mark.parametrize(("name", "key"), [("loss_function", "loss"), ("student_capacity", "student")])
def test_what_a_study_compares_works_on_its_own_pair(kd, name: str, key: str) -> None:
    values = yaml.safe_load((ROOT / "conf" / "study" / f"{name}.yaml").read_text())["hydra"]["sweeper"]["params"][key]
    kd("check", "-m", f"{key}={','.join(some(values.split(','), 3))}", "trainer.batch_size=8")


def test_the_study_of_epochs_gives_the_baseline_as_many_whatever_is_typed_for_all(kd) -> None:
    kd("study", "epochs", *FAST, "distill_trainer.epochs=1,2", "seed=0")
    results = [read_json(only_study() / f"distill_trainer.epochs={epochs}" / "result.json") for epochs in (1, 2)]
    assert [(each["baseline"]["epochs"], each["distilled"]["epochs"]) for each in results] == [(1, 1), (2, 2)]


def test_a_study_whose_other_data_do_not_fit_is_reported_and_trains_nothing_again(kd) -> None:
    wrong = kd("study", "transfer", *FAST, "seed=0", code=2)
    assert "study.then=transfer=mnist_to_digits: shared: '0' is none of the network's classes" in wrong.message
    report = read_json(only_study() / "results.json")
    assert len(report["comparisons"]) == 1
    assert report["command"].startswith("kd study transfer dataset=synthetic")
    again = kd("study", "transfer", *FAST, "seed=0", "study.then=null")
    assert "is complete already" in again.out
    only_study()
