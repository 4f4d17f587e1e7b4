"""Without Altair or vl-convert only what draws refuses, before it does anything, and says what to install."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.conftest import SMALL

DRAWING = {"altair": "altair", "vl_convert": "vl-convert-python"}  # module → what pip calls it


@pytest.fixture(params=[("altair",), ("vl_convert",), tuple(DRAWING)], ids="+".join)
def missing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Packages that are not there."""
    for module in request.param:
        monkeypatch.setitem(sys.modules, module, None)
    return [DRAWING[module] for module in request.param]


def test_what_draws_names_the_packages_and_does_nothing(kd, comparison: Path, missing: list[str]) -> None:
    run = str(comparison)
    for words, what in (
        (("report", run, "--out", "out"), "kd report"),
        (("study", "temperature", *SMALL, "seed=0"), "kd study"),
        (("predict", run, "--test", "1", "--grid", "grid.png"), "--grid"),
        (("profile", run, "--picture", "costs.svg"), "--picture"),
    ):
        said = kd(*words, code=2).message
        assert f"{what} draws charts and needs {' and '.join(missing)}: pip install {' '.join(missing)}" in said
    assert not list(Path().glob("[!c]*"))  # the cache is the test's own


@pytest.mark.slow
def test_everything_else_works(kd, comparison: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in DRAWING:
        monkeypatch.setitem(sys.modules, module, None)
    run = kd("run", *SMALL, "--json").json["run"]
    for words in (
        ("distill", *SMALL, f"teacher.checkpoint={run}/teacher"),
        ("evaluate", run),
        ("predict", run, "--test", "1"),
        ("profile", f"{run}/distilled"),
        ("export", f"{run}/distilled", "--format", "safetensors"),
        ("show", run),
        ("list", "runs"),
        ("check", *SMALL),
    ):
        kd(*words)
