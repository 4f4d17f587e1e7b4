"""Controls: what has the distillation's place, so that a gain is one over what is no distillation."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kd_cli.config.controls import CONTROLS, controlled
from kd_cli.errors import ConfigError
from kd_cli.experiments.control import _untrained, other_places, shuffled
from tests.conftest import SMALL
from tests.support.small import SPEC, make_teacher


def compared(kd, control: str, *words: str) -> tuple[dict, dict]:
    """The comparison's result, and the record of its distilled student."""
    folder = f"there-{control}"
    result = kd("run", *SMALL, f"control={control}", *words, f"hydra.run.dir={folder}", "--json").json
    return result, json.loads((Path(folder) / "distilled" / "run.json").read_text())


def test_shuffled_logits_are_the_teachers_at_other_places_and_its_features_stay() -> None:
    teacher = make_teacher().eval()
    images = torch.randn(4, *SPEC.image_shape)
    mixed, again, other = (shuffled(teacher, SPEC.num_classes, seed) for seed in (0, 0, 1))
    places = other_places(SPEC.num_classes, 0)
    torch.testing.assert_close(mixed(images), teacher(images)[:, places])
    assert torch.equal(again(images), mixed(images))
    assert not torch.equal(other(images), mixed(images))


@pytest.mark.parametrize("classes", [2, 3, 10, 101])
def test_no_class_keeps_its_place(classes: int) -> None:
    for seed in range(20):
        places = other_places(classes, seed)
        assert sorted(places.tolist()) == list(range(classes))
        assert (places != torch.arange(classes)).all()


def test_a_teacher_without_a_last_layer_for_the_classes_cannot_be_shuffled() -> None:
    with pytest.raises(ConfigError, match="type control=random_teacher"):
        shuffled(torch.nn.Identity(), 10, 0)


def test_smoothed_labels_and_more_epochs_ask_no_teacher(kd) -> None:
    result, record = compared(kd, "label_smoothing")
    assert "teacher" not in result
    assert record["loss"]["name"] == "label_smoothing"
    result, _ = compared(kd, "longer", "trainer.epochs=1", "teacher_trainer.epochs=2")
    assert "teacher" not in result
    assert (result["baseline"]["epochs"], result["distilled"]["epochs"]) == (1, 3)


def test_a_longer_training_drops_its_rate_in_proportion_later_and_is_the_same_if_read_again() -> None:
    recipe = {"epochs": 10, "schedule": "multistep", "step_size": 30, "milestones": [5, 8]}
    config = {"control": "longer", "baseline_trainer": recipe, "teacher_trainer": {"epochs": 20}, "distill_trainer": {}}
    once = controlled(config)
    assert once["distill_trainer"] == recipe | {"epochs": 30, "milestones": [15, 24]}
    assert controlled(once) == once


def test_the_baseline_teaches_itself(kd) -> None:
    result, record = compared(kd, "self_distillation")
    assert "teacher" not in result
    assert [Path(source).name for source in record["teacher"]["sources"]] == ["baseline"]


@pytest.mark.parametrize("control", ["shuffled_teacher", "random_teacher"])
def test_a_wrong_teacher_is_measured_as_it_teaches_and_the_same_command_gives_the_same_student(kd, control) -> None:
    words = ("trainer.epochs=2", "teacher_trainer.epochs=6")
    plain, _ = compared(kd, "none", *words)
    result, record = compared(kd, control, *words)
    assert record["teacher"]["control"] == control
    assert record["teacher"]["val_top1"] < result["teacher"]["val_top1"] == plain["teacher"]["val_top1"]
    assert result["baseline"]["test_top1"] == plain["baseline"]["test_top1"]
    weights = next(Path(f"there-{control}/distilled/checkpoints").glob("*/model.safetensors")).read_bytes()
    kd("run", *SMALL, f"control={control}", *words, "hydra.run.dir=again")
    assert next(Path("again/distilled/checkpoints").glob("*/model.safetensors")).read_bytes() == weights


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["control=labelsmoothing"], "control: there is no 'labelsmoothing'; did you mean 'label_smoothing'"),
        (["control=longer", "generations=2"], "generations makes more of them; type control=none"),
        (["control=random_teacher", "loss=dml"], "control needs a loss that asks a finished teacher"),
    ],
)
def test_what_no_control_can_be(kd, words: list[str], said: str) -> None:
    assert said in kd("run", *SMALL, *words, code=2).message


def test_a_network_that_would_bring_its_weights_is_no_random_teacher() -> None:
    teacher = {"name": "torchvision", "kwargs": {"weights": "DEFAULT"}}
    with pytest.raises(ConfigError, match="teacher=torchvision brings its own; type control=shuffled_teacher"):
        _untrained(SimpleNamespace(given=(), teacher=teacher), 0, None)


def test_any_study_takes_its_controls_along(kd) -> None:
    seeds = ("seed=0,1", "loss.temperature=2", "trainer.epochs=1")
    result = kd("study", "temperature", *SMALL, *seeds, "--controls", "--json").json
    assert {group["settings"]["control"] for group in result["groups"]} == {"none", *CONTROLS}
    (said,) = [each for each in result["findings"] if each.startswith("Beside its controls distillation")]
    assert all(f" than {control} (" in said for control in CONTROLS)
    assert not any("control=longer" in each for each in result["findings"] if "distillation helped" in each)
