"""Did it help? Differences between runs that share their seed."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_EXACT_UP_TO = 16  # seeds; 2^16 sign patterns take a tenth of a second
_DRAWS = 20_000
_LEAST_P = 0.001  # below it a p-value is not written out
_NO_SPREAD = 1e-6  # percentage points: rounding, and less than one of a million test images

# Two-sided 95 % quantiles of Student's t for 1 … 30 degrees of freedom; beyond that the normal's 1.96 plus 2.4/df is
# right to three digits.
_T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def p_text(p_value: float) -> str:
    """A p-value as it is shown: `0.031`, or `< 0.001`; none is 0."""
    return f"< {_LEAST_P}" if p_value < _LEAST_P else f"{p_value:.3f}"


def exact_share(top1: float, images: Any, correct: Any = None) -> float:
    """An accuracy before it was rounded to two decimals, percent: differences are computed of these.

    Args:
        top1: as it was rounded.
        images: how many there were; None: nobody knows, and `top1` is all there is.
        correct: how many of them were recognised; None: as `top1` says, which is exact below 10,000 images.
    """
    if type(images) is not int or images < 1:
        return top1
    share = 100 * (correct if type(correct) is int else round(top1 * images / 100)) / images
    return round(share, 6) if abs(share - top1) < 0.0051 else top1


def exact_top1(result: Mapping[str, Any], key: str = "test_top1") -> float:
    """The `exact_share` of a run's result; `test_top1_last` is the other `key`."""
    images = result.get("images")
    test = images.get("test") if isinstance(images, Mapping) else None
    return exact_share(result[key], test, result.get(key.replace("top1", "correct")))


def gain_over(baseline: Mapping[str, Any], distilled: Mapping[str, Any]) -> float:
    """Percentage points of test top-1 between two results, to six digits."""
    return round(exact_top1(distilled) - exact_top1(baseline), 6)


@dataclass(frozen=True)
class PairedGain:
    """The mean of seed-paired differences, and how sure it is.

    Args:
        mean: percentage points.
        std: sample standard deviation of the differences, percentage points.
        margin: half of the 95 % confidence interval of the mean (Student's t), percentage points.
        p_value: two-sided, of the sign-flip permutation test that the differences are symmetric about 0.
        seeds: how many differences.
    """

    mean: float
    std: float
    margin: float
    p_value: float
    seeds: int

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0.

        Equal differences of a few seeds are a coincidence of few test images, not an interval without width: nothing
        is concluded from them.
        """
        return abs(self.mean) > self.margin and self.std >= _NO_SPREAD

    @property
    def verdict(self) -> str:
        """`helped`, `hurt`, or neither."""
        if not self.clear:
            return "did not differ beyond its noise"
        return "helped" if self.mean > 0 else "hurt"

    def sentence(self, of: str = "test top-1") -> str:
        """A plain verdict with its numbers.

        Args:
            of: what was measured, in percent.
        """
        return (
            f"Over {self.seeds} seeds distillation {self.verdict}: {self.mean:+.2f} ± {self.margin:.2f} points of "
            f"{of} (mean and 95 % interval of the paired gains; std {self.std:.2f}, "
            f"sign-flip test p {'' if self.p_value < _LEAST_P else '= '}{p_text(self.p_value)})."
        )


def paired_gain(gains: Sequence[float]) -> PairedGain:
    """Summary of seed-paired differences in percentage points. Raises ValueError: fewer than two."""
    if len(gains) < 2:
        raise ValueError("a spread needs two seeds at least")
    std = statistics.stdev(gains)
    margin = t95(len(gains) - 1) * std / math.sqrt(len(gains))
    return PairedGain(statistics.fmean(gains), std, margin, sign_flip_p(gains), len(gains))


@dataclass(frozen=True)
class Recovered:
    """The share of the gap between baseline and teacher that distillation closed, percent.

    Args:
        mean: mean gain over mean gap; not the mean of the seeds' ratios, which one small gap would rule.
        low: of the 95 % interval (Fieller 1954, for paired seeds); None for a single seed.
        high: likewise.
    """

    mean: float
    low: float | None = None
    high: float | None = None


def recovered_share(gains: Sequence[float], gaps: Sequence[float], *, noise: float = 0.0) -> Recovered | None:
    """What share of the gap was recovered, where there is a gap.

    Args:
        gains: distilled − baseline, percentage points, one for each seed.
        gaps: teacher − baseline of the same seeds.
        noise: what a single seed's gap must exceed to be believed, percentage points.

    Returns:
        None where the mean gap is not above 0 beyond its noise: its 95 % interval over seeds holds 0, and Fieller's
        interval of the ratio would be unbounded.
    """
    seeds = len(gains)
    if not seeds:
        return None
    gain, gap = statistics.fmean(gains), statistics.fmean(gaps)
    if seeds == 1:
        return Recovered(100 * gain / gap) if gap > max(noise, 0) else None
    quantile = t95(seeds - 1) ** 2 / seeds
    spread = quantile * statistics.variance(gaps)
    squared = gap**2 - spread
    if gap <= 0 or squared <= 1e-12:
        return None
    # |gain − θ·gap| is at its margin: (gap² − q·s_yy)·θ² − 2·(gain·gap − q·s_xy)·θ + gain² − q·s_xx = 0
    middle = gain * gap - quantile * statistics.covariance(gains, gaps)
    ends = gain**2 - quantile * statistics.variance(gains)
    root = math.sqrt(max(0.0, middle**2 - squared * ends))
    return Recovered(100 * gain / gap, 100 * (middle - root) / squared, 100 * (middle + root) / squared)


def accuracy_error(top1: float, images: int) -> float:
    """The binomial standard error of an accuracy in percent: what other test images alone would change."""
    return math.sqrt(top1 * (100 - top1) / images)


def t95(freedom: int) -> float:
    """The two-sided 95 % quantile of Student's t."""
    return _T95[freedom - 1] if freedom <= len(_T95) else 1.960 + 2.4 / freedom


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p-value of the sign-flip permutation test: exact up to 16 differences, else by 20,000 fixed draws.

    (Fisher 1935, The Design of Experiments, section 21.)
    """
    sizes = [abs(difference) for difference in differences]
    observed = abs(sum(differences)) - 1e-9
    if len(sizes) <= _EXACT_UP_TO:
        signs = itertools.product((1, -1), repeat=len(sizes))
        extreme = [abs(sum(s * size for s, size in zip(pattern, sizes, strict=True))) >= observed for pattern in signs]
        return statistics.fmean(extreme)
    draw = random.Random(0)
    hits = sum(abs(sum(draw.choice((1, -1)) * size for size in sizes)) >= observed for _ in range(_DRAWS))
    return (hits + 1) / (_DRAWS + 1)
