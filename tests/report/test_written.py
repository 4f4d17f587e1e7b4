"""Reports: what is listed and written, also of runs that nobody can read and names that mean something elsewhere."""

from __future__ import annotations

import csv
import fcntl
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kd_cli.report.write import default_folder, write_files
from tests.conftest import Outcome
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


def test_a_point_of_a_sweep_that_was_started_again_is_running(tmp_path: Path) -> None:
    three_seeds(tmp_path)
    write_run(tmp_path / "seed=9", "distilled", None, typed=["seed=9"], record={"status": "running"})
    left = {"point": "seed=9", "folder": "seed=9", "status": "not started", "error": "the sweep was stopped before it"}
    write_sweep(tmp_path, ["seed"], [left])
    with (tmp_path / "seed=9" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (running,) = report(tmp_path)["points_not_done"]
    assert (running["status"], running["error"]) == ("running", None)
    (gone,) = report(tmp_path)["points_not_done"]
    assert (gone["status"], gone["error"]) == ("not started", left["error"])


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


def test_of_too_many_runs_the_newest_comparisons_are_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kd_cli.report import scores as judged

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
