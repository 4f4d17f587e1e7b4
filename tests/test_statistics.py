"""The verdict over seeds: numbers that tables and exact counting give."""

from __future__ import annotations

import pytest

from kd_cli.statistics import paired_gain, sign_flip_p, t95


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
    ],
)
def test_the_verdict_is_plain(gains: list[float], verdict: str) -> None:
    assert paired_gain(gains).sentence().startswith(verdict)


def test_one_seed_has_no_spread() -> None:
    with pytest.raises(ValueError, match="two seeds"):
        paired_gain([1.0])
