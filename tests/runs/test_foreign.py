"""Folders with files of others, or with more than a run; command lines that are read again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kd_cli.errors import DataError
from kd_cli.runs.checkpoint import Checkpoint
from kd_cli.sweeps.sweep import _only_how
from tests.conftest import HERE, SMALL, Outcome

TRAIN = ("train-baseline", *SMALL)
Kd = Callable[..., Outcome]


@pytest.mark.parametrize("name", ["config.yaml", "result.json", "metrics.csv", "metrics.jsonl"])
def test_files_of_others_where_a_run_would_be_are_told_and_left(kd: Kd, name: str) -> None:
    Path(name).write_text('{"mine": 1}')
    for words in ((), ("--dry-run",)):
        said = kd(*TRAIN, *words, "hydra.run.dir=.", code=2).message
        assert name in said
        assert "type hydra.run.dir=DIR" in said or "another: hydra.run.dir=DIR" in said
    assert Path(name).read_text() == '{"mine": 1}'


def test_what_a_run_leaves_that_was_killed_before_its_record_is_its_own(kd: Kd) -> None:
    kd(*TRAIN, "hydra.run.dir=first")
    Path("there").mkdir()
    Path("there", "config.yaml").write_bytes(Path("first/config.yaml").read_bytes())
    kd(*TRAIN, "hydra.run.dir=there")
    assert "another run" in kd(*TRAIN, "trainer.lr=0.5", "hydra.run.dir=there", code=2).message


def test_a_run_with_a_typed_interpolation_can_be_resumed_as_it_says(kd: Kd) -> None:
    kd(*TRAIN, "baseline_trainer.clip_grad_norm=${trainer.clip_grad_norm}", "hydra.run.dir=there")
    before = json.loads(Path("there/result.json").read_text())
    Path("there/result.json").unlink()
    kd("resume", "there")
    assert json.loads(Path("there/result.json").read_text())["weights_sha256"] == before["weights_sha256"]


def test_how_points_are_run_may_be_typed_with_a_plus() -> None:
    assert _only_how("+hydra.launcher.max_num_timeout=3")
    assert _only_how("++hydra.launcher.n_jobs=1")
    assert not _only_how("+trainer.lr=1")


def test_the_complete_points_of_any_sweep_are_evaluated(kd: Kd) -> None:
    swept = ("trainer.lr=0.01,1e30", "hydra.sweep.dir=swept", "hydra.sweep.subdir=mlp/${trainer.lr}")
    kd(*TRAIN, "-m", HERE, *swept, code=1)
    Path("swept/multirun.yaml").unlink()
    said = kd("evaluate", "swept", "--json")
    (row,) = said.json["evaluations"]
    assert row["run"].endswith("swept/mlp/0.01")
    assert "left out, not complete: swept/mlp/1e+30" in said.message


def test_a_checkpoint_that_is_removed_while_it_is_read_is_said_to_be(kd: Kd, monkeypatch: pytest.MonkeyPatch) -> None:
    kd(*TRAIN, "hydra.run.dir=there")
    path = next(Path("there/checkpoints").iterdir())
    look = Path.iterdir

    def late(self: Path) -> Iterator[Path]:
        shutil.rmtree(path, ignore_errors=True)
        return look(self)

    monkeypatch.setattr(Path, "iterdir", late)
    with pytest.raises(DataError, match="was removed while it was read"):
        Checkpoint(path)


def test_a_word_that_no_system_takes_for_a_path_is_an_override_or_no_run(kd: Kd) -> None:
    assert "there is no run" in kd("evaluate", "x" * 300, code=2).message
    assert "there is no run" in kd("evaluate", "nothing", f"plugins=[{'x' * 300}.py]", code=2).message
