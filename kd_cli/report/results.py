"""All that a report says, as one plain object: results.json, which the page, the tables and the text are made of."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from os.path import relpath
from pathlib import Path
from statistics import fmean
from typing import Any

from kd_cli import __version__
from kd_cli.metrics.significance import PairedGain, exact_share, paired_gain
from kd_cli.report.collect import Collected, collect
from kd_cli.report.compare import Comparison, acts_as, comparisons, parts_of_comparisons
from kd_cli.report.groups import ROLES, Group, compared_keys, groups, spread, summary
from kd_cli.report.records import Run, mapping, plain
from kd_cli.report.rows import curves, differences, not_done, run_row, study_of, swept_keys, title, transfer_of
from kd_cli.report.tables import KINDS
from kd_cli.report.warnings import flags
from kd_cli.runs.folder import now
from kd_cli.runs.predictions import FILE

Results = dict[str, Any]
STUDENTS = ("baseline", "distilled")


def results_of(targets: Sequence[Path], command: Sequence[str]) -> Results:
    """Collects, compares and judges the runs below the targets.

    Args:
        command: what was typed behind `kd`.
    """
    found = collect(targets)
    compared = comparisons(found)
    axes = compared_keys(compared, swept_keys(found, compared))
    together = groups(compared, axes)
    runs = list(found.runs.values())
    ids = {run.path: f"r{number}" for number, run in enumerate(runs, start=1)}
    results: Results = {
        "title": title(targets, study_of(found)),
        "made": now(),
        "kd": __version__,
        "command": shlex.join(["kd", *command]),
        "sources": [str(target) for target in targets],
        "study": study_of(found),
        "transfer": transfer_of(found),
        "findings": [],
        "warnings": [*flags(runs, compared, together, axes), *found.warnings],
        "axes": axes,
        "runs": _runs(found, compared, axes, ids),
        "comparisons": _comparisons(compared, found, ids),
        "groups": [_group(group, compared) for group in together],
        "points_not_done": not_done(found),
        "differences": differences(runs, ids),
        "examples": [],
        "examples_rule": None,
        "classes": None,
    }
    add_details(results, runs, compared, together)
    return dict(plain(results))


def _runs(
    found: Collected, compared: Sequence[Comparison], axes: Sequence[str], ids: Mapping[Path, str]
) -> list[dict[str, Any]]:
    used = parts_of_comparisons(found)
    members: dict[Path, list[Comparison]] = {}
    for each in compared:
        for run in each.runs:
            members.setdefault(run.path, []).append(each)
    rows = [
        run_row(run, acts_as(run, used), members.get(run.path, ()), axes) | curves(run) for run in found.runs.values()
    ]
    for row, path in zip(rows, ids, strict=True):
        row["id"] = ids[path]
    _make_unique(rows)
    return rows


def _make_unique(rows: Sequence[dict[str, Any]]) -> None:
    """Names that several runs share are followed by what tells their folders apart."""
    shared: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        shared.setdefault(row["name"], []).append(row)
    for name, same in shared.items():
        for row in same if len(same) > 1 else []:
            path = Path(row["run"])
            row["name"] = f"{name} ({path.parent.name}/{path.name} {row['id']})"


def _comparisons(compared: Sequence[Comparison], found: Collected, ids: Mapping[Path, str]) -> list[dict[str, Any]]:
    return [
        {
            "id": f"c{number}",
            "run": str(each.folder.absolute()) if each.whole else None,
            "point": _point(each, found),
            "seed": each.seed,
            "settings": each.settings,
            **{role: ids[run.path] if (run := getattr(each, role)) else None for role in ROLES},
            "gain": each.gain,
            "recovered": round(each.recovered.mean, 2) if each.recovered else None,
            "recipe_differences": each.recipe_differences,
        }
        for number, each in enumerate(compared, start=1)
    ]


def _point(each: Comparison, found: Collected) -> str:
    sweep = found.sweep_folder(each.folder)
    if sweep is not None:
        name = relpath(each.folder.resolve(), sweep)
        for point in map(mapping, found.sweeps[sweep].get("points") or []):
            if point.get("folder") == name:
                return str(point.get("point"))
    return each.folder.name


def _group(group: Group, compared: Sequence[Comparison]) -> dict[str, Any]:
    numbers = {id(each): f"c{number}" for number, each in enumerate(compared, start=1)}
    share = group.recovered()
    return {
        "name": group.name,
        "settings": dict(group.settings),
        "seeds": [each.seed for each in group.comparisons],
        "comparisons": [numbers[id(each)] for each in group.comparisons],
        **{role: summary(group, role) for role in ROLES},
        "gain": _gain(group.gain()),
        "recovered": share and {key: each and round(each, 2) for key, each in vars(share).items()},
        "confusion": None,
        "per_class_gain": None,
        **{kind: dict.fromkeys(STUDENTS) for kind in KINDS},
        "agreement_when_wrong_gain": None,
    }


def _gain(gain: PairedGain | float | None) -> dict[str, Any] | None:
    if gain is None:
        return None
    if isinstance(gain, float):
        known: dict[str, Any] = {"mean": gain, "n": 1, "verdict": "was run with one seed: no verdict"}
        return known | {"std": None, "low": None, "high": None, "p_value": None}
    numbers = {"mean": gain.mean, "std": gain.std, "low": gain.mean - gain.margin, "high": gain.mean + gain.margin}
    rounded: dict[str, Any] = {key: round(each, 4) for key, each in numbers.items()}
    return rounded | {"p_value": gain.p_value, "n": gain.seeds, "verdict": gain.verdict}


def add_details(
    results: Results, runs: Sequence[Run], compared: Sequence[Comparison], together: Sequence[Group]
) -> None:
    """What predictions say; PyTorch is imported only where there are some."""
    if not any((run.path / FILE).exists() for run in runs):
        done = sum(run.done for run in runs)
        results["warnings"] += [f"none of the {done:,} tested runs has predictions.safetensors"] if done else []
        return
    from kd_cli.metrics.scores import AGREEMENT
    from kd_cli.report.examples import examples
    from kd_cli.report.scores import Judge, trim, with_teachers

    judge = Judge(runs, compared)
    judged, agreed = judge.judge(runs), with_teachers(judge, compared)
    for row, group in zip(results["groups"], together, strict=True):
        _add_group_details(row, group, judged, judge)
    too_large = trim(judged)
    for row, run in zip(results["runs"], runs, strict=True):
        row |= judged.get(run.path, {})
        if row["scores"] is not None:
            row["scores"] |= agreed.get(run.path) or dict.fromkeys(AGREEMENT)
    results |= examples(together, judge)
    results["warnings"] += [*judge.warnings, *([too_large] if too_large else [])]
    known = [[row["class"] for row in each["per_class"]] for each in judged.values()]
    if known and all(names == known[0] for names in known):
        results["classes"] = known[0]


def _add_group_details(row: dict[str, Any], group: Group, judged: Mapping[Path, dict[str, Any]], judge: Any) -> None:
    for role in STUDENTS:
        pairs = [(getattr(each, role), each.teacher) for each in group.comparisons]
        found = [agreed for pair in pairs if (agreed := judge.agreement(*pair)) is not None]
        for kind in KINDS:
            mean = spread([agreed[kind] for agreed in found if agreed[kind] is not None])
            row[kind][role] = mean["mean"] if mean else None
    row["agreement_when_wrong_gain"] = _inherited(group, judge)
    folders = [[each.baseline.path, each.distilled.path] for each in group.comparisons if each.baseline is not None]
    both = [[judged[path] for path in pair] for pair in folders if judged.keys() >= {*pair}]
    sizes = {len(each["confusion"]) for pair in both for each in pair}
    if len(sizes) != 1:
        return
    sums = [_sum([pair[place]["confusion"] for pair in both]) for place in (0, 1)]
    row["confusion"] = dict(zip(("baseline", "distilled"), sums, strict=True))
    row["per_class_gain"] = _per_class_gain([[each["per_class"] for each in pair] for pair in both])


def _inherited(group: Group, judge: Any) -> dict[str, Any] | None:
    """How much more a student agrees with a teacher that is wrong than its baseline: paired, where both are known."""
    pairs = [[judge.agreement(getattr(each, role), each.teacher) for role in STUDENTS] for each in group.comparisons]
    known = [[each and each["agreement_when_wrong"] for each in pair] for pair in pairs]
    more = [taught - alone for alone, taught in known if alone is not None and taught is not None]
    return _gain(paired_gain(more) if len(more) > 1 else more[0] if more else None)


def _sum(matrices: Sequence[Sequence[Sequence[int]]]) -> list[list[int]]:
    return [[sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]


def _per_class_gain(pairs: Sequence[Sequence[Sequence[Mapping[str, Any]]]]) -> list[dict[str, Any]]:
    """The accuracy of each class, mean over seeds, with and without distillation."""
    rows = []
    for place, first in enumerate(pairs[0][0]):
        each = [[pair[role][place] for pair in pairs] for role in (0, 1)]
        tops = [[row["top1"] and exact_share(row["top1"], row["images"]) for row in same] for same in each]
        known = all(top is not None for each in tops for top in each)
        baseline, distilled = (fmean(each) if known else None for each in tops)
        gain = distilled - baseline if baseline is not None and distilled is not None else None
        rows.append({"class": first["class"], "baseline": baseline, "distilled": distilled, "gain": gain})
    return [{key: round(each, 2) if isinstance(each, float) else each for key, each in row.items()} for row in rows]
