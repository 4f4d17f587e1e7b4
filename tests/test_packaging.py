"""A wheel holds everything and works from any directory."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

from tests.conftest import ROOT, SMALL


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


def test_the_wheel_says_its_licence_and_brings_the_text(installed: Path) -> None:
    about = next(installed.glob("*.dist-info"))
    metadata = message_from_string((about / "METADATA").read_text())
    assert metadata["License-Expression"] == "Apache-2.0"
    assert not [name for name in metadata.get_all("Classifier", []) if name.startswith("License")]
    assert (about / "licenses" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    files = metadata.get_all("License-File", [])
    assert set(files) == {"LICENSE", "kd_cli/data/mnist_mini.LICENSE.txt"}
    assert all((about / "licenses" / name).exists() for name in files)


def test_the_licence_is_the_text_of_its_publisher_to_the_letter() -> None:
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"  # LICENSE-2.0.txt of apache.org


def test_the_source_archive_brings_what_its_readers_look_for(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="building a source archive needs the development extras")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        top = {name.split("/")[1] for name in archive.getnames()}
    pages = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"}
    assert pages | {"kd_cli", "conf", "tests", "docs", "benchmarks", "findings", "pyproject.toml"} <= top


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
