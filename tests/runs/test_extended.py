"""A finished training that goes on for more epochs: the bits of one that had them from the start, or a refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kd_cli.runs.predictions import read_predictions
from tests.conftest import SMALL, Outcome

Kd = Callable[..., Outcome]
TIMES = ("seconds", "images_per_second")
RICH = ("dataset.augment=crop_flip", "trainer.optimizer=sgd", "trainer.ema_decay=0.8", "trainer.checkpoint_every=3")


def rows(run: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in found]


def files(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def assert_same(one: Path, other: Path) -> None:
    first, second = (json.loads((run / "result.json").read_text()) for run in (one, other))
    for key in ("weights_sha256", "test_top1", "test_nll", "best_epoch", "epochs", "val_top1"):
        assert first[key] == second[key], key
    assert rows(one) == rows(other)
    said = [read_predictions(run, weights=first["weights_sha256"]["best"]) for run in (one, other)]
    assert said[0] is not None
    assert said[1] is not None
    assert said[0].logits.equal(said[1].logits)


@pytest.mark.parametrize(
    "schedule",
    [
        ("trainer.schedule=constant", "trainer.warmup_epochs=1.5"),
        ("trainer.schedule=step", "trainer.step_size=2"),
        ("trainer.schedule=multistep", "trainer.milestones=[1,3]"),
        ("trainer.schedule=plateau", "trainer.patience=1", "trainer.lr=1e-9", "trainer.select_by=macro_f1"),
    ],
    ids=["constant", "step", "multistep", "plateau"],
)
def test_an_extended_run_is_one_with_all_epochs_from_the_start(kd: Kd, schedule: tuple[str, ...]) -> None:
    words = ("train-baseline", *SMALL, *RICH, *schedule)
    kd(*words, "trainer.epochs=4", "hydra.run.dir=whole")
    kd(*words, "trainer.epochs=2", "hydra.run.dir=run")
    before = files(Path("run"))
    assert kd("resume", "run", "trainer.epochs=4", "--json").json["epochs"] == 4
    assert_same(Path("run-4-epochs"), Path("whole"))
    assert files(Path("run")) == before  # what is finished stays as it is
    extended = kd("show", "run-4-epochs", "--json").json["provenance"]["extended"]
    assert (Path(extended["run"]).name, extended["epochs"]) == ("run", 2)
    assert "complete already" in kd("resume", "run", "trainer.epochs=4").out


def test_an_extended_student_keeps_its_teacher_and_loss(kd: Kd) -> None:
    kd("train-teacher", *SMALL, "hydra.run.dir=first")
    words = ("distill", *SMALL, "loss=crd", "distill_trainer.epochs=1")
    kd(*words[:-1], "trainer.epochs=3", "teacher.checkpoint=first", "hydra.run.dir=whole")
    kd(*words, "outputs=.", "hydra.run.dir=run")
    kd("train-teacher", *SMALL, "seed=1", "hydra.run.dir=newer")
    kd("resume", "run", "trainer.epochs=3")
    assert_same(Path("run-3-epochs"), Path("whole"))


def test_an_extension_that_was_stopped_goes_on_with_the_same_command(kd: Kd) -> None:
    words = ("train-baseline", *SMALL)
    kd(*words, "trainer.epochs=4", "hydra.run.dir=whole")
    kd(*words, "hydra.run.dir=run")
    kd("resume", "run", "trainer.epochs=4")
    folder = Path("run-4-epochs")
    for name in ("result.json", "metrics.jsonl", "metrics.csv", "predictions.safetensors"):
        (folder / name).unlink()
    kd("resume", "run", "trainer.epochs=4")
    assert_same(folder, Path("whole"))
    (folder / "result.json").unlink()
    kd("resume", str(folder))
    assert_same(folder, Path("whole"))


@pytest.mark.parametrize(
    ("words", "typed", "reason"),
    [
        (
            ("trainer.schedule=cosine",),
            "trainer.epochs=4",
            "trainer.schedule=cosine spreads the learning rate over all",
        ),
        (("trainer.schedule=onecycle",), "trainer.epochs=4", "trainer.schedule=onecycle spreads"),
        (("trainer.swa_epochs=1",), "trainer.epochs=4", "trainer.swa_epochs=1 has averaged"),
        ((), "trainer.epochs=1", "it was to have 2, and fewer are another training"),
        ((), "trainer.epochs=2", "it was to have 2"),
        (
            ("trainer.early_stopping=1", "trainer.lr=1e-9", "trainer.epochs=9"),
            "trainer.epochs=20",
            "early_stopping=1 ended",
        ),
    ],
)
def test_where_it_would_be_another_training_it_is_refused_with_the_line_that_is_one(
    kd: Kd, words: tuple[str, ...], typed: str, reason: str
) -> None:
    kd("train-baseline", *SMALL, *words, "hydra.run.dir=run")
    message = kd("resume", "run", typed, code=2).message
    assert reason in message
    assert message.count("kd train-baseline dataset=synthetic") == 1
    assert f"{typed} ╰" in message
    assert sorted(path.name for path in Path().iterdir() if path.is_dir() and path.name.startswith("run")) == ["run"]


def test_a_preset_that_makes_more_of_the_number_of_epochs_is_another_training(kd: Kd, tmp_path: Path) -> None:
    (tmp_path / "mine/experiment").mkdir(parents=True)
    preset = "# @package _global_\ntrainer:\n  eval_batch_size: ${trainer.epochs}\n"
    (tmp_path / "mine/experiment/tied.yaml").write_text(preset)
    folder = ("--config-dir", str(tmp_path / "mine"))
    kd("train-baseline", *folder, *SMALL, "experiment=tied", "hydra.run.dir=run")
    message = kd("resume", "run", "trainer.epochs=4", *folder, code=2).message
    assert "eval_batch_size" in message
    assert "would be another, too" in message


def test_what_is_no_number_a_comparison_or_unfinished_is_refused(kd: Kd, comparison: Path) -> None:
    kd("train-baseline", *SMALL, "hydra.run.dir=run")
    assert "type a whole number" in kd("resume", "run", "trainer.epochs=ten", code=2).message
    assert "was made without it" in kd("resume", "run", "trainer.lr=1", code=2).message
    Path("run/result.json").unlink()
    assert "is not finished; type kd resume" in kd("resume", "run", "trainer.epochs=9", code=2).message
    assert "is a comparison" in kd("resume", str(comparison), "trainer.epochs=9", code=2).message


def test_a_damaged_checkpoint_is_named_and_the_finished_run_untouched(kd: Kd) -> None:
    kd("train-baseline", *SMALL, "hydra.run.dir=run")
    file = next(Path("run/checkpoints").glob("epoch-0002/training.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    before = files(Path("run"))
    assert "is damaged" in kd("resume", "run", "trainer.epochs=4", code=3).message
    assert files(Path("run")) == before
