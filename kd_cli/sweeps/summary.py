"""What came of a sweep, for a person."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_cli import console
from kd_cli.config.overrides import override_key
from kd_cli.sweeps.point import PENDING, Point, is_fine, numbers

_MOST_LISTED = 20  # points that did not finish; the records have all of them


@dataclass(frozen=True)
class Swept:
    """What came of a sweep.

    Args:
        points: one record each.
        folder: of the sweep; None where it wrote nothing.
        found: by a search (`hydra/sweeper=optuna`): see `Search.summary`.
    """

    points: Sequence[Point]
    folder: Path | None = None
    found: Mapping[str, Any] | None = None


def summarize(points: Sequence[Point], folder: Path | None) -> None:
    """One line for each point; where there are several seeds, one for what they have in common, and the gain."""
    from kd_cli.metrics.significance import paired_gain

    columns: tuple[str, ...] = ("point", "status", "test top-1 %", "val top-1 %", "gain over baseline")
    trained = any("test_top1" in point.get("distilled", point) for point in points)
    if not trained:
        columns = columns[:2]
    rows = [(point["point"], point["status"], *numbers(point))[: len(columns)] for point in points]
    console.say()
    console.table("1 point" if len(points) == 1 else f"{len(points)} points", columns, rows, left=("point", "status"))
    groups = _by_seed(points)
    if len(groups) == 1:
        gains = [gain for gain in _gains(groups, next(iter(groups))) if gain is not None]
        if len(gains) > 1:
            console.say(paired_gain(gains).sentence())
    elif any(len(seeds) > 1 for seeds in groups.values()):
        columns = ("point", "seeds", "test top-1 %, mean ± std", "gain, mean ± 95 % interval", "p", "verdict")
        rows = [(name, *_over_seeds(groups, name)) for name in groups]
        console.table("Over seeds", columns, rows, left=("point", "verdict"))
    if trained and folder is not None:
        console.say(f"kd report {shlex.quote(console.short_path(folder))} draws it")


def _by_seed(points: Sequence[Point]) -> dict[str, dict[int, Point]]:
    """What a point is without its seed → seed → the completed point."""
    groups: dict[str, dict[int, Point]] = {}
    for point in points:
        if point["status"] == "completed" and "seed" in point:
            words = [word for word in str(point["point"]).split() if override_key(word) != "seed"]
            groups.setdefault(" ".join(words), {})[point["seed"]] = point
    return groups


def _over_seeds(groups: Mapping[str, Mapping[int, Point]], name: str) -> tuple[Any, ...]:
    from statistics import fmean, stdev

    from kd_cli.metrics.significance import p_text, paired_gain

    tops = [numbers(point)[0] for point in groups[name].values()]
    gains = [gain for gain in _gains(groups, name) if gain is not None]
    said = f"{fmean(tops):.2f} ± {stdev(tops):.2f}" if len(tops) > 1 else f"{tops[0]:.2f}"
    if len(gains) < 2:
        return len(tops), said, None, None, None
    gain = paired_gain(gains)
    return len(tops), said, f"{gain.mean:+.2f} ± {gain.margin:.2f}", p_text(gain.p_value), gain.verdict


def _gains(groups: Mapping[str, Mapping[int, Point]], name: str) -> list[float | None]:
    """Gain over the baseline of the same seed: a comparison's own, or the sweep's point whose loss has no weight."""
    from kd_cli.metrics.significance import gain_over

    alike = [seeds for other, seeds in groups.items() if other != name and _but_loss(other) == _but_loss(name)]
    baseline = next((seeds for seeds in alike if all(each.get("weight") == 0 for each in seeds.values())), {})
    gains = []
    for seed, point in groups[name].items():
        gain = point.get("gain")
        if gain is None and seed in baseline:
            gain = gain_over(baseline[seed], point)
        gains.append(gain)
    return gains


def _but_loss(name: str) -> list[str]:
    """What a point and its baseline share: another network or recipe is no baseline."""
    return [word for word in name.split() if override_key(word).split(".")[0] != "loss"]


def list_unfinished(points: Sequence[Point]) -> None:
    """Each point that did not finish: why, where it says more, and what to type to run it by itself."""
    bad = [point for point in points if point["status"] != "not started" and not is_fine(point)]
    if bad:
        console.say("Not finished; the last line of each goes on with it by itself:")
    for point in bad[:_MOST_LISTED]:
        console.say(f"\n{point['point']}: {point['status']}", style="bold")
        console.say("\n".join(f"  {line}" for line in str(point["error"]).splitlines()))
        if point.get("log"):
            console.say(f"  log: {console.short_path(point['log'])}")
        if point.get("rerun"):
            console.say(f"  {point['rerun']}")
    if len(bad) > _MOST_LISTED:
        console.say(f"\nand {len(bad) - _MOST_LISTED} more; --json lists all of them")


def list_pending(points: Sequence[Point]) -> None:
    """How to hear of the points whose jobs go on without the command."""
    pending = [point for point in points if point["status"] in PENDING and is_fine(point)]
    if pending:
        counts = ", ".join(f"{count} {status}" for status, count in Counter(p["status"] for p in pending).items())
        console.say(
            f"{counts}: they go on without this command. Type it without --detach to wait for them; kd list runs shows "
            "which run"
        )


def present_search(found: Mapping[str, Any] | None) -> None:
    """What a search found, and what its best number is worth."""
    if not found or not found["best"]:
        return
    best = found["best"]
    counts = ", ".join(f"{count} {status}" for status, count in found["points"].items())
    console.say(f"\nBest of {sum(found['points'].values())} points ({counts}): {best['point']}", style="bold")
    console.say(f"{best['said']}, {best['test_top1']:.2f} % of the test images")
    if best["as_good"]:
        console.say(
            f"As many on validation have {best['as_good']} other points: it is the first of them, and no better"
        )
    console.say(
        "Chosen for its score on validation, which is therefore optimistic; the test images chose nothing. "
        "Whether it is better than another choice, new seeds tell (with -m seed=1,2,3 behind it):"
    )
    console.say(f"  {best['command']}")
    if found["importances"]:
        shares = ", ".join(f"{key} {100 * value:.0f} %" for key, value in found["importances"].items())
        console.say(f"What the difference between good and bad trials hangs on (PED-ANOVA): {shares}")
