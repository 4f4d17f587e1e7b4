"""The commands, end to end on small data: results, folders, hand-over, resuming."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from kd_cli.runs.folder import RunDir
from kd_cli.runs.predictions import read_predictions
from tests.conftest import HERE, SMALL, started, wait_for

TEACHER = "teacher.hidden=[32]"


def weights(run: str | Path, epoch: int = 2) -> dict[str, torch.Tensor]:
    return load_file(Path(run) / "checkpoints" / f"epoch-{epoch:04d}" / "model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_run_compares_three_networks_and_its_json_is_what_the_screen_says(kd) -> None:
    shown = kd("run", *SMALL, TEACHER, "hydra.run.dir=there")
    result = kd("run", *SMALL, TEACHER, "hydra.run.dir=there", "--json").json  # complete: nothing is trained again
    assert set(result) >= {"run", "seconds", "teacher", "baseline", "distilled", "gain"}
    for stage in ("teacher", "baseline", "distilled"):
        record = result[stage]
        wanted = {"run", "test_top1", "test_top1_last", "val_top1", "best_epoch", "epochs", "parameters"}
        assert set(record) >= wanted
        line = next(line for line in shown.out.splitlines() if f"{record['parameters']:,}" in line and stage in line)
        assert f"{record['test_top1']:.2f}" in line
        assert f"{record['val_top1']:.2f}" in line
        assert json.loads((Path(record["run"]) / "result.json").read_text()) == record
    assert result["gain"] == pytest.approx(
        result["distilled"]["test_top1"] - result["baseline"]["test_top1"], abs=0.005
    )


def test_plain_output_is_one_line_per_epoch_without_escape_codes(kd) -> None:
    shown = kd("run", *SMALL)
    assert "\x1b" not in shown.out + shown.err
    assert sum(line.startswith("baseline   epoch") for line in shown.out.splitlines()) == 2


def test_json_is_all_there_is_on_standard_output(kd) -> None:
    assert kd("train-teacher", *SMALL, "--json").json["stage"] == "teacher"


def test_the_best_epoch_is_chosen_on_validation_and_the_test_set_has_no_say(kd) -> None:
    result = kd("train-baseline", *SMALL, "trainer.epochs=6", "trainer.lr=0.02", "--json").json
    rows = [json.loads(line) for line in (Path(result["run"]) / "metrics.jsonl").read_text().splitlines()]
    best = max(rows, key=lambda row: (row["val_top1"], -row["val_loss"]))
    assert result["best_epoch"] == best["epoch"]
    assert result["val_top1"] == best["val_top1"]
    assert not any("test" in name for row in rows for name in row)


def test_the_answers_to_the_test_images_are_kept_as_the_chosen_epoch_gave_them(comparison) -> None:
    for stage in ("teacher", "baseline", "distilled"):
        result = json.loads((comparison / stage / "result.json").read_text())
        logits, labels = read_predictions(comparison / stage, weights=result["weights_sha256"]["best"])
        assert 100 * (logits.argmax(dim=1) == labels).double().mean() == pytest.approx(result["test_top1"], abs=0.005)
        assert len(labels) == result["images"]["test"]
    assert read_predictions(comparison, weights=None) is None


def test_without_validation_the_last_epoch_counts(kd) -> None:
    result = kd("train-baseline", *SMALL, "dataset.val_fraction=0", "--json").json
    assert result["val_top1"] is None
    assert result["best_epoch"] == result["epochs"] == 2
    assert result["test_top1"] == result["test_top1_last"]


def test_distill_takes_the_newest_teacher_that_fits_and_says_so(kd) -> None:
    kd("train-teacher", *SMALL, TEACHER, "seed=1")
    newest = kd("train-teacher", *SMALL, TEACHER, "seed=2", "--json").json
    kd("train-teacher", *SMALL, "teacher.hidden=[16]")  # newer still, but another network
    kd("train-teacher", *SMALL, TEACHER, "dataset.seed=5")  # and other data
    shown = kd("distill", *SMALL, TEACHER)
    line = next(line for line in shown.out.splitlines() if line.startswith("teacher "))
    assert Path(newest["run"]).name in line
    assert f"{newest['val_top1']:.2f} % on validation" in line


def test_distill_is_the_same_whether_the_teacher_is_found_or_named(kd, teacher) -> None:
    file = Path(teacher["run"]) / "checkpoints" / f"epoch-{teacher['best_epoch']:04d}" / "model.safetensors"
    runs = [kd("distill", *SMALL, *named, "--json").json for named in ([], [f"teacher.checkpoint={teacher['run']}"])]
    runs.append(kd("distill", *SMALL, f"teacher.checkpoint={file}", "--json").json)
    assert same(weights(runs[0]["run"]), weights(runs[1]["run"]))
    assert same(weights(runs[0]["run"]), weights(runs[2]["run"]))


def test_a_bare_weights_file_is_taken_with_a_notice(kd, teacher) -> None:
    save_file(weights(teacher["run"], teacher["best_epoch"]), "weights.safetensors")
    assert "cannot be checked" in kd("distill", *SMALL, "teacher.checkpoint=weights.safetensors").err


def test_a_teacher_whose_weights_are_damaged_is_refused(kd, teacher) -> None:
    file = Path(teacher["run"]) / "checkpoints" / f"epoch-{teacher['best_epoch']:04d}" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert "SHA-256" in kd("distill", *SMALL, code=3).message


def test_a_teacher_whose_checkpoint_was_exchanged_is_refused(kd, teacher) -> None:
    record = Path(teacher["run"]) / "result.json"
    teacher["weights_sha256"]["best"] = "0" * 64
    record.write_text(json.dumps(teacher))
    assert "not what its record says" in kd("distill", *SMALL, code=3).message


def test_a_teacher_of_other_classes_is_refused(kd, teacher) -> None:
    failed = kd("distill", *SMALL, "dataset.num_classes=5", f"teacher.checkpoint={teacher['run']}", code=3)
    assert "knows 10 classes" in failed.message


def test_a_teacher_of_another_architecture_is_refused(kd, teacher) -> None:
    failed = kd("distill", *SMALL, TEACHER, f"teacher.checkpoint={teacher['run']}", code=2)
    assert "kd show" in failed.message


def test_a_teacher_that_was_trained_on_images_of_another_normalisation_is_refused(kd, teacher) -> None:
    failed = kd("distill", *SMALL, "dataset.mean=[3.0]", f"teacher.checkpoint={teacher['run']}", code=3)
    assert "type dataset.mean=[0.5,0.5,0.5] dataset.std=[0.25,0.25,0.25]" in failed.message


def test_weight_zero_is_the_baseline_bit_for_bit(kd) -> None:
    baseline = kd("train-baseline", *SMALL, "--json").json
    distilled = kd("distill", *SMALL, "loss.weight=0", "loss.ce_weight=1", "--json").json
    assert same(weights(baseline["run"]), weights(distilled["run"]))


def test_a_method_without_a_teacher_needs_none(kd) -> None:
    assert kd("distill", *SMALL, "loss=label_smoothing", "--json").json["stage"] == "distilled"


@pytest.mark.slow
def test_a_killed_comparison_goes_on_and_ends_with_the_same_bits(kd) -> None:
    command = ["run", *SMALL, "trainer.epochs=20", "dataset.augment=flip"]
    with started(*command, "hydra.run.dir=killed", stdout=subprocess.DEVNULL) as process:
        wait_for(process, "killed/baseline/checkpoints/epoch-*")
    assert not Path("killed/result.json").exists()
    assert kd("list", "runs", "--outputs", ".", "--json").json["runs"][-1]["status"] == "interrupted"
    shutil.copytree("killed", "again")
    whole = kd(*command, "hydra.run.dir=whole", "--json").json
    for folder, words in (("killed", ["resume", "killed"]), ("again", [*command, "hydra.run.dir=again"])):
        resumed = kd(*words, "--json").json
        for stage in ("teacher", "baseline", "distilled"):
            assert same(weights(f"{folder}/{stage}", 20), weights(f"whole/{stage}", 20))
            assert resumed[stage]["test_top1"] == whole[stage]["test_top1"]
        assert len(Path(folder, "baseline/metrics.jsonl").read_text().splitlines()) == 20


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_how_to_go_on(kd, number: signal.Signals, code: int) -> None:
    command = ["train-baseline", *SMALL, "trainer.epochs=2000", "hydra.run.dir=stopped"]
    with started(*command, stderr=subprocess.PIPE) as process:
        wait_for(process, "stopped/metrics.jsonl")
        process.send_signal(number)
        _, printed = process.communicate(timeout=60)
    assert process.returncode == code
    assert "kd resume" in printed
    assert "Traceback" not in printed
    assert json.loads(Path("stopped/run.json").read_text())["status"] == "interrupted"


def test_a_resumed_student_keeps_its_teacher(kd) -> None:
    kd("train-teacher", *SMALL, "seed=1")
    whole = kd("distill", *SMALL, "hydra.run.dir=whole", "--json").json
    Path("whole/result.json").unlink()
    shutil.rmtree("whole/checkpoints/epoch-0002")
    newer = kd("train-teacher", *SMALL, "seed=2", "--json").json
    resumed = kd("resume", "whole", "--json").json
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    assert newer["run"] not in json.loads(Path("whole/run.json").read_text())["teacher"]["sources"]


def test_a_folder_in_which_another_run_is_at_work_is_refused(kd) -> None:
    with RunDir.open(Path("outputs/now"), {}, {}, exact=True):
        refused = kd("train-baseline", *SMALL, "hydra.run.dir=outputs/now", code=2)
    assert f"in use by process {os.getpid()} on" in refused.message
    assert [path.name for path in Path("outputs").iterdir()] == ["now"]
    assert not Path("outputs/now/metrics.jsonl").exists()


def test_a_folder_of_another_configuration_is_refused(kd) -> None:
    kd("train-baseline", *SMALL, "hydra.run.dir=mine")
    failed = kd("train-baseline", *SMALL, "seed=3", "hydra.run.dir=mine", code=2)
    assert "seed: 0 there, 3 here" in failed.message


@pytest.mark.parametrize(
    ("typed", "size"),
    [
        ((), 64),
        (("trainer.batch_size=16",), 16),
        (("trainer.batch_size=16", "teacher_trainer.batch_size=8"), 8),
        (("trainer=cifar240", "trainer.batch_size=32"), 32),
        (("trainer=default",), 64),
    ],
)
def test_a_preset_loses_to_the_command_line_also_where_it_sets_one_stage(kd, typed: tuple[str, ...], size: int) -> None:
    shown = kd("train-teacher", "experiment=mnist_cnn", *typed, "--cfg", "job", "--resolve").out
    assert yaml.safe_load(shown)["teacher_trainer"]["batch_size"] == size


def test_the_recorded_configuration_is_what_ran(kd) -> None:
    Path("mine/experiment").mkdir(parents=True)
    Path("mine/experiment/long.yaml").write_text("# @package _global_\nbaseline_trainer:\n  epochs: 50\n")
    run = Path(kd("train-baseline", *SMALL, "--config-dir", "mine", "experiment=long", "--json").json["run"])
    assert yaml.safe_load((run / "config.yaml").read_text())["baseline_trainer"]["epochs"] == 2
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    assert "epochs=${" not in (run / "run.json").read_text()  # what is typed again is what was typed


def test_evaluate_repeats_the_recorded_accuracy_and_takes_other_data(kd, comparison: Path) -> None:
    result = json.loads((comparison / "result.json").read_text())
    rows = kd("evaluate", result["run"], "--json").json["evaluations"]
    assert [row["top1"] for row in rows] == [
        result[stage]["test_top1"] for stage in ("teacher", "baseline", "distilled")
    ]
    run = result["baseline"]["run"]
    assert (
        kd("evaluate", run, "--part", "val", "--json").json["evaluations"][0]["top1"] == result["baseline"]["val_top1"]
    )
    last = kd("evaluate", run, "--which", "last", "--json").json["evaluations"][0]
    assert last["top1"] == result["baseline"]["test_top1_last"]
    one = f"{run}/checkpoints/epoch-0002"
    assert "is one checkpoint; leave it out" in kd("evaluate", one, "--which", "best", code=2).message
    other = kd("evaluate", run, "dataset.seed=7", "--json").json["evaluations"][0]
    assert other["images"] == 100
    assert "unknown to it: pattern 10, pattern 11" in kd("evaluate", run, "dataset.num_classes=12", code=3).message
    assert "does not fit this network" in kd("evaluate", run, "student.hidden=[9]", code=3).message
    assert "there is no run r9/seed=1" in kd("evaluate", "r9/seed=1", code=2).message


def test_show_and_list_tell_what_was_run(kd) -> None:
    run = kd("train-teacher", *SMALL, "--json").json["run"]
    shown = kd("show", run).out
    assert "made by: kd train-teacher dataset=synthetic" in shown
    assert "trainer.epochs" in shown
    record = kd("show", run, "--json").json
    assert record["provenance"]["status"] == "completed"
    assert (record["provenance"]["precision"], record["provenance"]["deterministic"]) == ("fp32", True)
    assert record["provenance"]["packages"]["torch"] == torch.__version__.partition("+")[0] or "+" in torch.__version__
    assert len(record["metrics"]) == 2
    assert kd("list", "runs", "--json").json["runs"][0]["run"] == os.path.relpath(run)


def test_a_record_never_makes_kd_import_code(kd) -> None:
    external = ("student=external", "student.callable=torchvision.models.mnasnet0_5")
    named = [word for word in SMALL if not word.startswith("student")]
    run = kd("train-baseline", *named, *external, "trainer.limit_train_batches=1", "trainer.epochs=1", "--json").json[
        "run"
    ]
    assert "never imports code because a record names it" in kd("evaluate", run, code=2).message
    trusted = kd("evaluate", run, *external, "--json").json["evaluations"][0]
    assert trusted["images"] == 100


def test_an_override_without_effect_is_noticed(kd) -> None:
    assert "student.hidden has no effect on kd train-teacher" in kd("train-teacher", *SMALL).err


def test_recipes_that_differ_between_baseline_and_student_are_named(kd) -> None:
    shown = kd("run", *SMALL, "distill_trainer.epochs=1", "hydra.run.dir=here")
    assert "epochs is 2 for the baseline, 1 for the student" in shown.err
    assert kd("run", *SMALL, "distill_trainer.epochs=1", "hydra.run.dir=here", "--json").json["recipe_differences"] == {
        "epochs": [2, 1]
    }


def test_early_stopping_ends_a_run_that_no_longer_improves(kd) -> None:
    result = kd(
        "train-baseline", *SMALL, "trainer.epochs=200", "trainer.lr=0.02", "trainer.early_stopping=2", "--json"
    ).json
    assert result["epochs"] == result["best_epoch"] + 2 < 200
    failed = kd("train-baseline", *SMALL, "trainer.early_stopping=2", "dataset.val_fraction=0", code=2)
    assert "dataset.val_fraction" in failed.message


@pytest.mark.parametrize("option", ["trainer.ema_decay=0.9", "trainer.precision=bf16", "trainer.accumulate=2"])
def test_the_trainers_options_reach_a_run(kd, option: str) -> None:
    plain = kd("train-baseline", *SMALL, "--json").json
    changed = kd("train-baseline", *SMALL, option, "--json").json
    assert not same(weights(plain["run"]), weights(changed["run"]))
    evaluated = kd("evaluate", changed["run"], "--json").json["evaluations"][0]
    assert evaluated["top1"] == pytest.approx(changed["test_top1"], abs=1)  # bf16 is evaluated in fp32


def test_a_given_teacher_is_in_the_comparison(kd, trained: Path) -> None:
    result = kd("run", *SMALL, f"teacher.checkpoint={trained}", "--json").json
    assert result["teacher"] == json.loads((trained / "result.json").read_text())
    assert not (Path(result["run"]) / "teacher").exists()


def test_a_damaged_best_checkpoint_means_a_new_start_and_the_same_end(kd) -> None:
    command = ["train-baseline", *SMALL, "trainer.epochs=8", "trainer.lr=0.05", "hydra.run.dir=here"]
    whole = kd(*command, "--json").json
    assert whole["best_epoch"] < 7  # else the damaged one would be passed over anyway
    Path("here/result.json").unlink()
    Path(f"here/checkpoints/epoch-{whole['best_epoch']:04d}/state.json").write_text("{}")
    again = kd(*command, "--json")
    assert "training begins again" in again.err
    assert again.json["weights_sha256"] == whole["weights_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_sweep_stops_and_says_what_is_done(number: signal.Signals, code: int) -> None:
    command = [
        "train-baseline",
        "-m",
        HERE,
        *SMALL,
        "trainer.epochs=2000",
        "seed=0,1",
        "hydra.sweep.dir=swept",
        "--json",
    ]
    with started(*command, stdout=subprocess.PIPE) as process:
        wait_for(process, "swept/seed=0/metrics.jsonl")
        process.send_signal(number)
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert [point["status"] for point in json.loads(printed)["points"]] == ["interrupted", "not started"]
    assert not Path("swept/seed=1/run.json").exists()


def test_a_run_can_be_resumed_from_anywhere(kd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kd("train-teacher", *SMALL, "hydra.run.dir=t 1")
    whole = kd("distill", *SMALL, "teacher.checkpoint='t 1'", "hydra.run.dir='a b=1'", "--json").json
    Path("a b=1/result.json").unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert kd("resume", "../a b=1", "--json").json["weights_sha256"] == whole["weights_sha256"]
