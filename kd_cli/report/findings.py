"""What the numbers of a report say, in sentences: computed, and hedged where a difference is inside its noise.

Every choice is made on validation images; the test images only say what the choice is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from kd_cli.config.recipe import score_name
from kd_cli.metrics.significance import PairedGain, paired_gain
from kd_cli.report.tables import STAGES, gain_sentence

Results = Mapping[str, Any]
_VERDICTS = ("helped", "hurt", "did not differ beyond its noise")  # as PairedGain gives them
_DIGITS = 6  # of a mean; beyond them lies what adding in another order changes
_LONG = 300  # characters of settings in one sentence; the table below has them all
_EPOCHS = ("distill_trainer.epochs", "trainer.epochs")


@dataclass(frozen=True)
class Setting:
    """What was compared at one setting of the keys that vary, over seeds.

    Args:
        name: `loss.temperature=4`; empty where nothing varies.
        settings: the keys and their values.
        runs: role → seed → the run's row of results.json.
    """

    name: str
    settings: Mapping[str, Any]
    runs: Mapping[str, Mapping[int, Mapping[str, Any]]]

    def values(self, role: str, key: str = "test_top1") -> dict[int, float]:
        """Seed → a number of the role's run, where there is one."""
        return {seed: run[key] for seed, run in self.runs[role].items() if run.get(key) is not None}

    def mean(self, role: str, key: str = "test_top1") -> float | None:
        """Mean over seeds; None where there is no number."""
        numbers = list(self.values(role, key).values())
        return fmean(numbers) if numbers else None

    def said(self, role: str, key: str = "test_top1") -> str:
        """`97.02 ± 0.21 %`: mean and standard deviation; of losses in nats."""
        numbers, digits, unit = list(self.values(role, key).values()), 2, "%"
        if key == "val_loss":
            digits, unit = 4, "nats"
        spread = f" ± {stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
        return f"{fmean(numbers):.{digits}f}{spread} {unit}"

    def gain(self) -> PairedGain | None:
        """Distilled − baseline, paired by seed; None with fewer than two seeds."""
        return difference(self.values("distilled"), self.values("baseline"))


def findings(results: Results) -> list[str]:
    """The sentences, the most important first; none where nothing was compared."""
    settings = [setting for setting in settings_of(results) if setting.values("distilled")]
    if not settings:
        return _constant(results)
    sayings: Sequence[Callable[[Sequence[Setting]], list[str]]] = (_gains, _choice, _teachers, _overfitting)
    sentences = [*_constant(results), *(sentence for say in sayings for sentence in say(settings))]
    return [*sentences, *_costs(settings), *_transfer(results), *_recipes(results), *_caution(settings)]


def settings_of(results: Results) -> list[Setting]:
    """The groups of results.json with the runs behind them."""
    runs = {run["id"]: run for run in results["runs"]}
    compared = {each["id"]: each for each in results["comparisons"]}
    found = []
    for group in results["groups"]:
        members = [compared[name] for name in group["comparisons"]]
        roles = {role: {each["seed"]: runs[each[role]] for each in members if each.get(role)} for role in STAGES}
        found.append(Setting(group["name"], group["settings"], roles))
    return found


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> PairedGain | None:
    """first − second, paired by seed; None with fewer than two common seeds."""
    differences = [value - second[seed] for seed, value in first.items() if seed in second]
    return paired_gain(differences) if len(differences) > 1 else None


def _constant(results: Results) -> list[str]:
    """Networks whose accuracy is that of a class, and not of what they have learned."""
    return [
        f"{run['name']} takes every test image for {run['only_answer']!r}: it tells nothing apart."
        for run in results["runs"]
        if run.get("only_answer") is not None
    ]


def _gains(settings: Sequence[Setting]) -> list[str]:
    """Did distillation help, and where?"""
    gains = {setting.name: gain for setting in settings if (gain := setting.gain())}
    if len(gains) < 2:
        return [gain.sentence() for gain in gains.values()] or _one_seed(settings)
    brief = sum(map(len, gains)) <= _LONG
    told = []
    for verdict in sorted({gain.verdict for gain in gains.values()}, key=_VERDICTS.index):
        at = [f"{name} ({_points(gain)})" for name, gain in gains.items() if gain.verdict == verdict]
        told.append(f"{verdict} at {_list(at) if brief else f'{len(at)} of {len(gains)} settings'}")
    return [f"Over {_seeds(gains.values())} seeds, against the baseline of its seed, distillation {'; '.join(told)}."]


def _one_seed(settings: Sequence[Setting]) -> list[str]:
    told = []
    for setting in settings:
        taught, alone = setting.mean("distilled"), setting.mean("baseline")
        if taught is not None and alone is not None:
            told.append(f"{taught - alone:+.2f} points{f' at {setting.name}' if len(settings) > 1 else ''}")
    return (
        [f"With one seed distillation changed test top-1 by {_list(_few(told))}; one seed proves little."]
        if told
        else []
    )


def _choice(settings: Sequence[Setting]) -> list[str]:
    """Which setting is best on validation, and which of the others are worse beyond their noise."""
    key, by = _chosen_by(settings)
    known = [setting for setting in settings if setting.mean("distilled", key) is not None]
    if len(known) < 2:
        return []
    means = [round(setting.mean("distilled", key) or 0.0, _DIGITS) for setting in known]
    top = min(means) if key == "val_loss" else max(means)
    ties = [setting for setting, mean in zip(known, means, strict=True) if mean == top]
    best, are, it = (
        ties[0],
        "is" if len(ties) == 1 else "are",
        "it" if len(ties) == 1 else f"the first, {ties[0].name},",
    )
    head = (
        f"On validation {_list(_few([each.name for each in ties]))} {are} best{by} ({best.said('distilled', key)}); "
        f"on the test images {it} has {best.said('distilled')}"
    )
    against = {
        other.name: gap
        for other in known
        if other is not best and (gap := difference(other.values("distilled"), best.values("distilled")))
    }
    clear = [f"{name} ({_points(gap)})" for name, gap in against.items() if gap.clear]
    if not against:
        return [f"{head}; one seed cannot say whether another differs from it."]
    if not clear:
        return [f"{head}, and no other setting differs from that beyond the noise of {_seeds(against.values())} seeds."]
    rest = "" if len(clear) == len(against) else "; the others are within their noise"
    return [f"{head}. Beyond its noise differs from that: {_list(_few(clear))}{rest}."]


