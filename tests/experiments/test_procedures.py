"""Ensembles, chains, generations, specialists: more than one teacher, or more than one step, in one command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import SMALL
from tests.support.small import make_data

TEACHER = "teacher.hidden=[32]"
RUN = (*SMALL, TEACHER, "hydra.run.dir=there")


def record(name: str) -> dict:
    return json.loads((Path("there") / name / "run.json").read_text())


def sources(name: str) -> list[str]:
    return [Path(source).name for source in record(name)["teacher"]["sources"]]


def first_weight(run: str) -> torch.Tensor:
    weights = load_file(next((Path("there") / run / "checkpoints").glob("*/model.safetensors")))
    return next(iter(weights.values()))


def test_an_ensemble_of_teachers_with_seeds_of_their_own_teaches_one_student(kd) -> None:
    shown = kd("run", *RUN, "experiment=ensemble")
    for name in ("teacher", "teacher-2", "teacher-3", "baseline", "distilled"):
        assert any(line.split()[:1] == [name] and "%" not in line for line in shown.out.splitlines())
    assert sources("distilled") == ["teacher", "teacher-2", "teacher-3"]
    assert not torch.equal(first_weight("teacher"), first_weight("teacher-2"))
    result = kd("run", *RUN, "experiment=ensemble", "--json").json
    assert {"teacher", "teacher-2", "teacher-3", "baseline", "distilled", "gain"} <= set(result)


def test_finished_teachers_of_any_architecture_make_an_ensemble(kd) -> None:
    one = kd("train-teacher", *SMALL, TEACHER, "hydra.run.dir=one", "--json").json
    other = kd("train-teacher", *SMALL, "teacher=cnn", "hydra.run.dir=other", "--json").json
    both = f"teacher.checkpoint=[{one['run']},{other['run']}]"
    kd("distill", *SMALL, both, "ensemble.weights=[3,1]", "hydra.run.dir=there")
    assert sources(".") == ["one", "other"]
    refused = kd("distill", *SMALL, both, "ensemble.weights=[1,1,1]", code=2)
    assert "ensemble.weights: 3 numbers do not fit 2 teachers" in refused.message


def test_a_resumed_student_keeps_the_teachers_it_had(kd) -> None:
    kd("run", *RUN, "ensemble.size=2")
    whole = first_weight("distilled")
    for name in ("result.json", "distilled/result.json"):
        (Path("there") / name).unlink()
    last = max((Path("there") / "distilled" / "checkpoints").iterdir())
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    kd("resume", "there")
    assert sources("distilled") == ["teacher", "teacher-2"]
    assert torch.equal(first_weight("distilled"), whole)


def test_a_chain_of_assistants_hands_knowledge_down(kd) -> None:
    chain = "assistants=[{name: mlp, hidden: [24]}, {name: mlp, hidden: [16]}]"
    result = kd("run", *RUN, chain, "--json").json
    assert sources("assistant-1") == ["teacher"]
    assert sources("assistant-2") == ["assistant-1"]
    assert sources("distilled") == ["assistant-2"]
    sizes = [result[name]["parameters"] for name in ("teacher", "assistant-1", "assistant-2", "distilled")]
    assert sizes == sorted(sizes, reverse=True)


def test_a_student_with_its_teachers_head_can_teach_in_its_turn_and_be_evaluated(kd) -> None:
    grafting = ("teacher=resnet14", "student=resnet8", "loss=simkd", "trainer.ema_decay=0.9", "trainer.epochs=1")
    small = [word for word in SMALL if not word.startswith(("teacher", "student"))]
    result = kd("run", *small, *grafting, "assistants=[{name: resnet8}]", "hydra.run.dir=there", "--json").json
    assert record("assistant-1")["grafted"]
    assert result["assistant-1"]["parameters"] > result["baseline"]["parameters"]
    for name in ("assistant-1", "distilled"):
        (again,) = kd("evaluate", f"there/{name}", "--json").json["evaluations"]
        assert again["top1"] == result[name]["test_top1"]
        assert again["parameters"] == result[name]["parameters"]


def test_generations_are_the_same_network_taught_by_the_one_before(kd) -> None:
    result = kd("run", *RUN, "experiment=born_again", "teacher=mlp", "teacher.hidden=[8]", "--json").json
    assert sources("generation-1") == ["teacher"]
    assert sources("generation-2") == ["generation-1"]
    assert sources("distilled") == ["generation-2"]
    assert len({result[name]["parameters"] for name in ("teacher", "generation-1", "baseline", "distilled")}) == 1
    assert not torch.equal(first_weight("teacher"), first_weight("baseline"))  # or it would be the baseline once more


def test_specialists_learn_the_classes_that_the_teacher_confuses(kd) -> None:
    shown = kd("run", *RUN, "experiment=specialists", "dataset.noise=3.0")
    groups = [record(f"specialist-{number}")["specialist"] for number in (1, 2)]
    assert [len(group) for group in groups] == [3, 3]
    assert not set(groups[0]) & set(groups[1])
    assert "specialist-1 tells apart" in shown.out
    assert sources("distilled") == ["teacher", "specialist-1", "specialist-2"]
    assert record("specialist-1")["data"]["classes"][-1] == "other"
    result = json.loads(Path("there/result.json").read_text())
    evaluated = kd("evaluate", "there", "--json").json["evaluations"]
    assert [row["top1"] for row in evaluated] == [result[Path(row["run"]).name]["test_top1"] for row in evaluated]
    assert len(evaluated) == 5


def test_narrowed_data_have_the_same_images_and_other_labels() -> None:
    data = make_data()
    narrow = data.narrowed([7, 2])
    options = {"seed": 0, "epoch": 0, "batch_size": 30, "device": torch.device("cpu")}
    for whole, part in zip(data.train_batches(**options), narrow.train_batches(**options), strict=True):
        assert torch.equal(whole.images, part.images)
        expected = [{7: 0, 2: 1}.get(int(label), 2) for label in whole.labels]
        assert part.labels.tolist() == expected
    assert narrow.spec.num_classes == 3
    assert narrow.spec.class_names == (data.spec.class_names[7], data.spec.class_names[2], "other")
    assert narrow.fingerprint not in (data.fingerprint, data.narrowed([2, 7]).fingerprint)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["ensemble.size=0"], "ensemble.size: 0 is not possible"),
        (["generations=0"], "generations: 0 is not possible"),
        (["ensemble.size=2", "specialists.groups=1"], "type ensemble.size=1"),
        (["specialists.groups=4", "specialists.classes=3"], "do not fit 10 classes"),
        (["assistants=[{name: resnet9}]"], "assistants[0]: there is no model 'resnet9'; did you mean"),
        (["assistants=[{name: mlp, hiden: [8]}]"], "assistants[0].hiden: model 'mlp' has no option 'hiden'"),
        (["generations=2", "loss=label_smoothing"], "generations needs a loss that asks a finished teacher"),
        (["ensemble.size=2", "ensemble.weights=[1,2,3]"], "ensemble.weights: 3 numbers do not fit 2 teachers"),
        (["ensemble.size=2", "ensemble.weights=[1,a]"], "ensemble.weights: [1, 'a'] is not possible; type confidence"),
        (["ensemble.size=2", "ensemble.weights=3"], "ensemble.weights: 3 is not possible; type confidence"),
        (["ensemble.weights=confident"], "ensemble.weights: 'confident' is not possible; type confidence"),
        (["ensemble.size=null"], "ensemble.size: None is not a whole number"),
        (["generations=x"], "generations: 'x' is not a whole number"),
        (["assistants=foo"], "assistants: 'foo' is not a list"),
        (["assistants=[foo]"], "assistants[0]: 'foo' does not say which model it is"),
        (["assistants=[{hidden: [8]}]"], "assistants[0]: {'hidden': [8]} does not say which model it is"),
        (["specialists.groups=2", "dataset.val_fraction=0"], "specialists.groups needs validation images"),
        (["teacher.checkpoint=[]"], "teacher.checkpoint: [] names no teacher"),
        (["dataset.val_fraction=0", "distill_trainer.early_stopping=1"], "early_stopping needs validation images"),
        (["distill_trainer.precision=fp16", "device=cpu"], "fp16 needs a CUDA device"),
    ],
)
def test_procedures_that_cannot_be_are_refused(options: list[str], complaint: str, kd) -> None:
    refused = kd("run", *SMALL, *options, code=2)
    assert complaint in refused.message
    assert "epoch" not in refused.out  # nothing was trained


@pytest.mark.parametrize("procedure", [(), ("assistants=[{name: cnn}]",), ("ensemble.size=2",)])
def test_a_loss_that_cannot_work_on_a_pair_is_refused_before_anything_is_trained(
    procedure: tuple[str, ...], kd
) -> None:
    refused = kd("run", *RUN, "teacher=cnn", *procedure, "loss=at", code=2)
    assert "loss=at cannot work on this pair" in refused.message
    assert "epoch" not in refused.out


def test_given_teachers_that_do_not_fit_are_refused_before_anything_is_trained(kd) -> None:
    noisy = (*SMALL, TEACHER, "dataset.noise=3.0")
    kd("run", *noisy, "specialists.groups=1", "hydra.run.dir=there")
    one, plain = "there/specialist-1", "there/teacher"
    for options, code, complaint in (
        ([f"teacher.checkpoint={plain}", "teacher=cnn"], 2, "but teacher is cnn"),
        ([f"teacher.checkpoint={one}"], 2, "specialists need one generalist beside them, and there are 0"),
        ([f"teacher.checkpoint=[{plain},{one},{one}]"], 2, "overlap"),
        ([f"teacher.checkpoint=[{one},{plain}]", "dataset.num_classes=2"], 3, "the data have 2"),
        (["teacher.checkpoint=[there,there]"], 3, "it is a comparison, name one of its runs"),
    ):
        refused = kd("run", *noisy, *options, code=code)
        assert complaint in refused.message
        assert "epoch" not in refused.out


def test_only_the_best_epochs_weights_are_shown_with_their_runs_result(kd) -> None:
    best = kd("train-teacher", *SMALL, TEACHER, "hydra.run.dir=one", "--json").json["best_epoch"]
    for epoch in (1, 2):
        given = f"teacher.checkpoint=one/checkpoints/epoch-000{epoch}"
        assert ("teacher" in kd("run", *SMALL, TEACHER, given, "--json").json) is (epoch == best)


def test_each_part_of_a_procedure_is_resumed_with_the_same_bits(kd) -> None:
    middle = ("assistants=[{name: mlp, hidden: [16]}]", "generations=2")
    kd("run", *RUN, "specialists.groups=1", *middle)
    parts = ("teacher", "specialist-1", "baseline", "assistant-1", "generation-1", "distilled")
    whole = {name: first_weight(name) for name in parts}
    for name in parts:
        for file in (f"{name}/result.json", "result.json"):
            (Path("there") / file).unlink()
        shutil.rmtree(Path("there") / name / "checkpoints" / "epoch-0002")
        assert f"{name} goes on after epoch 1" in " ".join(kd("resume", "there").out.split())
        assert torch.equal(first_weight(name), whole[name])


def test_a_loss_without_a_teacher_trains_none(kd) -> None:
    result = kd("run", *RUN, "loss=label_smoothing", "--json").json
    assert "teacher" not in result
    assert {"baseline", "distilled"} <= set(result)


def test_distill_says_that_procedures_are_for_run(kd) -> None:
    kd("train-teacher", *SMALL, TEACHER)
    shown = kd("distill", *SMALL, TEACHER, "generations=3")
    assert "generations has no effect on kd distill" in shown.err
    assert (
        "trainer" not in shown.err
    )  # `trainer.epochs` has one, and what it sets for the stages is not the user's word
    shown = kd("distill", *SMALL, TEACHER, "experiment=teacher_assistant")
    assert "assistants has no effect on kd distill" in shown.err


def test_options_of_teachers_without_an_effect_are_named(kd) -> None:
    kd("train-teacher", *SMALL, TEACHER, "hydra.run.dir=one")
    given = kd("run", *SMALL, TEACHER, "teacher.checkpoint=one", "loss=dml", "ensemble.weights=confidence")
    assert "teacher.checkpoint has no effect: dml trains a teacher of its own" in given.err
    assert "ensemble.weights has no effect: there is one teacher" in given.err
