"""kd evaluate, end to end: scores, teachers that are there, moved, changed or gone, and corrupted images."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kd_cli.cli import main
from kd_cli.data import corruptions as corrupt
from kd_cli.errors import ConfigError
from kd_cli.metrics.evaluate import predict
from kd_cli.metrics.scores import AGREEMENT, agreement, judge, only_answer
from kd_cli.saved.network import Saved
from tests.conftest import SMALL
from tests.support.small import CPU

RUN = (*SMALL, "teacher.hidden=[16]", "trainer.epochs=1", "hydra.run.dir=there")
SCORES = {"top1", "top5", "nll", "brier", "ece", "mce", *AGREEMENT}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that no test changes."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("KD_CACHE", str(folder / "cache"))
        patch.setattr(sys, "argv", ["kd", "run", *RUN])
        with pytest.raises(SystemExit, match="0"):
            main()
    return folder / "there"


def evaluated(kd, *words: str) -> list[dict]:
    return kd("evaluate", *words, "--json").json["evaluations"]


def test_several_networks_make_one_table_and_agree_with_the_teacher_of_their_comparison(kd, made: Path) -> None:
    shown = kd("evaluate", str(made), "--per-class", "--confusion")
    rows = evaluated(kd, str(made))
    said = {name: predict(*opened(made / name), **TEST) for name in ("teacher", "baseline", "distilled")}
    for row in rows:
        logits, labels = said[row["stage"]]
        assert judge(logits, labels).items() <= row.items()
        known = agreement(logits, said["teacher"][0], labels)
        assert {key: row[key] for key in known} == (known if row["stage"] != "teacher" else dict.fromkeys(AGREEMENT))
        line = next(line for line in shown.out.splitlines() if line.rstrip().endswith(row["run"]))
        assert f"{row['top1']:.2f}" in line
        assert f"{row['brier']:.4f}" in line
        assert f"{row['ece']:.2f}" in line
        counts = np.array(row["confusion"])
        assert counts.sum() == row["images"] == 100
        assert [each["images"] for each in row["per_class"]] == counts.sum(axis=1).tolist()
        assert counts.trace() == pytest.approx(row["top1"])
    assert "pattern 9" in shown.out
    assert f"Confusion of {made}/distilled" in shown.out


def test_a_network_of_timm_is_had_again_by_what_the_message_says(kd) -> None:
    pytest.importorskip("timm")
    words = ("teacher=external", "teacher.callable=timm.create_model")
    chosen = (*words, "teacher.kwargs.model_name=test_resnet.r160_in1k", "teacher.kwargs.drop_rate=0.1")
    short = ("trainer.epochs=1", "dataset.channels=3", "dataset.image_size=32")
    kd("train-teacher", *SMALL[:3], *short, *chosen, "hydra.run.dir=taught")
    kd("distill", *SMALL, *short, *chosen, "teacher.checkpoint=taught", "hydra.run.dir=there")
    with pytest.raises(ConfigError, match=re.escape(f"type {' '.join(chosen)}")):
        opened("taught")
    first, second = evaluated(kd, "taught", "there", *chosen)
    assert first["top1"] is not None
    assert second["agreement"] is not None


TEST = {"part": "test", "batch_size": 500, "device": CPU}


def opened(path: str | Path) -> tuple:
    saved = Saved(Path(path))
    return saved.network(CPU), saved.data()


def test_a_comparison_that_was_moved_still_finds_its_teacher_and_a_changed_one_is_not_asked(kd) -> None:
    kd("run", *RUN)
    before = evaluated(kd, "there/distilled")[0]
    Path("there").rename("elsewhere")
    assert evaluated(kd, "elsewhere/distilled")[0]["agreement"] == before["agreement"] is not None
    assert evaluated(kd, "elsewhere/baseline")[0]["kl"] is not None
    replace_weights(Path("elsewhere/teacher"))
    failed = kd("evaluate", "elsewhere/distilled", "--json")
    assert failed.json["evaluations"][0]["agreement"] is None
    assert "no agreement with its teacher" in failed.message
    assert "has changed since it taught" in failed.message
    shutil.rmtree("elsewhere/teacher")
    gone = kd("evaluate", "elsewhere/distilled", "--json")
    assert gone.json["evaluations"][0]["top1"] == before["top1"]
    assert gone.json["evaluations"][0]["kl"] is None
    assert "no agreement with its teacher" in gone.message


def replace_weights(run: Path) -> None:
    """Other weights with records that speak of them: only the student's record knows the old ones."""
    from kd_cli.storage.files import file_digest

    checkpoint = next((run / "checkpoints").iterdir())
    weights, old = checkpoint / "model.safetensors", file_digest(checkpoint / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights)
    new = file_digest(weights)
    for record in (checkpoint / "manifest.json", run / "result.json"):
        record.write_text(record.read_text().replace(old, new))


