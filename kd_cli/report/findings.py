"""What the numbers of a report say, in sentences: computed, and hedged where a difference is inside its noise.

Every choice is made on validation images; the test images only say what the choice is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kd_cli.config.controls import NONE
from kd_cli.config.recipe import score_name
from kd_cli.metrics.significance import PairedGain
from kd_cli.report.compared import Setting, difference, settings_of
from kd_cli.report.settings import label
from kd_cli.report.tables import gain_sentence

Results = Mapping[str, Any]
_VERDICTS = ("helped", "hurt", "did not differ beyond its noise")  # as PairedGain gives them
_DIGITS = 6  # of a mean; beyond them lies what adding in another order changes
_LONG = 300  # characters of settings in one sentence; the table below has them all
_EPOCHS = ("distill_trainer.epochs", "trainer.epochs")


def findings(results: Results) -> list[str]:
    """The sentences, the most important first; none where nothing was compared."""
    settings = [setting for setting in settings_of(results) if setting.values("distilled")]
    if not settings:
        return _constant(results)
    taught = [setting for setting in settings if not setting.is_control]
    sayings: Sequence[Callable[[Sequence[Setting]], list[str]]] = (_gains, _choice, _teachers, _overfitting)
    sentences = [*_constant(results), *(sentence for say in sayings for sentence in say(taught))]
    sentences += [*_controls(settings), *_errors(results)]
    return [*sentences, *_costs(settings), *_transfer(results), *_recipes(results), *_caution(settings)]


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


def _controls(settings: Sequence[Setting]) -> list[str]:
    """What the controls gain, and whether distillation, with all else as it is, gains more."""
    told = []
    for taught in (setting for setting in settings if not setting.is_control):
        said = [_against(taught, each) for each in settings if each.is_control and each.stands_for(taught)]
        if known := list(filter(None, said)):
            gain = taught.gain()
            at = label({key: each for key, each in taught.settings.items() if key != "control"})
            head = f"Beside its controls distillation{f' at {at}' if at else ''}"
            told.append(f"{head}{f' ({_points(gain)})' if gain else ''} gains {_list(known)}.")
    return told


def _against(taught: Setting, control: Setting) -> str | None:
    """`more than longer (+0.12 ± 0.30, difference +0.82 ± 0.60)`."""
    gain, more = control.gain(), difference(taught.values("distilled"), control.values("distilled"))
    if gain is None or more is None:
        return None
    than = "no more beyond the noise than" if not more.clear else "more than" if more.mean > 0 else "less than"
    return f"{than} {control.settings['control']} ({_points(gain)}; difference {_points(more)})"


def _errors(results: Results) -> list[str]:
    """Does the student make more of its teacher's mistakes than the baseline, which never met the teacher?"""
    told = []
    for group in results["groups"]:
        gain = group.get("agreement_when_wrong_gain")
        if gain is None or gain["low"] is None or group["settings"].get("control", NONE) != NONE:
            continue
        shared = group["agreement_when_wrong"]
        at, margin = f" ({group['name']})" if len(results["groups"]) > 1 else "", gain["high"] - gain["mean"]
        word = "neither more nor fewer beyond the noise"
        if gain["verdict"] != _VERDICTS[-1]:
            word = "it inherits errors" if gain["mean"] > 0 else "it shares fewer errors"
        told.append(
            f"Of the test images that the teacher gets wrong the student{at} gives the same wrong answer for "
            f"{shared['distilled']:.2f} %, the baseline for {shared['baseline']:.2f} %: "
            f"{gain['mean']:+.2f} ± {margin:.2f} points, {word}."
        )
    return told if len(told) < 2 else _few(told)


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
    taught = [each for each in results["comparisons"] if (each.get("settings") or {}).get("control", NONE) == NONE]
    keys = sorted({key for each in taught for key in each.get("recipe_differences") or ()})
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
