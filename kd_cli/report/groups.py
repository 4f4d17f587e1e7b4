"""Seeds together: comparisons that differ in nothing but their seed are averaged, all others never."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kd_cli.metrics.significance import PairedGain, Recovered, paired_gain, recovered_share
from kd_cli.report.compare import Comparison
from kd_cli.report.records import Run, number
from kd_cli.report.settings import digest, found_axes, label, unexplained, value

_MEASURES = ("test_top1", "val_top1", "test_top1_last")
ROLES = ("teacher", "baseline", "distilled")


@dataclass(frozen=True)
class Group:
    """Comparisons of one recipe, one for each seed.

    Args:
        name: what it is, without the seed.
        settings: the values of what is compared.
        comparisons: by rising seed.
        repeated: older ones of a seed that is there already; they count in no number.
    """

    name: str
    settings: Mapping[str, Any]
    comparisons: tuple[Comparison, ...]
    repeated: tuple[Comparison, ...] = ()

    def runs(self, role: str) -> list[Run]:
        """The different runs in one role; one teacher may serve all seeds."""
        runs = [run for each in self.comparisons if (run := getattr(each, role)) is not None]
        return list({run.path: run for run in runs}.values())

    def gain(self) -> PairedGain | float | None:
        """Over seeds; a plain number where there is one seed."""
        gains = [each.gain for each in self.comparisons if each.gain is not None]
        return paired_gain(gains) if len(gains) > 1 else gains[0] if gains else None

    def recovered(self) -> Recovered | None:
        """The share of the teacher–baseline gap."""
        pairs = [(each.gain, each.gap) for each in self.comparisons if each.gain is not None and each.gap is not None]
        noise = max((each.noise for each in self.comparisons), default=0.0)
        return recovered_share([gain for gain, _ in pairs], [gap for _, gap in pairs], noise=noise)


def compared_keys(comparisons: Sequence[Comparison], swept: Sequence[str] | None) -> list[str]:
    """What varies between the comparisons, seed excluded; `Comparison.settings` is filled in with it.

    Args:
        swept: the keys of the sweeps and studies that made them; None: whatever differs is compared.
    """
    rows, typed = [each.facts for each in comparisons], [each.typed for each in comparisons]
    keys = found_axes(rows, typed) if swept is None else [key for key in swept if key != "seed"]
    values = {key: [value(key, *pair) for pair in zip(rows, typed, strict=True)] for key in keys}
    axes = [key for key in keys if len(set(map(str, values[key]))) > 1] if len(comparisons) > 1 else keys
    for place, each in enumerate(comparisons):
        each.settings = {key: values[key][place] for key in axes}
    return axes


def confounded(comparisons: Sequence[Comparison], axes: Sequence[str]) -> list[str]:
    """The keys that differ between comparisons although they are not what is compared."""
    rows, settings = [each.facts for each in comparisons], [each.settings for each in comparisons]
    sweeps = {each.sweep for each in comparisons}
    return unexplained(axes, rows, settings, one_sweep=len(sweeps) == 1 and None not in sweeps)


def groups(comparisons: Sequence[Comparison], axes: Sequence[str]) -> list[Group]:
    """The comparisons by recipe, in the order of their numbers."""
    found: dict[str, list[Comparison]] = {}
    for each in comparisons:
        found.setdefault(digest(each.facts, each.settings), []).append(each)
    other = confounded(comparisons, axes)
    made = [_group(each, other) for each in found.values()]
    return sorted(made, key=lambda group: [_rank(group.settings[axis], axis, made) for axis in axes])


def _group(comparisons: Sequence[Comparison], other: Sequence[str]) -> Group:
    newest = {each.seed: each for each in comparisons}  # they come by age
    kept = sorted(newest.values(), key=lambda each: (each.seed is None, each.seed))
    first = comparisons[0]
    extra = {key: value(key, first.facts, first.typed) for key in other if key != "dataset.fingerprint"}
    name = label({**first.settings, **extra}) or str(first.facts.get("loss.name") or "distilled")
    repeated = [each for each in comparisons if newest[each.seed] is not each]
    return Group(name, first.settings, tuple(kept), tuple(repeated))


def _rank(setting: Any, axis: str, made: Sequence[Group]) -> float:
    """Numbers by size, words in the order in which they were first run."""
    if number(setting) is not None:
        return float(setting)
    words = list(dict.fromkeys(str(group.settings[axis]) for group in made))
    return float(words.index(str(setting)))


def summary(group: Group, role: str) -> dict[str, Any] | None:
    """Mean, sample standard deviation and number of the different runs in one role."""
    runs = [run for run in group.runs(role) if run.done]
    return {measure: spread([run.result.get(measure) for run in runs]) for measure in _MEASURES} if runs else None


def spread(values: Sequence[Any]) -> dict[str, Any] | None:
    """`mean`, `std` (None for one value) and `n`; None where there are none."""
    known = [float(each) for each in values if number(each) is not None]
    if not known:
        return None
    std = round(statistics.stdev(known), 4) if len(known) > 1 else None
    return {"mean": round(statistics.fmean(known), 4), "std": std, "n": len(known)}
