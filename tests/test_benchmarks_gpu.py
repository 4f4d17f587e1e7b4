"""The GPU's benchmark makes its measurements, or says in a word why not. How long anything takes is not looked at."""

from __future__ import annotations

import json
import runpy
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.datasets import ImageFolder

from benchmarks.gpu import __main__ as program
from benchmarks.gpu import bits, epochs, images, kernels, loop
from benchmarks.gpu.lab import Lab
from benchmarks.gpu.session import FULL, MEASURES, SMALL, Session, measure
from benchmarks.gpu.table import rows, text
from benchmarks.measure import NOTHING, Done, Failed, run
from kd_cli.data.base import Raw
from tests.conftest import ROOT
from tests.conftest import SMALL as NETWORKS

HALF = {"all": [9.0, 0.5, 0.5], "training": [9.0, 0.4, 0.4]}
TWICE = {"all": [9.0, 1.0, 1.0], "training": [9.0, 0.8, 0.8]}
TOLD = [name for name in MEASURES if name != "start-up"]


@pytest.fixture
def stored() -> Callable[..., Raw]:
    """The data set that is a plugin."""
    return runpy.run_path(str(ROOT / "benchmarks" / "gpu" / "stored_images.py"))["stored"]


class Told:
    """Takes the place of running programs: this build is twice as fast as the other."""

    def __init__(self) -> None:
        self.commands: list[Sequence[str]] = []

    def __call__(
        self, command: Sequence[str], *, cache: Path, variables: Mapping[str, str] = NOTHING, limit: float | None = None
    ) -> Done:
        assert limit is not None
        assert limit > 0
        self.commands.append(command)
        before = "PYTHONPATH" in variables
        return Done(20.0 if before else 10.0, self._report(command, cache.parent, before))

    def _report(self, command: Sequence[str], folder: Path, before: bool) -> dict[str, Any]:
        module = command[2].rpartition(".")[2]
        if module == "kd_cli":
            return {"points": [self._point(folder / f"point{number}") for number in range(2)]}
        slow, fast = (TWICE, TWICE) if before else (TWICE, HALF)
        return {
            "epochs": {"student": fast, "student, eager": slow, "teacher": fast, "teacher_run": "teacher"},
            "loop": {"seconds": [9.0, 0.4, 0.4]},
            "script": {"epoch_seconds": [9.0, 0.1, 0.1], "images": 27},
            "bits": {"losses": 2, "checks": {"twice": {"kd": True, "crd": "no"}, "cached": {"kd": True}}},
        }[module]

    def _point(self, run: Path) -> dict[str, str]:
        run.mkdir(exist_ok=True)
        times = {"started": "2026-01-01T00:00:00+00:00", "ended": "2026-01-01T00:00:05+00:00"}
        (run / "run.json").write_text(json.dumps({"pid": 7, **times}))
        return {"run": str(run)}


def session(folder: Path, **options: Any) -> Session:
    settings = {"device": "cpu", "sizes": SMALL, "run": Told(), "end": time.monotonic() + 600, **options}
    return Session(folder, **settings)


def test_all_measurements_make_a_table(tmp_path: Path) -> None:
    (tmp_path / "other" / "kd_cli").mkdir(parents=True)
    there = session(tmp_path, before=tmp_path / "other")
    measure(there, TOLD, lambda: None)
    assert not there.skipped
    found = {(row.title, row.opponent): row.ratio for row in rows(there.raw, SMALL)}
    assert found["an epoch of the student, validation included", "the build before"] == 2
    assert found["an epoch of the student, validation included", "script, 1 workers"] == 2  # 270 images for its 27
    assert found["an epoch of the teacher, fp32", "the build before"] == 2
    assert found["a sweep of 2 points", "the build before, n_jobs=8"] == 2
    assert found["a step of the student", "bare captured loop"] == 1
    said = text(there.raw, there.skipped, SMALL)
    assert "identical bits, twice: 1 of 2 losses; not crd" in said
    assert "identical bits, cached: 1 of 2 losses; 1 not checked" in said
    assert "2 points ran in 1 process(es)" in said


def test_points_that_the_other_build_was_spared_take_as_long_as_its_last() -> None:
    raw = {
        "sweep": {"seconds": 10.0, "points": [1.0] * 15},
        "before default": {"seconds": 20.0, "points": [15.0, 10.0]},
    }
    (row,) = rows(raw, FULL)
    assert row.opponent == "the build before, default, 2 points measured"
    assert row.ratio == (20 + 13 * 10) / 10


