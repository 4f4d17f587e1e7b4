"""The tables of a report, for the console and for Markdown: titles, columns and cells as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kd_cli.config.recipe import chosen_by
from kd_cli.metrics.significance import PairedGain, p_text

STAGES = ("teacher", "baseline", "distilled")
KINDS = ("agreement", "agreement_when_wrong")  # on all images, and on those on which the teacher is wrong


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        title: what it is about.
        columns: their names.
        rows: cells as text; None where there is nothing.
        left: the columns that hold text.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | None]]
    left: Sequence[str]


def tables(results: Mapping[str, Any]) -> Iterator[Table]:
    """Those that a reader wants to see first; a table without rows is left out."""
    made = (
        groups_table(results),
        agreement_table(results),
        cost_table(results),
        transfer_table(results),
        loose_table(results),
        not_done_table(results),
    )
    yield from (table for table in made if table.rows)


def groups_table(results: Mapping[str, Any]) -> Table:
    """Teacher, baseline and distilled student, and the gain over the baseline."""
    columns = ("", "seeds", "teacher", "baseline", "distilled", "gain, 95 % interval", "p", "recovered %", "verdict")
    rows = [
        [
            group["name"],
            str(len(group["seeds"])),
            *(mean_text(group[stage] and group[stage]["test_top1"]) for stage in STAGES),
            _gain(group["gain"]),
            None if (group["gain"] or {}).get("p_value") is None else p_text(group["gain"]["p_value"]),
            _recovered(group["recovered"]),
            group["gain"] and f"distillation {group['gain']['verdict']}",
        ]
        for group in results["groups"]
    ]
    return Table("Test top-1 in percent (mean ± std over seeds)", columns, rows, ("", "verdict"))


def agreement_table(results: Mapping[str, Any]) -> Table:
    """What the students have in common with the teacher, untaught and taught: its answers, and its errors."""
    columns = ("", "baseline", "distilled", "baseline, teacher wrong", "distilled, teacher wrong")
    rows = [
        [group["name"], *(_number(group[kind][role]) for kind in KINDS for role in ("baseline", "distilled"))]
        for group in results["groups"]
        if any(group[kind][role] is not None for kind in KINDS for role in ("baseline", "distilled"))
    ]
    return Table("Same first choice as the teacher, percent of test images", columns, rows, ("",))


def cost_table(results: Mapping[str, Any]) -> Table:
    """What networks cost, where that was measured: one row for those that cost the same."""
    columns = ("network", "parameters", "bytes", "FLOPs per image", "latency ms", "images/s")
    rows: dict[tuple[str, ...], list[str]] = {}
    for run in results["runs"]:
        if speed := run["speed"]:
            numbers = (run["parameters"], speed["bytes"], speed["flops_per_image"])
            times = (f"{speed['latency_ms']:.3f}", f"{speed['images_per_second']:,.0f}")
            rows.setdefault((*(f"{number:,}" for number in numbers), *times), []).append(run["stage"])
    cells = [[", ".join(dict.fromkeys(stages)), *numbers] for numbers, stages in rows.items()]
    return Table("What the networks cost", columns, cells, ("network",))


def transfer_table(results: Mapping[str, Any]) -> Table:
    """Top-1 on other data, where that was tried."""
    found = results["transfer"] or {"roles": {}, "dataset": ""}
    metrics = [metric for metric in METRIC_NAMES if any(metric in role for role in found["roles"].values())]
    rows = [
        [name, str(role["seeds"]), *(mean_text(role.get(each)) for each in metrics)]
        for name, role in found["roles"].items()
    ]
    columns = ("network", "seeds", *(METRIC_NAMES[metric] for metric in metrics))
    return Table(f"Top-1 % on {found['dataset']}, mean ± std", columns, rows, ("network",))


def loose_table(results: Mapping[str, Any]) -> Table:
    """Runs that no comparison uses."""
    used = {each[stage] for each in results["comparisons"] for stage in STAGES}
    names = ("name", "status", "test_top1", "test_top1_last", "val_top1", "best_epoch", "parameters")
    columns: tuple[str, ...] = ("run", "status", "test %", "last %", "val %", "epoch", "parameters")
    loose = [run for run in results["runs"] if run["id"] not in used]
    rows = [[_number(run[name]) for name in names] for run in loose]
    if any(scores := [chosen_by(run, run.get("select_by", "top1")) for run in loose]):
        columns += ("chosen by",)
        rows = [[*row, score or None] for row, score in zip(rows, scores, strict=True)]
    return Table("Runs outside of comparisons", columns, rows, ("run", "status", "chosen by"))


def not_done_table(results: Mapping[str, Any]) -> Table:
    """Points that did not finish, and how to run them again."""
    columns = ("point", "status", "reason", "log", "again")
    rows = [
        [each["point"], each["status"], str(each["error"] or "").partition("\n")[0] or None, each["log"], each["rerun"]]
        for each in results["points_not_done"]
    ]
    return Table("Not finished", columns, rows, columns)


def mean_text(found: Mapping[str, Any] | None) -> str | None:
    """`97.02 ± 0.21`."""
    if found is None:
        return None
    return f"{found['mean']:.2f}" + ("" if found["std"] is None else f" ± {found['std']:.2f}")


def _gain(gain: Mapping[str, Any] | None) -> str | None:
    if gain is None:
        return None
    interval = "" if gain["low"] is None else f" ({gain['low']:+.2f} … {gain['high']:+.2f})"
    return f"{gain['mean']:+.2f}{interval}"


def _recovered(share: Mapping[str, Any] | None) -> str | None:
    if share is None:
        return None
    return f"{share['mean']:.0f}" + ("" if share["low"] is None else f" ({share['low']:.0f} … {share['high']:.0f})")


def _number(value: Any) -> str | None:
    if isinstance(value, float):
        return f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else value


def gain_sentence(metric: str, gain: Mapping[str, Any]) -> str:
    """A paired gain on other data, in words."""
    numbers = PairedGain(**{key: gain[key] for key in ("mean", "std", "margin", "p_value", "seeds")})
    return numbers.sentence(f"{METRIC_NAMES[metric]} top-1")


# metric → how people call it
METRIC_NAMES = {"zero_shot": "zero-shot", "zero_shot_open": "zero-shot, all classes", "probe": "linear probe"}