def _chosen_by(settings: Sequence[Setting]) -> tuple[str, str]:
    """The score that chose the epochs of all of them, and words for it; top-1 where they differ in that."""
    runs = [run for setting in settings for run in setting.runs["distilled"].values()]
    found = {run.get("select_by", "top1") for run in runs}
    select_by = found.pop() if len(found) == 1 else "top1"
    words = {"balanced_accuracy": " by balanced accuracy", "macro_f1": " by macro F1", "nll": " by likelihood"}
    return score_name(select_by), words.get(select_by, "")


def _teachers(settings: Sequence[Setting]) -> list[str]:
    """Where the teachers differ: did the best teacher make the best student?"""
    known = [setting for setting in settings if setting.mean("teacher", "val_top1") is not None]
    ranked = sorted(known, key=lambda setting: setting.mean("teacher", "val_top1") or 0.0)
    same_student = all(_same(known[0], other, "baseline") for other in known[1:])
    if len(known) < 2 or not same_student or _same(ranked[0], ranked[-1], "teacher"):
        return []
    weak, strong = ranked[0], ranked[-1]
    change = difference(strong.values("distilled"), weak.values("distilled"))
    head = (
        f"From the teacher that is weakest on validation ({weak.name}: {weak.said('teacher', 'val_top1')}) to the "
        f"strongest ({strong.name}: {strong.said('teacher', 'val_top1')}) the student"
    )
    if change is None:
        points = (strong.mean("distilled") or 0.0) - (weak.mean("distilled") or 0.0)
        return [f"{head} changes by {points:+.2f} points; one seed proves little."]
    if not change.clear:
        return [f"{head} does not change beyond its noise ({_points(change)} points)."]
    return [f"{head} {'gains' if change.mean > 0 else 'loses'} ({_points(change)} points)."]


def _same(one: Setting, other: Setting, role: str) -> bool:
    """Whether two settings have the same network in a role, by the seeds that both have: a point may be missing."""
    first, second = one.values(role), other.values(role)
    return all(first[seed] == second[seed] for seed in first.keys() & second.keys())


def _overfitting(settings: Sequence[Setting]) -> list[str]:
    """Where the length of the training varies: is the last epoch worse than the chosen one?"""
    if not any(key in setting.settings for setting in settings for key in _EPOCHS):
        return []
    told = []
    for setting in settings:
        chosen, last = setting.mean("distilled", "best_epoch"), setting.mean("distilled", "epochs")
        if chosen is None or last is None:
            continue
        lost = difference(setting.values("distilled", "test_top1_last"), setting.values("distilled"))
        worse = "" if lost is None else f", where the last epoch has {_points(lost)} points"
        told.append(f"{setting.name}: epoch {chosen:.1f} of {last:.0f}{worse}")
    return [f"The epoch that validation chose, mean over seeds: {'; '.join(_few(told))}."] if told else []


def _costs(settings: Sequence[Setting]) -> list[str]:
    """What the student saves, or costs more, where that was measured."""
    first = settings[0]
    student, teacher = ({**next(iter(first.runs[role].values()), {})} for role in ("distilled", "teacher"))
    one, other = student.get("speed"), teacher.get("speed")
    if not one or not other:
        return []
    shares = [
        f"{100 * one[key] / other[key]:.3g} % of its {what}"
        for key, what in (("bytes", "bytes"), ("flops_per_image", "FLOPs"), ("latency_ms", "latency"))
        if one.get(key) and other.get(key)
    ]
    lost = difference(first.values("distilled"), first.values("teacher"))
    price = "" if lost is None else f"; its test top-1 differs from the teacher's by {_points(lost)} points"
    return [f"Against the teacher the student has {_list(shares)}{price}."]


def _transfer(results: Results) -> list[str]:
    """What the networks are worth on other data, where that was tried."""
    found = results.get("transfer") or {}
    gains = (found.get("gain") or {}).items()
    return [f"On {found['dataset']}: {gain_sentence(metric, gain)}" for metric, gain in gains]


def _recipes(results: Results) -> list[str]:
    keys = sorted({key for each in results["comparisons"] for key in each.get("recipe_differences") or ()})
    return [f"These gains are not distillation's alone: the baseline's {_list(keys)} differ, too."] if keys else []


def _caution(settings: Sequence[Setting]) -> list[str]:
    if len(settings) < 3 or all(setting.gain() is None for setting in settings):
        return []
    return [f"The intervals hold for one comparison each: of {len(settings)} settings one may stand out by chance."]


def _points(gain: PairedGain) -> str:
    return f"{gain.mean:+.2f} ± {gain.margin:.2f}"


def _seeds(gains: Any) -> str:
    counts = sorted({gain.seeds for gain in gains})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _list(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)


def _few(words: Sequence[str]) -> list[str]:
    """All where they are short, otherwise the first and how many more."""
    long = len(words) > 2 and sum(map(len, words)) > _LONG
    return [words[0], f"{len(words) - 1} more"] if long else list(words)
