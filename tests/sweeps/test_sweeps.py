"""A sweep's folder: the same for the same sweep, a record of its points, and each training once."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from kd_cli import console
from kd_cli.sweeps.summary import summarize
from tests.conftest import HERE, SMALL

RUN = ("run", "-m", HERE, *SMALL, "trainer.epochs=1", "teacher.hidden=[32]")


def only_sweep(command: str = "run") -> Path:
    (folder,) = Path("outputs", "sweeps", command).iterdir()
    return folder


def weights(run: Path) -> bytes:
    (epoch,) = (run / "checkpoints").glob("epoch-*")
    return (epoch / "model.safetensors").read_bytes()


def test_equal_teachers_and_baselines_of_a_sweep_are_trained_once_and_are_what_each_point_alone_trains(kd) -> None:
    kd(*RUN, "loss.temperature=1,4", "seed=1", "hydra.sweep.dir=swept")
    parts = sorted(path.name.partition("-")[0] for path in Path("swept/parts").iterdir())
    assert parts == ["baseline", "teacher"]
    kd("run", *RUN[3:], "loss.temperature=4", "seed=1", "hydra.run.dir=alone")
    for stage in ("teacher", "baseline", "distilled"):
        assert weights(Path("swept", "loss.temperature=4", stage)) == weights(Path("alone", stage))


def test_points_share_what_is_equal_and_know_their_own_teacher_also_when_the_sweep_was_moved(kd) -> None:
    kd(*RUN, "teacher_trainer.epochs=1,2", "hydra.sweep.dir=swept")
    parts = sorted(path.name.partition("-")[0] for path in Path("swept/parts").iterdir())
    assert parts == ["baseline", "teacher", "teacher"]
    Path("swept").rename("moved")
    points = [f"moved/teacher_trainer.epochs={epochs}/baseline" for epochs in (1, 2)]
    one, other = kd("evaluate", *points, "--json").json["evaluations"]
    assert one["top1"] == other["top1"]
    assert one["kl"] != other["kl"]  # each from the teacher of its own point


def test_points_at_the_same_time_wait_for_the_training_that_they_share(kd) -> None:
    points = kd(
        *(word for word in RUN if word != HERE), "loss.temperature=1,4", "hydra.launcher.n_jobs=2", "--json"
    ).json["points"]
    assert [point["status"] for point in points] == ["completed", "completed"]
    assert points[0]["teacher"] == points[1]["teacher"] | {"run": points[0]["teacher"]["run"]}
    assert len(list((only_sweep() / "parts").iterdir())) == 2


def test_the_same_sweep_goes_on_in_the_same_folder_also_with_more_values(kd) -> None:
    baseline = ("train-baseline", *RUN[1:])
    first = kd(*baseline, "seed=0,1", "student.hidden=[8]")
    assert "holds this sweep" not in first.out
    again = kd(*baseline, "student.hidden=[8]", "seed=1,2", "logger=none")
    assert "holds this sweep" in again.out
    assert again.out.count("is complete already") == 1
    record = json.loads((only_sweep("train-baseline") / "sweep.json").read_text())
    assert record["keys"] == ["seed"]
    assert ["seed=0,1" in start["arguments"] for start in record["starts"]] == [True, False]
    assert [(point["folder"], point["status"]) for point in record["points"]] == [
        (f"seed={seed}", "completed") for seed in (0, 1, 2)
    ]
    kd(*baseline, "seed=1,2", "student.hidden=[4]")
    assert len(list(Path("outputs/sweeps/train-baseline").iterdir())) == 2  # something else is fixed: another sweep


def test_a_sweep_that_holds_other_runs_says_what_differs_and_which_folder_to_choose(kd) -> None:
    baseline = ("train-baseline", *RUN[1:], "seed=0,1", "hydra.sweep.dir=swept")
    kd(*baseline)
    refused = kd(*baseline, "trainer.lr=0.5", code=1)
    assert "trainer.lr: 0.001 there, 0.5 here" in refused.message
    record = json.loads(Path("swept/sweep.json").read_text())
    assert [point["status"] for point in record["points"]] == ["failed", "failed"]


@pytest.mark.parametrize("typed", ["seed=0,0", "seed=choice(0,+0,0)", "seed=sort(0,0)", "params"])
def test_a_repeated_point_is_one_point_and_is_told(kd, typed: str) -> None:
    if typed == "params":
        Path("mine/experiment").mkdir(parents=True)
        text = "# @package _global_\nhydra: {sweeper: {params: {seed: '0,0'}}}\n"
        Path("mine/experiment/twice.yaml").write_text(text)
    words = ("--config-dir", "mine", "experiment=twice") if typed == "params" else (typed,)
    swept = kd("train-baseline", *RUN[1:2], *SMALL, "trainer.epochs=1", *words, "--json")
    assert [(point["point"], point["status"]) for point in swept.json["points"]] == [("seed=0", "completed")]
    assert "seed: 0 stands there more than once; it is one point" in swept.message
    assert swept.message.count("it is one point") == 1


def test_repeated_points_of_a_group_with_a_choice_that_is_not_there_are_one_and_one_failure(kd) -> None:
    words = ("train-baseline", "-m", HERE, *SMALL, "trainer.epochs=1", "student=mlp,mpl,mlp,mpl", "--json")
    points = kd(*words, code=1).json["points"]
    assert [(point["point"], point["status"]) for point in points] == [
        ("student=mpl", "failed"),
        ("student=mlp", "completed"),
    ]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("seed=range(0,2),5", "seed=range(0,2),5 gives no values"),
        ("seed=range(0,2,0)", "type seed=1,2,3 or 'seed=range(1,4)'"),
        ("seed=range(2,2)", "seed=range(2,2) gives no values"),
        ("trainer.lr=interval(0.1,1)", "trainer.lr=interval(0.1,1): a grid cannot try all numbers of an interval"),
    ],
)
def test_a_sweep_over_no_values_is_refused_with_its_word(kd, typed: str, said: str) -> None:
    assert said in kd("train-baseline", "-m", HERE, *SMALL, typed, code=2).message
    assert not list(Path().rglob("run.json"))


def test_a_preset_says_what_to_sweep_over_and_what_is_typed_wins(kd) -> None:
    preset = Path("mine/experiment/short.yaml")
    preset.parent.mkdir(parents=True)
    preset.write_text(
        "# @package _global_\nhydra:\n  sweeper:\n    params:\n      loss.temperature: 1,4\n      seed: 0,1\n"
    )
    points = kd(*RUN, "--config-dir", "mine", "experiment=short", "seed=2", "--json").json["points"]
    assert [point["point"] for point in points] == ["loss.temperature=1", "loss.temperature=4"]
    assert {point["seed"] for point in points} == {2}
    assert only_sweep().name.startswith("loss.temperature-")


def test_a_point_is_compared_with_the_baseline_of_its_own_network(capsys) -> None:
    points = [
        {
            "point": f"student={student} loss.weight={weight} seed={seed}",
            "status": "completed",
            "seed": seed,
            "weight": weight,
            "test_top1": top1 + weight + 0.1 * seed * weight,
        }
        for student, top1 in (("large", 90.0), ("small", 50.0))
        for weight in (0, 1)
        for seed in (0, 1)
    ]
    console.setup(as_json=False)
    summarize(points, None)
    shown = capsys.readouterr().out
    assert shown.count("+1.05 ± 0.64") == 2
    assert "40" not in shown


def test_what_learned_from_other_images_is_no_part_of_a_point(kd) -> None:
    kd(*RUN, "loss.temperature=1,2", "hydra.sweep.dir=swept")
    (teacher,) = Path("swept/parts").glob("teacher-*/run.json")
    record = json.loads(teacher.read_text())
    teacher.write_text(json.dumps(record | {"data": record["data"] | {"fingerprint": "of other images"}}))
    refused = kd(*RUN, "loss.temperature=4,8", "hydra.sweep.dir=swept", code=1)
    assert refused.out.count("the images of synthetic have changed since") >= 2


def test_a_sweep_that_goes_on_with_other_code_says_so(kd, tmp_path: Path) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e", *words], check=True, capture_output=True)

    git("init")
    Path("code.py").write_text("first = 1\n")
    git("add", "code.py")
    git("commit", "-m", "first")
    baseline = ("train-baseline", *RUN[1:], "seed=0", "hydra.sweep.dir=swept")
    assert "results may differ" not in kd(*baseline).err
    for text in ("second = 2\n", "third = 3\n"):
        Path("code.py").write_text(text)
        assert "uncommitted changes" in kd(*baseline).err
