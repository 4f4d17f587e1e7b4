"""What a reader must know before believing the numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from kd_cli.config.controls import NONE
from kd_cli.errors import listed
from kd_cli.metrics.significance import accuracy_error
from kd_cli.report.collect import teacher_digests
from kd_cli.report.compare import Comparison, test_images
from kd_cli.report.groups import Group, confounded
from kd_cli.report.records import Run, mapping
from kd_cli.report.settings import brief
from kd_cli.runs.checkpoint import damage_by_averaging

_SHOWN = 3  # names in a warning
_SEEDS = 6  # from so many on the exact test can be significant at 5 %
_COARSE = 0.5  # percentage points of standard error from the test images alone that are worth a word


def flags(
    runs: Sequence[Run], comparisons: Sequence[Comparison], groups: Sequence[Group], axes: Sequence[str]
) -> list[str]:
    """Sentences, the gravest first."""
    return [
        *filter(None, (damage_by_averaging(run.path) for run in runs)),
        *_recipes(comparisons, groups, axes),
        *_pairs(comparisons),
        *_seeds(groups),
        *_unfinished(runs),
        *_mixed(runs),
        *_test_sets(runs),
    ]


def _recipes(comparisons: Sequence[Comparison], groups: Sequence[Group], axes: Sequence[str]) -> Iterator[str]:
    keys = confounded(comparisons, axes)
    if keys:
        yield (
            f"the recipes differ in more than what is compared ({', '.join(axes) or 'nothing'}): {_some(keys)}; such "
            "runs are not averaged, and a difference between their groups is not that of one key alone"
        )
    grid = 1
    for axis in axes:
        grid *= len({str(group.settings[axis]) for group in groups})
    if len(axes) > 1 and len({str(group.settings) for group in groups}) < grid:
        yield f"not every combination of {', '.join(axes)} is there: compare groups that differ in one of them only"


def _pairs(comparisons: Sequence[Comparison]) -> Iterator[str]:
    for key, examples in _differing(comparisons).items():
        one, other = examples[0].recipe_differences[key]
        yield (
            f"the gain is not distillation's alone in {_count(len(examples), 'comparison')}: {key} is {brief(one)} "
            f"for the baseline and {brief(other)} for the distilled student"
        )
    alone = [each for each in comparisons if each.baseline is None]
    if alone:
        yield (
            f"{_count(len(alone), 'distilled run')} without a baseline: no run here has the same seed, data, network "
            f"and recipe ({_some([each.folder.name for each in alone])}); kd train-baseline makes one"
        )
    for each in comparisons:
        prints = {str(run.data.get("fingerprint")) for run in each.runs}
        if len(prints) > 1:
            yield f"{each.folder}: its runs saw different data (fingerprints {_some([one[:12] for one in prints])})"


def _differing(comparisons: Sequence[Comparison]) -> dict[str, list[Comparison]]:
    found: dict[str, list[Comparison]] = {}
    for each in comparisons:
        for key in each.recipe_differences if each.settings.get("control", NONE) == NONE else ():
            found.setdefault(key, []).append(each)
    return found


def _seeds(groups: Sequence[Group]) -> Iterator[str]:
    single = [group for group in groups if len(group.comparisons) == 1]
    if single:
        names = "" if len(groups) == 1 else f" in {_count(len(single), 'group')} ({_some([g.name for g in single])})"
        yield f"one seed{names}: there is no spread, so nothing says whether the difference is noise; try seed=0,1,2"
    few = min((len(group.comparisons) for group in groups if len(group.comparisons) > 1), default=_SEEDS)
    if few < _SEEDS:
        yield (
            f"{few} seeds: the exact test cannot give a p-value below {2 ** (1 - few):g} with so few (six seeds reach "
            "0.031); the interval, which takes the differences for normal, is what the verdict stands on"
        )
    for group in groups:
        gains = [each.gain for each in group.comparisons if each.gain is not None]
        if len(gains) > 1 and len(set(gains)) == 1:
            yield f"{group.name}: all {len(gains)} seeds have the same gain, so its interval has no width: run more"
        if group.repeated:
            seeds = sorted({str(each.seed) for each in group.repeated})
            taught = {str(teacher_digests(each.distilled)) for each in (*group.comparisons, *group.repeated)}
            others = ", and its teachers are not the same" if len(taught) > len(group.comparisons) else ""
            yield f"{group.name}: seed {', '.join(seeds)} was run more than once{others}; only the newest run counts"


def _unfinished(runs: Sequence[Run]) -> Iterator[str]:
    for status in ("running", "interrupted", "failed", "diverged", "pruned", "unknown"):
        names = [f"{run.path.parent.name}/{run.path.name}" for run in runs if run.status == status and not run.done]
        if names:
            yield f"{_count(len(names), 'run')} {status}, without a test accuracy: {_some(names)}"


def _mixed(runs: Sequence[Run]) -> Iterator[str]:
    facts: dict[str, list[Any]] = {
        "versions of kd": [mapping(run.record.get("packages")).get("kd-cli") for run in runs],
        "commits of the working directory": [run.record.get("git_commit") for run in runs],
        "versions of PyTorch": [mapping(run.record.get("packages")).get("torch") for run in runs],
        "devices": [run.record.get("device") for run in runs],
        "numbers of threads": [run.record.get("threads") for run in runs],
    }
    for what, values in facts.items():
        different = list(dict.fromkeys(str(value) for value in values if value is not None))
        if len(different) > 1:
            yield f"different {what}: {_some([value[:12] for value in different])}; last digits may differ for that"
    dirty = [run for run in runs if run.record.get("git_dirty")]
    if dirty:
        yield (
            f"{_count(len(dirty), 'run')} made in a repository with uncommitted changes; git.diff in the run's folder "
            "has them"
        )


def _test_sets(runs: Sequence[Run]) -> Iterator[str]:
    found: dict[tuple[str, int], list[float]] = {}
    for run in runs:
        images = test_images(run)
        if images and run.done:
            found.setdefault((str(run.data.get("name")), images), []).append(run.result["test_top1"])
    for (name, images), tops in found.items():
        middle = min(tops, key=lambda top: abs(top - 50))
        error = accuracy_error(middle, images)
        if error >= _COARSE:
            yield (
                f"{name} has {images:,} test images: an accuracy of {middle:.1f} % has a standard error of {error:.2f} "
                "points from the choice of these images alone; spreads over seeds do not hold that"
            )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _some(names: Sequence[str]) -> str:
    return listed(names, _SHOWN)
