"""What a report's numbers say: the verdict, the choice on validation, and no more than the noise allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from kd_cli.report.findings import findings

Numbers = Mapping[str, Sequence[float]]


def results(settings: Mapping[str, Numbers], **more: Any) -> dict[str, Any]:
    """results.json of settings, each with test accuracies by role, and `val` of the distilled student, over seeds."""
    runs, comparisons, groups = [], [], []
    for name, numbers in settings.items():
        members = []
        for seed in range(len(numbers["distilled"])):
            ids = {}
            for role in ("teacher", "baseline", "distilled"):
                if role in numbers:
                    ids[role] = f"r{len(runs)}"
                    top1 = numbers[role][seed]
                    row = {"id": ids[role], "test_top1": top1, "test_top1_last": top1 - 0.5, "val_top1": None}
                    row |= {"best_epoch": 3, "epochs": 5, "speed": numbers.get(f"{role}_speed")}
                    if role == "teacher":
                        row["val_top1"] = numbers.get("teacher_val", numbers["teacher"])[seed]
                    if role == "distilled" and "val" in numbers:
                        row["val_top1"] = numbers["val"][seed]
                    runs.append(row)
            members.append(f"c{len(comparisons)}")
            comparisons.append({"id": members[-1], "seed": seed, **ids})
        key, _, value = name.partition("=")
        groups.append({"name": name, "settings": {key: value}, "comparisons": members})
    return {"runs": runs, "comparisons": comparisons, "groups": groups, "transfer": None, **more}


BASE = [90.0, 91.0, 92.0]


@pytest.mark.parametrize(
    ("distilled", "verdict"),
    [
        ([91.0, 92.1, 92.9], "helped: +1.00 ± 0.25"),
        ([89.0, 90.1, 90.9], "hurt: -1.00 ± 0.25"),
        ([91.0, 90.0, 92.3], "did not differ beyond its noise"),
    ],
)
def test_one_comparison_over_seeds_has_a_verdict(distilled: list[float], verdict: str) -> None:
    (said,) = findings(results({"loss=kd": {"baseline": BASE, "distilled": distilled}}))
    assert f"Over 3 seeds distillation {verdict}" in said


def test_a_gain_of_another_recipe_is_not_said_to_be_distillations_alone() -> None:
    said = results({"loss=kd": {"baseline": BASE, "distilled": [91.0, 92.1, 92.9]}})
    said["comparisons"][0]["recipe_differences"] = {"epochs": [6, 5], "lr": [0.1, 0.2]}
    assert findings(said)[-1] == "These gains are not distillation's alone: the baseline's epochs and lr differ, too."


def test_one_seed_is_no_verdict() -> None:
    (said,) = findings(results({"loss=kd": {"baseline": [90.0], "distilled": [93.0]}}))
    assert said == "With one seed distillation changed test top-1 by +3.00 points; one seed proves little."


def test_settings_are_listed_by_their_verdict() -> None:
    said = findings(
        results(
            {
                "t=1": {"baseline": BASE, "distilled": [90.2, 90.9, 92.1]},
                "t=2": {"baseline": BASE, "distilled": [91.0, 92.1, 92.9]},
                "t=3": {"baseline": BASE, "distilled": [89.0, 90.1, 90.9]},
            }
        )
    )[0]
    assert "helped at t=2 (+1.00 ± 0.25); hurt at t=3 (-1.00 ± 0.25); did not differ beyond its noise at t=1" in said


def test_the_best_setting_is_chosen_on_validation_whatever_the_test_images_say() -> None:
    said = findings(
        results(
            {
                "t=1": {"baseline": BASE, "distilled": [95.0, 96.1, 97.0], "val": [80.0, 80.0, 80.0]},
                "t=2": {"baseline": BASE, "distilled": [91.0, 92.0, 93.0], "val": [81.0, 81.0, 81.0]},
            }
        )
    )[1]
    assert said.startswith("On validation t=2 is best (81.00 ± 0.00 %); on the test images it has 92.00 ± 1.00 %")
    assert "Beyond its noise differs from that: t=1 (+4.03 ± 0.14)." in said


def test_settings_that_are_equal_on_validation_are_both_named() -> None:
    said = findings(
        results(
            {
                "t=1": {"baseline": BASE, "distilled": [91.0, 92.0, 93.0], "val": [80.1, 80.2, 80.3]},
                "t=2": {"baseline": BASE, "distilled": [92.0, 92.0, 92.0], "val": [80.3, 80.2, 80.1]},
            }
        )
    )[1]
    assert said.startswith(
        "On validation t=1 and t=2 are best (80.20 ± 0.10 %); on the test images the first, t=1, has"
    )


def test_settings_within_their_noise_are_not_ranked() -> None:
    said = findings(
        results(
            {
                "t=1": {"baseline": BASE, "distilled": [91.0, 90.0, 93.0], "val": [80.0, 80.0, 80.0]},
                "t=2": {"baseline": BASE, "distilled": [90.0, 92.0, 92.5], "val": [81.0, 81.0, 81.0]},
            }
        )
    )[1]
    assert said.endswith("and no other setting differs from that beyond the noise of 3 seeds.")


def test_a_better_teacher_is_compared_with_the_weakest_where_the_baseline_is_the_same() -> None:
    weak = {"teacher": [95.0, 95.1, 95.2], "baseline": BASE, "distilled": [91.0, 91.9, 93.1]}
    strong = {"teacher": [97.0, 97.1, 97.2], "baseline": BASE, "distilled": [92.0, 93.0, 94.0]}
    said = findings(results({"e=5": weak, "e=20": strong}))
    assert any("weakest on validation (e=5: 95.10" in each and "the student gains (+1.00" in each for each in said)
    other = findings(results({"e=5": weak, "e=20": strong | {"baseline": [80.0, 81.0, 82.0]}}))
    assert not any("teacher (" in each for each in other)


def test_which_teacher_is_better_is_told_by_validation_even_where_a_point_is_missing() -> None:
    one = {"teacher": [95.0, 95.1], "teacher_val": [97.0, 97.1], "baseline": BASE[:2], "distilled": [92.0, 93.0]}
    other = {"teacher": [97.0, 97.1, 97.2], "teacher_val": [95.0, 95.1, 95.2], "baseline": BASE}
    said = findings(results({"e=5": one, "e=20": {**other, "distilled": [91.0, 91.9, 93.1]}}))
    assert any("weakest on validation (e=20: 95.10 ± 0.10 %) to the strongest (e=5: 97.05" in each for each in said)


def test_the_chosen_epoch_is_told_where_the_length_varies() -> None:
    numbers = {"baseline": BASE, "distilled": [91.0, 92.0, 93.0]}
    said = findings(results({"trainer.epochs=5": numbers}))
    assert any(
        "trainer.epochs=5: epoch 3.0 of 5, where the last epoch has -0.50 ± 0.00 points" in each for each in said
    )
    assert not any("epoch 3.0" in each for each in findings(results({"t=5": numbers})))


def test_costs_are_ratios_to_the_teacher() -> None:
    costs = {"teacher_speed": {"bytes": 800, "flops_per_image": 50, "latency_ms": 2.0}}
    costs |= {"distilled_speed": {"bytes": 200, "flops_per_image": 10, "latency_ms": 2.5}}
    said = findings(
        results({"loss=kd": {"teacher": [95.0, 96.0], "baseline": BASE[:2], "distilled": BASE[:2], **costs}})
    )
    assert "has 25 % of its bytes, 20 % of its FLOPs and 125 % of its latency" in said[-1]
    assert "differs from the teacher's by -5.00 ± 0.00 points" in said[-1]


def test_other_data_have_their_own_verdict() -> None:
    gain = {"mean": 0.5, "std": 0.1, "margin": 0.2, "p_value": 0.25, "seeds": 3, "verdict": "helped"}
    tried = {"dataset": "digits", "roles": {}, "gain": {"probe": gain}}
    said = findings(results({"loss=kd": {"baseline": BASE, "distilled": BASE}}, transfer=tried))
    assert said[-1].startswith("On digits: Over 3 seeds distillation helped: +0.50 ± 0.20 points of linear probe top-1")


def test_nothing_compared_is_nothing_found() -> None:
    assert findings(results({})) == []


def test_a_network_that_takes_all_for_one_class_is_named_before_any_gain() -> None:
    found = results({"loss=kd": {"baseline": BASE, "distilled": BASE}})
    found["runs"][0] |= {"name": "baseline · seed=0", "only_answer": "cat"}
    assert findings(found)[0] == "baseline · seed=0 takes every test image for 'cat': it tells nothing apart."


def test_of_many_long_settings_only_their_number_is_told() -> None:
    settings = [f"student.callable=torchvision.models.a_network_with_a_long_name_{number}" for number in range(8)]
    tops = {"baseline": BASE, "distilled": [91.0, 92.1, 92.9]}
    first, *_ = findings(results(dict.fromkeys(settings, tops)))
    assert first.endswith("distillation helped at 8 of 8 settings.")


def test_a_gain_is_held_against_what_its_controls_gain() -> None:
    numbers = {"none": [92.0, 93.1, 93.9], "longer": [90.9, 92.1, 93.0], "random_teacher": [92.1, 93.0, 93.8]}
    said = findings(results({f"control={k}": {"baseline": BASE, "distilled": v} for k, v in numbers.items()}))
    assert said[0].startswith("Over 3 seeds distillation helped: +2.00")
    assert said[1] == (
        "Beside its controls distillation (+2.00 ± 0.25) gains more than longer (+1.00 ± 0.25; "
        "difference +1.00 ± 0.25) and no more beyond the noise than random_teacher (+1.97 ± 0.38; difference "
        "+0.03 ± 0.29)."
    )
    assert not any("control=longer" in each for each in said if "On validation" in each)


@pytest.mark.parametrize(
    ("mean", "margin", "verdict", "word"),
    [
        (11.0, 4.0, "helped", "it inherits errors"),
        (-11.0, 4.0, "hurt", "it shares fewer errors"),
        (3.0, 4.0, "did not differ beyond its noise", "neither more nor fewer beyond the noise"),
    ],
)
def test_a_student_that_repeats_its_teachers_mistakes_is_told(
    mean: float, margin: float, verdict: str, word: str
) -> None:
    known = results({"loss=kd": {"baseline": BASE, "distilled": [91.0, 92.1, 92.9]}})
    gain = {"mean": mean, "low": mean - margin, "high": mean + margin, "verdict": verdict}
    shared = {"baseline": 30.0, "distilled": 30.0 + mean}
    known["groups"][0] |= {"agreement_when_wrong": shared, "agreement_when_wrong_gain": gain}
    assert findings(known)[1] == (
        "Of the test images that the teacher gets wrong the student gives the same wrong answer for "
        f"{30 + mean:.2f} %, the baseline for 30.00 %: {mean:+.2f} ± 4.00 points, {word}."
    )
