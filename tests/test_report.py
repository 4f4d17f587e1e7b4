"""Reports: numbers that a calculator gives, runs that nobody can read, names that mean something elsewhere."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Outcome
from records import told_apart, write, write_comparison, write_run, write_sweep

from kd_cli.report.results import results_of
from kd_cli.report.write import default_folder, write_files


def report(*targets: str | Path) -> dict[str, Any]:
    return results_of([Path(target) for target in targets], ["report"])


def warned(results: dict[str, Any], *words: str) -> list[str]:
    """The warnings with all of these words."""
    return [text for text in results["warnings"] if all(word in text for word in words)]


def three_seeds(folder: Path, **told: Any) -> None:
    """Gaps of 5, gains of 1, 2 and 3."""
    for seed in range(3):
        write_comparison(folder / f"seed={seed}", 95.0 + seed, 90.0 + seed, 91.0 + 2 * seed, seed=seed, **told)


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


def test_predictions_are_judged(tmp_path: Path) -> None:
    shared_parts(tmp_path / "sweep")
    results = report(tmp_path / "sweep")
    group, student = results["groups"][0], next(run for run in results["runs"] if run["stage"] == "distilled")
    assert group["confusion"]["baseline"] == [[2, 0, 0], [0, 1, 1], [1, 0, 1]]
    assert group["confusion"]["distilled"] == [[1, 1, 0], [0, 2, 0], [0, 0, 2]]
    assert [each["gain"] for each in group["per_class_gain"]] == [-50.0, 50.0, 50.0]
    assert group["agreement"] == {"baseline": 100.0, "distilled": 50.0}
    assert student["scores"]["top1"] == pytest.approx(100 * 5 / 6, abs=0.01)
    assert student["scores"]["agreement"] == 50.0
    assert student["confusion"] == group["confusion"]["distilled"]
    (filled,) = [each for each in student["reliability"] if each["images"]]
    assert filled["low"] < filled["confidence"] < filled["high"]
    assert (filled["images"], filled["accuracy"]) == (6, pytest.approx(5 / 6))
    assert results["classes"] == ["ant", "bee", "cat"]
    assert warned(results, "no example images")  # these options open no data


def test_images_on_which_the_students_disagree_are_shown(comparison: Path) -> None:
    results = report(comparison)
    names = {run["id"]: run for run in results["runs"]}
    assert {run["stage"] for run in names.values()} == {"teacher", "baseline", "distilled"}
    assert 0 < len(results["examples"]) <= 8
    for example in results["examples"]:
        said = {network["name"]: network for network in example["networks"]}
        assert list(said) == ["teacher", "baseline", "distilled"]
        right = [said[name]["class"] == example["label"] for name in ("baseline", "distilled")]
        assert sorted(right) == [False, True]
        assert example["image"].startswith("data:image/png;base64,")
        for network in said.values():
            shown = [each["p"] for each in network["probabilities"]]
            assert network["probabilities"][0]["class"] == network["class"]
            assert max(shown) == shown[0]
            assert sum(shown) <= 1.001
    assert "of 100 test images" in results["examples_rule"].lower()


def test_points_that_did_not_finish_are_listed_with_a_way_back(tmp_path: Path) -> None:
    three_seeds(tmp_path)
    write_run(tmp_path / "seed=9", "distilled", None, typed=["seed=9"], record={"command": "distill"})
    bad = [
        {"point": "seed=7", "folder": "seed=7", "status": "failed", "error": "no", "log": "log.txt", "rerun": "kd run"},
        {"point": "seed=9", "folder": "seed=9", "status": "interrupted", "error": "Ctrl-C"},
    ]
    alone = {"point": "seed=1", "folder": "seed=1", "status": "failed"}  # it has gone on by itself since
    write_sweep(tmp_path, ["seed"], [{"point": "seed=0", "folder": "seed=0", "status": "completed"}, *bad, alone])
    first, second = report(tmp_path)["points_not_done"]
    assert first == {key: each for key, each in bad[0].items() if key != "folder"}
    assert (second["status"], second["error"], second["rerun"]) == ("interrupted", "Ctrl-C", "kd distill seed=9")


def test_a_loose_run_that_did_not_finish_is_listed_too(tmp_path: Path) -> None:
    write_run(tmp_path / "gone", "baseline", None, record={"status": "diverged", "error": "the loss is not finite"})
    results = report(tmp_path)
    assert [(each["point"], each["error"]) for each in results["points_not_done"]] == [
        ("gone", "the loss is not finite")
    ]
    assert warned(results, "1 run diverged")
    assert results["runs"][0]["test_top1"] is None


def test_a_sweep_of_which_nothing_started_is_reported(tmp_path: Path) -> None:
    write_sweep(tmp_path, ["seed"], [{"point": "seed=0", "folder": "seed=0", "status": "failed", "error": "no"}])
    assert len(report(tmp_path)["points_not_done"]) == 1


def spoil_nothing(folder: Path) -> None:
    """As it is."""


def spoil_run(folder: Path) -> None:
    (folder / "distilled" / "run.json").write_text('{"stage": "dist')


def spoil_types(folder: Path) -> None:
    wrong = {"stage": "distilled", "arguments": 5, "data": [], "teacher": {"runs": 1, "sha256": 2}, "packages": 3}
    write(folder / "distilled" / "run.json", wrong | {"model": 1, "seed": "x", "resumed": 1, "started": 3})


def spoil_result(folder: Path) -> None:
    (folder / "distilled" / "result.json").write_text("")


def spoil_numbers(folder: Path) -> None:
    (folder / "distilled" / "result.json").write_text('{"test_top1": NaN, "images": 7, "weights_sha256": 3}')


def spoil_metrics(folder: Path) -> None:
    (folder / "distilled" / "metrics.jsonl").write_bytes(b'{"epoch": 1, "train_loss": NaN}\n{"epoch"\n[1]\n')


def spoil_config(folder: Path) -> None:
    (folder / "baseline" / "config.yaml").write_text("a: [")


def spoil_comparison(folder: Path) -> None:
    (folder / "run.json").write_text("no")


def spoil_predictions(folder: Path) -> None:
    (folder / "distilled" / "predictions.safetensors").write_bytes(b"\x00" * 20)


def spoil_sweep(folder: Path) -> None:
    (folder / "sweep.json").write_text("{")


def spoil_points(folder: Path) -> None:
    write(folder / "sweep.json", {"keys": 1, "points": [1, {"point": None}], "study": {"axis": 2}})


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (spoil_nothing, ""),
        (spoil_run, "run.json is damaged"),
        (spoil_types, ""),
        (spoil_result, "result.json is damaged"),
        (spoil_numbers, ""),
        (spoil_metrics, "2 of its 3 lines"),
        (spoil_config, "config.yaml is missing or damaged"),
        (spoil_comparison, "run.json is damaged"),
        (spoil_predictions, "predictions.safetensors is damaged"),
        (spoil_sweep, "sweep.json is damaged"),
        (spoil_points, ""),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_damaged_is_named_and_everything_is_written(
    tmp_path: Path, spoil: Callable[[Path], None], named: str
) -> None:
    logits, labels = told_apart([1, 0, 1], [0, 1, 2])
    folder = write_comparison(tmp_path / "one", 95.0, 90.0, 91.0, logits=logits, labels=labels)
    spoil(folder)
    results = report(folder)
    assert not named or warned(results, named)
    paths = write_files(results, tmp_path / "out")
    assert json.loads(paths["results.json"].read_text()) == results
    assert paths["report.md"].read_text().startswith("# one")


def test_a_run_whose_configuration_is_lost_is_compared_with_nothing(tmp_path: Path) -> None:
    three_seeds(tmp_path)
    (tmp_path / "seed=1" / "baseline" / "config.yaml").unlink()
    assert [group["seeds"] for group in report(tmp_path)["groups"]] == [[0, 2]]


def test_names_with_markup_and_control_characters_do_nothing(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>|\x1b[31m"
    data = {"name": name, "fingerprint": "f1", "classes": list("abc")}
    write_run(tmp_path / "odd", "baseline", 90.0, typed=[f"+x={name}"], record={"data": data, "error": name})
    write_run(tmp_path / "gone", "baseline", None, record={"error": f"{name}\nmore"})
    results = report(tmp_path)
    assert any(run["data"] == name for run in results["runs"])
    text = write_files(results, tmp_path / "out")["report.md"].read_text()
    assert "<script>" not in text.replace("\\<", "")
    assert "\x1b" not in text
    for table in text.split("\n\n"):
        bars = {line.count("|") - line.count("\\|") for line in table.splitlines() if line.startswith("|")}
        assert len(bars) <= 1


def test_a_cell_is_no_formula(tmp_path: Path) -> None:
    for number, text in enumerate(("=1+1", "+1", "-1", "@a", "plain")):
        write_run(tmp_path / str(number), "baseline", 90.0, seed=number, record={"error": text})
    table = write_files(report(tmp_path), tmp_path / "out")["results.csv"].read_text()
    rows = list(csv.DictReader(table.splitlines()))
    assert [row["error"] for row in rows] == ["'=1+1", "'+1", "'-1", "'@a", "plain"]
    assert [float(row["test_top1"]) for row in rows] == [90.0] * 5


def test_numbers_below_zero_stay_numbers_in_a_table(tmp_path: Path) -> None:
    write_comparison(tmp_path / "one", 95.0, 90.0, 88.0)
    table = write_files(report(tmp_path), tmp_path / "out")["results.csv"].read_text()
    assert [row["gain"] for row in csv.DictReader(table.splitlines())] == ["", "-2.0", ""]


def test_pytorch_is_not_imported_where_there_are_no_predictions(tmp_path: Path) -> None:
    write_comparison(tmp_path / "one", 95.0, 90.0, 91.0)
    code = "import sys; from pathlib import Path; from kd_cli.report.results import results_of\n"
    code += "results_of([Path(sys.argv[1])], []); print('torch' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "False"


def test_the_files_go_into_the_one_run_or_sweep_and_otherwise_into_outputs(tmp_path: Path) -> None:
    one = write_comparison(tmp_path / "one", 95.0, 90.0, 91.0)
    assert default_folder([one]) == one
    assert default_folder([one, one]) == default_folder([tmp_path]) == Path("outputs/report")


def test_kd_report_shows_the_comparison_and_writes_its_files(kd: Callable[..., Outcome], tmp_path: Path) -> None:
    three_seeds(tmp_path / "sweep")
    shown = kd("report", "sweep", "--out", "there")
    assert "+2.00 (-0.48 … +4.48)" in shown.out
    assert "note: 3 seeds" in shown.err
    assert {path.name for path in Path("there").iterdir()} >= {"report.md", "results.csv", "results.json"}
    printed = kd("report", "sweep", "--json").json
    assert printed["groups"] == json.loads(Path("there/results.json").read_text())["groups"]
    assert Path(printed["files"]["results.json"]).exists()


def test_kd_report_says_what_is_missing(kd: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "there is no run in empty" in kd("report", "empty", code=2).message
    assert "there is no folder gone" in kd("report", "gone", code=2).message
    assert "there is no folder outputs" in kd("report", code=2).message


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


def test_of_too_many_runs_the_newest_comparisons_are_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kd_cli.report import judged

    logits, labels = told_apart([1, 0, 1], [0, 1, 2])
    three_seeds(tmp_path, logits=logits, labels=labels)
    monkeypatch.setattr(judged, "_MOST_RUNS", 4)
    monkeypatch.setattr(judged, "_MOST_COUNTS", 9)
    results = report(tmp_path)
    seeds = [run["seed"] for run in results["runs"] if run["scores"]]
    assert seeds == [1, 2, 2, 2]
    assert all(run["confusion"] is None for run in results["runs"])
    assert results["groups"][0]["confusion"] == {
        "baseline": [[1, 0, 0], [0, 0, 1], [0, 0, 1]],
        "distilled": [[1, 0, 0], [0, 0, 1], [0, 0, 1]],
    }
    assert warned(results, "only 4 of 9 runs")
    assert warned(results, "confusion matrices of single runs")


def test_runs_of_one_network_have_the_same_measured_speed(comparison: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kd_cli.report import speed

    monkeypatch.setattr(speed, "_SECONDS", 0.0)  # five passes
    results = report(comparison)
    speed.add_speed(results)
    found = {run["stage"]: run["speed"] for run in results["runs"]}
    assert found["baseline"] == found["distilled"] != found["teacher"]
    assert all(each > 0 for each in found["teacher"].values())
    assert found["teacher"]["flops_per_image"] > found["baseline"]["flops_per_image"]
    assert results["measured_on"]["device"] == "cpu"


def test_two_hundred_classes_and_no_name_for_them(tmp_path: Path) -> None:
    labels = torch.arange(200)
    logits = 9.0 * torch.eye(200)
    write_comparison(tmp_path / "one", 95.0, 90.0, 91.0, logits=logits, labels=labels)
    results = report(tmp_path)
    assert len(results["classes"]) == 200
    assert results["classes"][-1] == "199"
    assert len(results["groups"][0]["per_class_gain"]) == 200
