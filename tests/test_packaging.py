"""A wheel holds everything and works from any directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, SMALL


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the contents of the wheel."""
    pytest.importorskip("hatchling", reason="building a wheel needs the development extras")
    built = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(built)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    wheel = next(built.glob("*.whl"))
    assert wheel.stat().st_size < 3_000_000
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(built / "site")
    return built / "site"


def run(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "kd_cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=True)


def test_the_wheel_brings_its_configuration_and_its_digits(installed: Path) -> None:
    code = (
        "from kd_cli.config.compose import conf_dir; from kd_cli.data.mnist_mini import FILE; print(conf_dir(), FILE)"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    conf, digits = map(Path, printed.stdout.split())
    assert conf.is_relative_to(installed)
    assert digits.is_relative_to(installed)
    assert (conf / "loss" / "kd.yaml").exists()
    assert any("LICENSE" in path.name for path in digits.parent.iterdir())


def test_the_wheel_brings_all_that_the_report_is_made_of(installed: Path) -> None:
    here, there = ROOT / "kd_cli" / "report", installed / "kd_cli" / "report"
    parts = [path for suffix in ("j2", "css", "js") for path in here.glob(f"*.{suffix}")]
    assert len(parts) >= 5
    assert all((there / path.name).read_bytes() == path.read_bytes() for path in parts)


def test_the_wheel_runs_an_experiment(installed: Path) -> None:
    result = json.loads(run(installed, "run", *SMALL, "--json").stdout)
    assert result["distilled"]["parameters"] == result["baseline"]["parameters"]


def test_the_wheel_reads_the_shipped_digits(installed: Path) -> None:
    overrides = ("trainer.epochs=1", "trainer.limit_train_batches=2", "student=linear")
    assert json.loads(run(installed, "train-baseline", *overrides, "--json").stdout)["images"]["test"] == 1000