def test_what_there_is_no_time_for_is_skipped_with_a_word(tmp_path: Path) -> None:
    there = session(tmp_path, sizes=FULL, end=time.monotonic() + 1)
    measure(there, list(MEASURES), lambda: None)
    assert set(there.skipped) == {name for name in MEASURES if not name.startswith("before")}
    assert "not measured, epochs: skipped: " in text(there.raw, there.skipped, FULL)


def test_a_measurement_that_fails_leaves_the_others(tmp_path: Path) -> None:
    def fails(command: Sequence[str], **options: Any) -> Done:
        raise Failed("it ended with exit code 1", "the whole story")

    there = session(tmp_path, run=fails)
    measure(there, ["epochs", "sweep"], lambda: None)
    assert there.skipped["epochs"] == "it ended with exit code 1\nthe whole story"
    assert there.skipped["sweep"] == "it needs the teacher that epochs trains"


def test_a_program_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="was ended after 0 seconds"):
        run([sys.executable, "-c", "import time; time.sleep(60)"], cache=tmp_path / "cache", limit=0.05)


def test_the_numbers_are_written_with_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "run", Told())
    words = ["epochs", "sweep", "--small", "--device", "cpu", "--out", str(tmp_path / "gpu.json")]
    assert program.main(words) == 0
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert set(written["raw"]) == {"epochs", "sweep"}
    assert written["facts"]["card"]
    assert "kd without graphs" in capsys.readouterr().out


def test_both_sides_have_images_of_the_same_shape(tmp_path: Path, stored: Callable[..., Raw]) -> None:
    images.write_stored(tmp_path, 40, 20)
    images.write_tree(tmp_path, 30, 10)
    raw = stored(str(tmp_path))
    assert isinstance(raw.train_images, torch.Tensor)
    assert raw.train_images.shape == (40, 32, 32, 3)
    assert len(ImageFolder(tmp_path / "train")) == 30
    assert ImageFolder(tmp_path / "test")[0][0].size == (32, 32)


def test_epochs_and_the_bare_loop_are_measured(
    tmp_path: Path, stored: Callable[..., Raw], capsys: pytest.CaptureFixture[str]
) -> None:
    images.write_stored(tmp_path, 60, 20)
    lab = Lab(tmp_path, "cpu", (*epochs.EXPERIMENT, f"dataset.root={tmp_path}"))
    seconds = epochs.measure(lab, replace(epochs.SETTINGS["student"], epochs=2))
    assert {len(each) for each in seconds.values()} == {2}
    capsys.readouterr()
    loop.main(["--root", str(tmp_path), "--images", "54", "--device", "cpu", "--epochs", "2"])
    assert len(json.loads(capsys.readouterr().out)["seconds"]) == 2


def test_a_weights_gradient_by_unfolding_is_that_of_the_convolution() -> None:
    plain = torch.nn.Conv2d(3, 5, 3, padding=1).double()
    unfolded = kernels.Unfolded(3, 5, 3, padding=1).double()
    unfolded.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = []
    for layer in (plain, unfolded):
        given = images.clone().requires_grad_()
        layer(given).pow(3).sum().backward()
        found.append([given.grad, layer.weight.grad, layer.bias.grad])
    torch.testing.assert_close(*found)
    assert kernels.measured("student", "channels first", True, torch.device("cpu"), 1) > 0


def test_a_setting_that_this_build_does_not_have_is_left_out() -> None:
    assert epochs.possible(epochs.SETTINGS["teacher, bf16"])
    assert not epochs.possible(replace(epochs.SETTINGS["student"], trainer={"no_such_option": True}))
    assert not epochs.possible(replace(epochs.SETTINGS["student"], trainer={"precision": "fp8"}))


class Drifting(Lab):
    """Every training has a seed of its own."""

    seeds = count(1)

    def train(self, command: str, edits: Any = None, **options: Any) -> Path:
        drift = {} if options.get("to") else {"seed": next(self.seeds)}
        return super().train(command, {**drift, **(edits or {})}, **options)


@pytest.mark.parametrize(("kind", "same"), [(Lab, True), (Drifting, False)])
def test_bits_are_found_to_be_the_same_or_not(tmp_path: Path, kind: type[Lab], same: bool) -> None:
    found = bits.check_all(kind(tmp_path, "cpu", (*NETWORKS, "dataset.augment=flip")), ["kd"], 60)
    assert {check: each["kd"] for check, each in found.items()} == dict.fromkeys(found, same)
    assert set(found) >= {"twice", "resumed", "weight_zero", "cached"}
