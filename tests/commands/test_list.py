"""kd list runs: every run once, the newest first, those that are asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kd_cli.runs.folder import RunDir
from kd_cli.runs.records import network_name


def make_run(path: Path, stage: str | None) -> None:
    with RunDir.open(path, {"stage": stage}, {}, exact=True) as run:
        (run.path / "checkpoints").mkdir()


@pytest.fixture
def sweep() -> None:
    """A sweep of two points, the second of which has failed; both have one teacher, which is beside them."""
    make_run(Path("outputs/parts/teacher-1"), "teacher")
    for point in ("one", "two"):
        make_run(Path("outputs", point, "distilled"), "distilled")
        Path("outputs", point, "teacher").symlink_to("../parts/teacher-1")
    make_run(Path("outputs/one"), None)
    with pytest.raises(ValueError, match="no"), RunDir.open(Path("outputs/two"), {}, {}, exact=True):
        raise ValueError("no")


def listed(kd, *options: str) -> list[str]:
    return [row["run"].removeprefix("outputs/") for row in kd("list", "runs", *options, "--json").json["runs"]]


def test_every_run_is_listed_once_and_the_newest_first(kd, sweep) -> None:
    assert listed(kd) == ["two", "one", "two/distilled", "one/distilled", "parts/teacher-1"]


def test_only_those_runs_that_are_asked_for(kd, sweep) -> None:
    assert listed(kd, "--limit", "2") == ["two", "one"]
    assert listed(kd, "--stage", "distilled") == ["two/distilled", "one/distilled"]
    assert listed(kd, "--status", "failed") == ["two"]
    assert listed(kd, "--stage", "comparison", "--status", "completed") == ["one"]
    assert listed(kd, "--stage", "baseline") == []
    assert "2 of 5 runs in outputs" in kd("list", "runs", "--stage", "comparison").out


def test_a_run_by_the_name_of_checkpoints_is_listed_and_nothing_in_a_runs_checkpoints(kd) -> None:
    make_run(Path("outputs/checkpoints"), "teacher")
    Path("outputs/checkpoints/checkpoints/run.json").write_text("{}")
    assert listed(kd) == ["checkpoints"]


def test_runs_are_listed_without_torch(sweep) -> None:
    code = "import sys; from kd_cli.cli import main\ntry: main()\nexcept SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "list", "runs"], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
    assert "parts/teacher-1" in done.stdout


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"name": "resnet8"}, "resnet8"),
        ({"name": "torchvision", "model": "mobilenet_v3_small"}, "mobilenet_v3_small"),
        ({"name": "external", "callable": "timm.create_model", "kwargs": {"model_name": "resnet10t"}}, "resnet10t"),
        ({"name": "external", "callable": "mine.models:build", "kwargs": {}}, "build"),
        ({"name": "onnx", "file": "some/where/teacher.onnx"}, "teacher.onnx"),
        ({"name": "external", "callable": None}, "external"),
        ({"name": "torchvision", "model": ["x"]}, "torchvision"),
        ({"name": ["x"]}, ["x"]),
        (None, None),
    ],
)
def test_a_network_is_called_by_its_own_name(options: Any, name: Any) -> None:
    assert network_name(options) == name


def test_runs_are_listed_with_the_networks_own_name(kd) -> None:
    make_run(Path("outputs/a"), "teacher")
    record = json.loads(Path("outputs/a/run.json").read_text())
    record["model"] = {"name": "torchvision", "model": "mobilenet_v3_small"}
    Path("outputs/a/run.json").write_text(json.dumps(record))
    assert [run["network"] for run in kd("list", "runs", "--json").json["runs"]] == ["mobilenet_v3_small"]
    kd("report", "outputs/a", "--out", "page")
    assert "mobilenet_v3_small" in Path("page/report.md").read_text() + Path("page/report.html").read_text()
