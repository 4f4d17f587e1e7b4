"""Reports: what is compared with what, and numbers that a calculator gives."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from kd_cli.report.tables import agreement_table
from tests.support.records import (
    report,
    three_seeds,
    told_apart,
    warned,
    write,
    write_comparison,
    write_run,
    write_sweep,
)


def test_seeds_are_paired_and_averaged(tmp_path: Path) -> None:
    three_seeds(tmp_path / "sweep")
    results = report(tmp_path / "sweep")
    (group,) = results["groups"]
    assert group["seeds"] == [0, 1, 2]
    assert group["teacher"]["test_top1"] == {"mean": 96.0, "std": 1.0, "n": 3}
    assert group["baseline"]["test_top1_last"] == {"mean": 90.5, "std": 1.0, "n": 3}
    assert group["distilled"]["val_top1"] == {"mean": 94.0, "std": 2.0, "n": 3}
    gain = group["gain"]
    assert (gain["mean"], gain["std"], gain["n"], gain["p_value"]) == (2.0, 1.0, 3, 2 / 8)
    assert (gain["low"], gain["high"]) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), abs=1e-4)
    assert gain["verdict"] == "did not differ beyond its noise"
    share = group["recovered"]
    assert share["mean"] == 40
    assert share["high"] - share["low"] == pytest.approx(2 * 20 * 4.303 / 3**0.5, abs=0.01)
    assert [each["gain"] for each in results["comparisons"]] == [1.0, 2.0, 3.0]
    assert [each["recovered"] for each in results["comparisons"]] == [20.0, 40.0, 60.0]
    assert results["axes"] == []


def test_one_seed_has_no_spread_and_no_verdict(tmp_path: Path) -> None:
    write_comparison(tmp_path / "one", 95.0, 90.0, 91.0)
    results = report(tmp_path)
    (group,) = results["groups"]
    assert group["gain"] | {"verdict": ""} == {
        **dict.fromkeys(("std", "low", "high", "p_value")),
        "mean": 1.0,
        "n": 1,
        "verdict": "",
    }
    assert group["recovered"] == {"mean": 20.0, "low": None, "high": None}
    assert warned(results, "one seed")


def test_what_was_swept_is_compared_and_ordered_by_size(tmp_path: Path) -> None:
    for temperature in (10.0, 2.0):
        options, typed = {"loss.temperature": temperature}, [f"loss.temperature={temperature:g}"]
        three_seeds(tmp_path / f"t{temperature:g}", options=options, typed=typed)
    results = report(tmp_path)
    assert results["axes"] == ["loss.temperature"]
    assert [group["settings"] for group in results["groups"]] == [{"loss.temperature": 2.0}, {"loss.temperature": 10.0}]
    assert [group["name"] for group in results["groups"]] == ["loss.temperature=2", "loss.temperature=10"]
    names = [run["name"] for run in results["runs"]]
    assert "distilled · loss.temperature=10 seed=1" in names
    assert len(set(names)) == len(names) == 18  # teachers of both sweeps do not read the temperature; still told apart


def test_a_group_that_was_chosen_by_name_is_one_key(tmp_path: Path) -> None:
    dkd = {"loss": {"name": "dkd", "alpha": 1.0, "beta": 8.0, "weight": 1.0}}
    for number, name, options in ((1, "kd", {}), (2, "dkd", dkd)):
        write_comparison(tmp_path / str(number), 95.0, 90.0, 91.0, options=options, typed=[f"loss={name}"])
    results = report(tmp_path)
    assert results["axes"] == ["loss"]
    assert [group["settings"]["loss"] for group in results["groups"]] == ["kd", "dkd"]


def test_epochs_of_all_stages_are_one_key_and_those_of_one_stage_are_its_own(tmp_path: Path) -> None:
    for epochs in (2, 5):
        write_comparison(tmp_path / "all" / str(epochs), 95.0, 90.0, 91.0, options={"trainer.epochs": epochs})
        write_comparison(tmp_path / "one" / str(epochs), 95.0, 90.0, 91.0, options={"teacher_trainer.epochs": epochs})
    assert report(tmp_path / "all")["axes"] == ["trainer.epochs"]
    assert report(tmp_path / "one")["axes"] == ["teacher_trainer.epochs"]


def test_recipes_that_differ_in_what_was_not_swept_are_flagged_and_not_averaged(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    for seed, rate in ((0, 0.001), (1, 0.001), (2, 0.01)):
        write_comparison(folder / f"seed={seed}", 95.0, 90.0, 91.0, seed=seed, options={"trainer.lr": rate})
    write_sweep(folder, ["seed"], [])
    results = report(folder)
    assert results["axes"] == []
    assert [group["seeds"] for group in results["groups"]] == [[0, 1], [2]]
    assert [group["name"] for group in results["groups"]] == ["trainer.lr=0.001", "trainer.lr=0.01"]
    assert warned(results, "differ in more than what is compared", "trainer.lr")


def test_what_a_swept_key_stands_for_is_not_flagged(tmp_path: Path) -> None:
    """An experiment sets many options; each follows from its name."""
    for name, rate, temperature in (("a", 0.1, 1.0), ("b", 0.2, 2.0)):
        options = {"trainer.lr": rate, "loss.temperature": temperature}
        write_comparison(tmp_path / name, 95.0, 90.0, 91.0, options=options, typed=[f"experiment={name}"])
    write_sweep(tmp_path, ["experiment"], [])
    results = report(tmp_path)
    assert results["axes"] == ["experiment"]
    assert [group["name"] for group in results["groups"]] == ["experiment=a", "experiment=b"]
    assert not warned(results, "more than what is compared")


def test_what_changes_no_number_parts_no_group(tmp_path: Path) -> None:
    for seed, root in enumerate(("here", "there")):
        options = {"dataset.root": root, "trainer.eval_batch_size": 10 + seed, "device": root, "outputs": root}
        options |= {"teacher.checkpoint": root}
        write_comparison(tmp_path / root, 95.0, 90.0, 91.0, seed=seed, options=options)
    results = report(tmp_path)
    assert [group["seeds"] for group in results["groups"]] == [[0, 1]]
    assert [each["key"] for each in results["differences"]] == ["seed"]


def test_other_data_under_the_same_name_part_groups(tmp_path: Path) -> None:
    for seed, fingerprint in enumerate(("f1", "f2")):
        data = {"name": "synthetic", "fingerprint": fingerprint}
        write_comparison(tmp_path / fingerprint, 95.0, 90.0, 91.0, seed=seed, record={"data": data})
    assert len(report(tmp_path)["groups"]) == 2


def test_a_baseline_with_another_recipe_is_flagged(tmp_path: Path) -> None:
    write_comparison(tmp_path / "one", 95.0, 90.0, 91.0, options={"distill_trainer.epochs": 9})
    results = report(tmp_path)
    assert results["comparisons"][0]["recipe_differences"] == {"epochs": [2, 9]}
    assert warned(results, "not distillation's alone", "epochs is 2 for the baseline and 9")


def test_the_newest_run_of_a_seed_counts_and_the_older_is_flagged(tmp_path: Path) -> None:
    for hour, distilled in ((1, 91.0), (2, 93.0)):
        write_comparison(tmp_path / str(hour), 95.0, 90.0, distilled)
        record = json.loads((tmp_path / str(hour) / "run.json").read_text())
        write(tmp_path / str(hour) / "run.json", record | {"started": f"2026-01-01T0{hour}"})
    results = report(tmp_path)
    assert results["groups"][0]["gain"]["mean"] == 3.0
    assert warned(results, "seed 0", "more than once")


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"packages": {"kd-cli": "1", "torch": "3"}}, ("different versions of PyTorch: 2, 3",)),
        ({"packages": {"kd-cli": "9", "torch": "2"}}, ("different versions of kd: 1, 9",)),
        ({"threads": 8}, ("different numbers of threads: 1, 8",)),
        ({"device": "cuda"}, ("different devices: cpu, cuda",)),
        ({"git_dirty": True}, ("1 run", "uncommitted changes")),
        ({"data": {"name": "synthetic", "fingerprint": "f2"}}, ("saw different data",)),
    ],
)
def test_runs_that_were_made_differently_are_flagged(tmp_path: Path, record: dict[str, Any], words: Any) -> None:
    write_comparison(tmp_path / "one", 95.0, 90.0, 91.0)
    assert not warned(report(tmp_path), *words)
    write_comparison(tmp_path / "two", 95.0, 90.0, 91.0, seed=1, parts={"baseline": {"record": record}})
    assert warned(report(tmp_path), *words)


def test_few_test_images_are_flagged_with_the_error_that_they_bring(tmp_path: Path) -> None:
    write_comparison(tmp_path / "few", 95.0, 90.0, 91.0, result={"images": {"test": 100}})
    assert warned(report(tmp_path), "100 test images", "90.0 %", "3.00 points")
    write_comparison(tmp_path / "many", 95.0, 90.0, 91.0)
    assert not warned(report(tmp_path / "many"), "test images")


def test_a_gap_within_the_noise_of_the_test_images_is_not_shared_out(tmp_path: Path) -> None:
    write_comparison(tmp_path / "one", 92.0, 90.0, 91.0, result={"images": {"test": 100}})
    results = report(tmp_path)
    assert results["comparisons"][0]["recovered"] is None
    assert results["groups"][0]["recovered"] is None


def loose(folder: Path, *, without: str = "baseline") -> None:
    """A teacher, and two seeds of a student with and without it."""
    teacher = write_run(folder / "teacher", "teacher", 95.0)
    digest = json.loads((teacher / "result.json").read_text())["weights_sha256"]["best"]
    taught = {"teacher": {"runs": [str(teacher)], "sha256": [digest]}}
    for seed in (0, 1):
        none = {"loss.weight": 0.0} if without == "distilled" else {}
        write_run(folder / f"none{seed}", without, 90.0 + seed, seed=seed, options=none)
        write_run(folder / f"kd{seed}", "distilled", 92.0 + seed, seed=seed, record=taught)


@pytest.mark.parametrize("without", ["baseline", "distilled"])
def test_loose_runs_become_comparisons(tmp_path: Path, without: str) -> None:
    loose(tmp_path, without=without)
    results = report(tmp_path)
    ids = {Path(run["run"]).name: run["id"] for run in results["runs"]}
    found = [(each["teacher"], each["baseline"], each["distilled"], each["gain"]) for each in results["comparisons"]]
    assert found == [(ids["teacher"], ids[f"none{seed}"], ids[f"kd{seed}"], 2.0) for seed in (0, 1)]
    assert results["groups"][0]["teacher"]["test_top1"] == {"mean": 95.0, "std": None, "n": 1}  # it is one network
    assert {run["stage"] for run in results["runs"]} == {"teacher", "baseline", "distilled"}


def test_the_teacher_of_a_loose_run_is_found_elsewhere_if_it_is_unchanged(tmp_path: Path) -> None:
    loose(tmp_path)
    targets = [tmp_path / "kd0", tmp_path / "none0"]
    assert report(*targets)["groups"][0]["recovered"]["mean"] == 40
    result = tmp_path / "teacher" / "result.json"
    write(result, json.loads(result.read_text()) | {"weights_sha256": {"best": "another"}})
    changed = report(*targets)
    assert changed["comparisons"][0]["teacher"] is None
    assert len(changed["runs"]) == 2


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 7},
        {"options": {"baseline_trainer.lr": 0.5}},
        {"record": {"model": {"name": "wide"}}},
        {"record": {"data": {"name": "synthetic", "fingerprint": "f2"}}},
    ],
)
def test_a_baseline_that_differs_is_no_partner(tmp_path: Path, other: dict[str, Any]) -> None:
    write_run(tmp_path / "kd", "distilled", 92.0)
    write_run(tmp_path / "none", "baseline", 90.0, **other)
    results = report(tmp_path)
    assert results["comparisons"][0]["gain"] is None
    assert results["groups"][0]["gain"] is None
    assert warned(results, "without a baseline", "kd")


def shared_parts(folder: Path) -> None:
    """Two points whose teacher and baseline are the same folders."""
    right, labels = told_apart([1, 1, 1, 1, 0, 0], [0, 1, 2, 0, 1, 2])
    said = {"logits": right, "labels": labels}
    teacher = write_run(folder / "parts" / "teacher-1", "teacher", 95.0, **said)
    baseline = write_run(folder / "parts" / "baseline-1", "baseline", 90.0, **said)
    for temperature in (1, 4):
        point = folder / f"loss.temperature={temperature}"
        best, _ = told_apart([1, 1, 1, 0, 1, 1], [0, 1, 2, 0, 1, 2])
        typed = [f"loss.temperature={temperature}"]
        options = {"loss.temperature": float(temperature)}
        write_run(point / "distilled", "distilled", 91.0, options=options, logits=best, labels=labels)
        for name, part in (("teacher", teacher), ("baseline", baseline)):
            (point / name).symlink_to(os.path.relpath(part, point))
        write(point / "run.json", {"stage": None, "status": "completed", "arguments": typed})
    done = [
        {"point": f"loss.temperature={t}", "folder": f"loss.temperature={t}", "status": "completed"} for t in (1, 4)
    ]
    write_sweep(folder, ["loss.temperature"], done)


def test_parts_that_points_share_are_one_run_each(tmp_path: Path) -> None:
    shared_parts(tmp_path / "sweep")
    results = report(tmp_path / "sweep")
    assert sorted(run["name"] for run in results["runs"]) == [
        "baseline · seed=0",
        "distilled · loss.temperature=1 seed=0",
        "distilled · loss.temperature=4 seed=0",
        "teacher · seed=0",
    ]
    assert [each["point"] for each in results["comparisons"]] == ["loss.temperature=1", "loss.temperature=4"]
    assert len({(each["teacher"], each["baseline"]) for each in results["comparisons"]}) == 1


def test_a_point_alone_finds_its_shared_parts(tmp_path: Path) -> None:
    shared_parts(tmp_path / "sweep")
    assert report(tmp_path / "sweep" / "loss.temperature=4")["comparisons"][0]["gain"] == 1.0


def test_what_follows_from_a_swept_key_is_not_flagged_within_one_sweep(tmp_path: Path) -> None:
    """`baseline_trainer.epochs: ${distill_trainer.epochs}` in a study."""
    for epochs in (2, 5):
        options = {"distill_trainer.epochs": epochs, "baseline_trainer.epochs": epochs}
        write_comparison(tmp_path / f"{epochs}", 95.0, 90.0, 91.0, options=options)
    write_sweep(tmp_path, ["distill_trainer.epochs"], [])
    results = report(tmp_path)
    assert [group["name"] for group in results["groups"]] == ["distill_trainer.epochs=2", "distill_trainer.epochs=5"]
    assert not warned(results, "more than what is compared")


def test_two_sweeps_that_differ_in_a_third_key_are_flagged(tmp_path: Path) -> None:
    for number, (key, rate) in enumerate((("loss.temperature", 0.1), ("loss.alpha", 0.2))):
        folder = tmp_path / key
        for value in (1.0 + number, 5.0):
            write_comparison(folder / f"{value}", 95.0, 90.0, 91.0, options={key: value, "trainer.lr": rate})
        write_sweep(folder, [key], [])
    assert warned(report(tmp_path), "more than what is compared", "trainer.lr")


def test_predictions_are_judged(tmp_path: Path) -> None:
    shared_parts(tmp_path / "sweep")
    results = report(tmp_path / "sweep")
    group, student = results["groups"][0], next(run for run in results["runs"] if run["stage"] == "distilled")
    assert group["confusion"]["baseline"] == [[2, 0, 0], [0, 1, 1], [1, 0, 1]]
    assert group["confusion"]["distilled"] == [[1, 1, 0], [0, 2, 0], [0, 0, 2]]
    assert [each["gain"] for each in group["per_class_gain"]] == [-50.0, 50.0, 50.0]
    assert group["agreement"] == {"baseline": 100.0, "distilled": 50.0}
    assert group["agreement_when_wrong"] == {"baseline": 100.0, "distilled": 0.0}
    row = agreement_table(results).rows[0]
    assert row[1:] == ["100.00", "50.00", "100.00", "0.00"]
    assert student["scores"]["top1"] == pytest.approx(100 * 5 / 6, abs=0.01)
    assert student["scores"]["agreement"] == 50.0
    assert student["confusion"] == group["confusion"]["distilled"]
    (filled,) = [each for each in student["reliability"] if each["images"]]
    assert filled["low"] < filled["confidence"] < filled["high"]
    assert (filled["images"], filled["accuracy"]) == (6, pytest.approx(5 / 6))
    assert results["classes"] == ["ant", "bee", "cat"]
    assert warned(results, "no example images")  # these options open no data