def test_a_network_without_a_teacher_has_no_such_columns(kd) -> None:
    run = kd("train-baseline", *SMALL, "trainer.epochs=1", "--json").json["run"]
    assert "agreement " not in kd("evaluate", run).out.splitlines()[2]
    (row,) = evaluated(kd, run)
    assert row["teacher"] is None
    assert row["kl"] is None


def test_an_ensemble_of_teachers_is_asked_as_one(kd) -> None:
    kd("run", *RUN, "ensemble.size=2", "ensemble.weights=[3,1]")
    (row,) = evaluated(kd, "there/distilled")
    assert len(row["teacher"]) == 2
    said = [predict(*opened(f"there/{name}"), **TEST) for name in ("distilled", "teacher", "teacher-2")]
    logits = [each for each, _ in said]
    known = agreement(logits[0], 0.75 * logits[1] + 0.25 * logits[2], said[0][1])
    assert row["agreement"] == known["agreement"]
    assert row["kl"] == pytest.approx(known["kl"], abs=1e-5)


def test_corrupted_images_have_all_scores_and_their_means(kd, made: Path) -> None:
    first = evaluated(kd, f"{made}/baseline", f"{made}/distilled", "--corruptions")
    for row in first:
        found = row["corrupted"]
        assert list(found["corruptions"]) == list(corrupt.NAMES)
        tops = [[each["top1"] for each in part["severities"]] for part in found["corruptions"].values()]
        assert np.shape(tops) == (4, 5)
        assert [part["top1"] for part in found["corruptions"].values()] == pytest.approx(np.mean(tops, 1), abs=0.006)
        assert found["top1"] == pytest.approx(np.mean(tops), abs=0.006)
        assert set(found["corruptions"]["contrast"]["severities"][2]) >= SCORES | {"severity"}
    network, data = opened(made / "distilled")
    corrupted = data.seen_through(corrupt.corruption("gaussian_noise", 5, 0))
    logits, labels = predict(network, corrupted, "test", batch_size=33, device=CPU)
    teacher, _ = predict(opened(made / "teacher")[0], corrupted, "test", batch_size=33, device=CPU)
    expected = judge(logits, labels) | agreement(logits, teacher, labels)
    assert expected.items() <= first[1]["corrupted"]["corruptions"]["gaussian_noise"]["severities"][4].items()
    other = evaluated(kd, f"{made}/distilled", "--corruptions", "--seed", "1")[0]["corrupted"]["corruptions"]
    assert other["gaussian_noise"] != first[1]["corrupted"]["corruptions"]["gaussian_noise"]
    assert other["contrast"] == first[1]["corrupted"]["corruptions"]["contrast"]
    shown = kd("evaluate", f"{made}/distilled", "--corruptions").out
    assert f"{first[1]['corrupted']['top1']:.2f}" in shown
    assert "gaussian_blur" in shown


def test_answers_that_are_not_finite_are_an_error(kd, made: Path) -> None:
    weights = load_file(next((made / "baseline" / "checkpoints").iterdir()) / "model.safetensors")
    save_file({name: torch.full_like(tensor, 1e38) for name, tensor in weights.items()}, "bad.safetensors")
    words = [word for word in SMALL if not word.startswith(("trainer", "teacher"))]
    assert "not all of its logits are finite" in kd("evaluate", "bad.safetensors", *words, code=3).message


CONSTANT = """
import torch


class Constant(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.bias = torch.nn.Parameter(1000.0 * torch.nn.functional.one_hot(torch.tensor(1), num_classes))

    def forward(self, images):
        return self.bias.expand(len(images), -1) + 0 * images.sum()
"""


def test_a_network_that_answers_one_class_for_everything_is_told(kd) -> None:
    Path("constant.py").write_text(CONSTANT)
    words = ["plugins=[constant.py]", "student=external", "student.callable=constant.Constant"]
    trained = kd("train-baseline", *SMALL[:3], *words, "trainer.epochs=1", "hydra.run.dir=run").err
    assert "the baseline network takes all 100 test images for 'pattern 1': it learned nothing" in trained
    assert "takes all 100 images for 'pattern 1': it tells nothing apart" in kd("evaluate", "run", *words).err


def test_of_images_of_one_class_nothing_is_said() -> None:
    logits, labels = torch.tensor([[0.0, 1.0]] * 3), torch.tensor([1, 1, 1])
    assert only_answer(logits, labels, "ab") is None
    assert only_answer(logits, torch.tensor([1, 0, 1]), "ab") == "b"
