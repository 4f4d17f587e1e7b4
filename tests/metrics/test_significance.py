"""The verdict over seeds: numbers that tables and exact counting give."""

from __future__ import annotations

from typing import Any

import pytest

from kd_cli.metrics.significance import (
    accuracy_error,
    exact_top1,
    gain_over,
    paired_gain,
    recovered_share,
    sign_flip_p,
    t95,
)


def test_mean_spread_and_margin_are_those_of_the_textbook() -> None:
    gain = paired_gain([1.0, 2.0, 3.0])
    assert (gain.mean, gain.std, gain.seeds) == (2.0, 1.0, 3)
    assert gain.margin == pytest.approx(4.303 / 3**0.5)


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.706), (4, 2.776), (10, 2.228), (30, 2.042)])
def test_t95_is_the_printed_table(freedom: int, quantile: float) -> None:
    assert t95(freedom) == quantile


@pytest.mark.parametrize(("freedom", "quantile"), [(31, 2.0395), (40, 2.0211), (60, 2.0003), (120, 1.9799)])
def test_t95_beyond_the_table_follows_the_exact_quantile(freedom: int, quantile: float) -> None:
    assert t95(freedom) == pytest.approx(quantile, abs=2.5e-3)


@pytest.mark.parametrize(
    ("differences", "p_value"),
    [
        ([1.0, 2.0, 3.0], 2 / 8),  # only +++ and --- reach 6
        ([1.0, 1.0, 1.0, 1.0, 1.0], 2 / 32),
        ([1.0, 2.0, -3.0], 1.0),
        ([0.0, 0.0], 1.0),
        ([3.0, 2.0, -1.0], 4 / 8),  # ±(3, 2, 1) and ±(3, 2, -1) reach 4
    ],
)
def test_the_sign_flip_test_counts_exactly(differences: list[float], p_value: float) -> None:
    assert sign_flip_p(differences) == p_value
    assert sign_flip_p([-difference for difference in differences]) == p_value


def test_equal_sums_count_although_floating_point_adds_them_differently() -> None:
    assert sign_flip_p([-0.6, -0.2, 0.2]) == 6 / 8  # all but ±(0.6 − 0.2 − 0.2) reach 0.6


def test_many_seeds_are_drawn_and_the_draw_is_always_the_same() -> None:
    differences = [0.3, -0.1, 0.4, 0.1, -0.2, 0.5, 0.2, 0.1, 0.3] * 2
    first = sign_flip_p(differences)
    assert first == sign_flip_p(differences)
    assert 0 < first < 0.05
    assert sign_flip_p([1.0, -1.0] * 10) == 1.0


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ([1.0, 1.2, 1.1], "Over 3 seeds distillation helped: +1.10 ± 0.25 points of test top-1"),
        ([-1.0, -1.2, -1.1], "Over 3 seeds distillation hurt: -1.10 ± 0.25 points"),
        ([1.0, -1.2, 0.5], "Over 3 seeds distillation did not differ beyond its noise: +0.10 ± "),
        ([0.0, 0.0], "Over 2 seeds distillation did not differ beyond its noise: +0.00 ± 0.00"),
        ([0.1, 97.1 - 97.0, 0.1], "Over 3 seeds distillation did not differ beyond its noise: +0.10 ± 0.00"),
    ],
)
def test_the_verdict_is_plain(gains: list[float], verdict: str) -> None:
    assert paired_gain(gains).sentence().startswith(verdict)


def test_one_seed_has_no_spread() -> None:
    with pytest.raises(ValueError, match="two seeds"):
        paired_gain([1.0])


def test_the_recovered_share_is_a_ratio_of_means() -> None:
    share = recovered_share([1.0, 2.0, 3.0], [4.0, 4.0, 4.0])
    assert share is not None
    assert share.mean == 50
    assert share.low == pytest.approx(50 - 25 * 4.303 / 3**0.5)  # the gap is certain: the gain's interval, divided
    assert share.high == pytest.approx(50 + 25 * 4.303 / 3**0.5)


@pytest.mark.parametrize(
    ("gains", "gaps"),
    [
        ([1.0, 2.0, 3.0], [5.0, 4.5, 6.0]),
        ([-1.0, 0.5, 0.2, 0.1], [3.0, 2.0, 4.0, 2.5]),
        ([2.0, 2.1], [3.0, 3.1]),
    ],
)
def test_at_the_ends_of_its_interval_the_share_is_just_not_refuted(gains: list[float], gaps: list[float]) -> None:
    share = recovered_share(gains, gaps)
    assert share is not None
    assert share.mean == pytest.approx(100 * sum(gains) / sum(gaps))
    assert share.low is not None
    assert share.high is not None
    assert share.low < share.mean < share.high
    for end in (share.low, share.high):
        rest = paired_gain([gain - end / 100 * gap for gain, gap in zip(gains, gaps, strict=True)])
        assert abs(rest.mean) == pytest.approx(rest.margin)


@pytest.mark.parametrize("gaps", [[1.0, -1.0, 0.5], [-3.0, -3.1, -2.9], [0.0, 0.0, 0.0]])
def test_there_is_no_share_of_a_gap_that_is_not_there(gaps: list[float]) -> None:
    assert recovered_share([1.0, 1.1, 0.9], gaps) is None


def test_one_seed_has_a_share_without_an_interval_where_its_gap_is_believed() -> None:
    share = recovered_share([1.0], [4.0], noise=1.0)
    assert share is not None
    assert (share.mean, share.low, share.high) == (25, None, None)
    assert recovered_share([1.0], [4.0], noise=5.0) is None
    assert recovered_share([1.0], [0.0]) is None
    assert recovered_share([], []) is None


def test_the_error_of_an_accuracy_is_the_binomial_one() -> None:
    assert accuracy_error(90.0, 100) == pytest.approx(3.0)
    assert accuracy_error(100.0, 100) == 0.0


def result(correct: int, images: int, **more: Any) -> dict[str, Any]:
    """As a run's result has it."""
    return {"test_top1": round(100 * correct / images, 2), "images": {"test": images}, **more}


def test_a_gain_is_computed_before_accuracies_are_rounded() -> None:
    baseline, distilled = result(23, 90), result(31, 90)
    assert round(distilled["test_top1"] - baseline["test_top1"], 2) == 8.88
    assert gain_over(baseline, distilled) == pytest.approx(100 * 8 / 90, abs=1e-6)


def test_of_many_images_the_counts_on_record_tell_the_gain() -> None:
    known = [result(correct, 50_000, test_correct=correct) for correct in (20_002, 20_003)]
    assert gain_over(*known) == pytest.approx(100 / 50_000)


@pytest.mark.parametrize(
    "wrong", [{"images": None}, {"images": {"test": 0}}, {"test_correct": 7}, {"test_correct": ""}]
)
def test_a_count_that_cannot_be_leaves_the_accuracy_as_it_is_on_record(wrong: dict[str, Any]) -> None:
    assert exact_top1({"test_top1": 50.0, "images": {"test": 20}, **wrong}) == 50.0


def test_no_p_value_is_shown_as_0() -> None:
    sentence = paired_gain([1.7, 3.4, 1.8, 3.7, 3.4, 2.8, 3.1, 3.0, 3.0, 2.3, 3.6, 2.4]).sentence()
    assert sentence.endswith("sign-flip test p < 0.001).")
    assert "p = 0.500" in paired_gain([1.0, 2.0]).sentence()
