"""A sweep: what varies in it, its points' folders, and how a bad point is kept from stopping the others."""

from __future__ import annotations

import hashlib
import re
import shlex
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_cli import console
from kd_cli.arguments import VALUE_FOLLOWS
from kd_cli.config import override_key
from kd_cli.errors import Interrupted, KDError, Pruned, Terminated, describe_error, suggest
from kd_cli.hydra_checks import check_points_number, count_values

Point = Mapping[str, Any]

LOG = "log.txt"  # in the folder of a point: what it said, or, where it said it on the screen, why it failed

_FINE = ("completed", "ready", "pruned")

_MOST_LISTED = 20  # points that did not finish; the records have all of them

_LONGEST_NAME = 120  # characters; most file systems stop at 255 bytes


@dataclass(frozen=True)
class Swept:
    """What came of a sweep.

    Args:
        points: one record each.
        found: by a search (`hydra/sweeper=optuna`): see `Search.summary`.
    """

    points: Sequence[Point]
    found: Mapping[str, Any] | None = None


class Sweep:
    """The overrides of one command line, seen as a sweep.

    Args:
        arguments: Hydra's command line.
        loader: Hydra's config loader, which knows the groups.
        params: `hydra.sweeper.params`, what a preset sweeps over; what is typed wins.

    Attributes:
        asked: the arguments with what the preset sweeps over, as if it had been typed.
        arguments: those of them that can be run.
    """

    def __init__(self, arguments: Sequence[str], loader: Any, params: Mapping[str, str]) -> None:
        from hydra.core.override_parser.overrides_parser import OverridesParser

        typed = {override_key(argument) for argument in arguments}
        self.asked = [*arguments, *(f"{key}={values}" for key, values in params.items() if key not in typed)]
        self.arguments = list(self.asked)
        self.failures: list[Point] = []
        self.keys: set[str] = set()
        self.stopped = False  # by Ctrl-C or SIGTERM; Hydra would go on with the next point
        parser, counts = OverridesParser.create(loader), []
        for place, argument in enumerate(self.asked):
            if "=" not in argument or argument.startswith("-") or self.asked[place - 1] in VALUE_FOLLOWS:
                continue
            override = parser.parse_override(argument)
            if override.is_sweep_override():
                self.keys.add(override_key(argument))
                counts.append(count_values(override))
                known = loader.get_group_options(override.key_or_group)
                if known and override.is_discrete_sweep():
                    self._drop_unknown(place, override, known)

        check_points_number(self.keys, counts)

    def _drop_unknown(self, place: int, override: Any, known: Sequence[str]) -> None:
        """Takes group choices that do not exist out of the sweep: Hydra would refuse all of it for one of them."""
        choices = list(override.sweep_string_iterator())
        good = [choice for choice in choices if choice in known]
        if not good or len(good) == len(choices):
            return
        group = override.key_or_group
        self.arguments[place] = f"{override.get_key_element()}={','.join(good)}"
        for choice in choices:
            if choice not in known:
                text = f"{group}: there is no {group} {choice!r}{suggest(choice, known)}"
                self.failures.append(failed(f"{group}={choice}", KDError(text), exit_code=2))

    def label(self, overrides: Sequence[str]) -> str:
        """What makes one point different from the others: `seed=1 loss.temperature=4`; `point` where there is one."""
        return " ".join(override for override in overrides if override_key(override) in self.keys) or "point"

    @property
    def name(self) -> str:
        """`${kd_sweep:}`: what varies and, as a digest, what does not; more values of a key make no other sweep."""
        fixed = [word for word in self.arguments if override_key(word) not in self.keys and not _only_how(word)]
        return f"{_file_name(','.join(sorted(self.keys)) or 'all')}-{_digest(' '.join(sorted(fixed)))}"

    def folder(self, overrides: Sequence[str]) -> str:
        """`${kd_point:}`: a folder's name, the same at every start of the same sweep."""
        return _file_name(",".join(sorted(self.label(overrides).split(" "))))

    def guard(self, start: Callable[[], Point], log: Path | None) -> Point:
        """Runs one point in this process. A failure is shown and written to its log, if any, and the sweep goes on."""
        from hydra.core.hydra_config import HydraConfig

        hydra = HydraConfig.get()
        label = self.label(hydra.overrides.task)
        if self.stopped:
            return not_started(label)
        console.say(f"\npoint {hydra.job.num + 1}: {label}", style="bold")
        point = attempt(label, (lambda: _explained(start, log)) if log else start)
        self.stopped = point["status"] == "interrupted"
        if point["status"] in ("failed", "diverged"):
            console.panel(f"point {hydra.job.num + 1} failed: {label}", point["error"])
        return point


def _only_how(word: str) -> bool:
    """Whether an argument says how the points are run and not what they are."""
    of_hydra = ("hydra.launcher", "hydra/launcher", "hydra.sweep", "hydra.mode")
    afterwards = ("logger", "study.")  # where it is logged, and what a study does with what came of it
    return word.startswith(("-m", "--multirun", *of_hydra)) or override_key(word).startswith(afterwards)


def _file_name(text: str) -> str:
    name = re.sub(r"[^\w.=,+~-]+", "-", text)
    return name if name == text and len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}-{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def _explained(start: Callable[[], Point], log: Path) -> Point:
    """Runs it; what went wrong is left in the log, too."""
    try:
        return start()
    except Exception as error:
        with suppress(OSError):
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(describe_error(error).text + "\n\n" + "".join(traceback.format_exception(error)))
        raise


def attempt(label: str, start: Callable[[], Point]) -> Point:
    """Runs one point; whatever goes wrong is in its record, so that the others run."""
    try:
        return {"point": label, "status": "completed", **start()}
    except (Interrupted, Terminated) as error:
        return {**failed(label, error), "status": "interrupted"}
    except Pruned as error:
        return {"point": label, "status": "pruned", "error": str(error), "val_top1": error.val_top1}
    except Exception as error:
        return failed(label, error)


def not_started(label: str) -> Point:
    """The record of a point whose turn did not come."""
    return {"point": label, "status": "not started", "error": "the sweep was stopped before it"}


def failed(label: str, error: Exception, exit_code: int | None = None) -> Point:
    """The record of a point that did not finish."""
    problem = describe_error(error)
    status = "diverged" if problem.exit_code == 4 else "failed"
    return {"point": label, "status": status, "error": problem.text, "exit_code": exit_code or problem.exit_code}


def summarize(points: Sequence[Point]) -> None:
    """One line for each point; where there are several seeds, one for what they have in common, and the gain."""
    from kd_cli.statistics import paired_gain

    columns: tuple[str, ...] = ("point", "status", "test top-1 %", "val top-1 %", "gain over baseline")
    trained = any("test_top1" in point.get("distilled", point) for point in points)
    if not trained:
        columns = columns[:2]
    rows = [(point["point"], point["status"], *numbers(point))[: len(columns)] for point in points]
    console.say()
    console.table(f"{len(points)} points", columns, rows, left=("point", "status"))
    groups = _by_seed(points)
    if len(groups) == 1:
        gains = [gain for gain in _gains(groups, next(iter(groups))) if gain is not None]
        if len(gains) > 1:
            console.say(paired_gain(gains).sentence())
    elif any(len(seeds) > 1 for seeds in groups.values()):
        columns = ("point", "seeds", "test top-1 %, mean ± std", "gain, mean ± 95 % interval", "p", "verdict")
        rows = [(name, *_over_seeds(groups, name)) for name in groups]
        console.table("Over seeds", columns, rows, left=("point", "verdict"))
    folders = [Path(point["folder"]).parent for point in points if "folder" in point]
    if trained and folders:
        console.say(f"kd report {shlex.quote(console.short_path(folders[0]))} draws it")


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

    from kd_cli.statistics import paired_gain

    tops = [numbers(point)[0] for point in groups[name].values()]
    gains = [gain for gain in _gains(groups, name) if gain is not None]
    said = f"{fmean(tops):.2f} ± {stdev(tops):.2f}" if len(tops) > 1 else f"{tops[0]:.2f}"
    if len(gains) < 2:
        return len(tops), said, None, None, None
    gain = paired_gain(gains)
    return len(tops), said, f"{gain.mean:+.2f} ± {gain.margin:.2f}", f"{gain.p_value:.3f}", gain.verdict


def _gains(groups: Mapping[str, Mapping[int, Point]], name: str) -> list[float | None]:
    """Gain over the baseline of the same seed: a comparison's own, or the sweep's point whose loss has no weight."""
    alike = [seeds for other, seeds in groups.items() if other != name and _but_loss(other) == _but_loss(name)]
    baseline = next((seeds for seeds in alike if all(each.get("weight") == 0 for each in seeds.values())), {})
    gains = []
    for seed, point in groups[name].items():
        gain = point.get("gain")
        if gain is None and seed in baseline:
            gain = round(point["test_top1"] - baseline[seed]["test_top1"], 2)
        gains.append(gain)
    return gains


def _but_loss(name: str) -> list[str]:
    """What a point and its baseline share: another network or recipe is no baseline."""
    return [word for word in name.split() if override_key(word).split(".")[0] != "loss"]


def list_unfinished(points: Sequence[Point]) -> None:
    """Each point that did not finish: why, where it says more, and what to type to run it by itself."""
    bad = [point for point in points if point["status"] not in (*_FINE, "not started")]
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


def check_points(points: Sequence[Point]) -> None:
    """Raises a KDError if a point failed, so that the exit code says so."""
    bad = [point for point in points if point["status"] not in _FINE]
    if bad:
        counts = Counter(point["status"] for point in bad)
        kinds = ", ".join(f"{count} {status}" for status, count in counts.items())
        codes = {point.get("exit_code") for point in bad}
        kind = next((kind for kind in (Interrupted, Terminated) if kind.exit_code in codes), KDError)
        raise kind(f"{len(bad)} of {len(points)} points did not finish: {kinds}")


def numbers(point: Point) -> tuple[Any, Any, Any]:
    """Test and validation accuracy in percent, and the gain over the baseline; None where there is none."""
    chosen = point.get("distilled", point)
    return chosen.get("test_top1"), chosen.get("val_top1"), point.get("gain")


def present_search(found: Mapping[str, Any] | None) -> None:
    """What a search found, and what its best number is worth."""
    if not found or not found["best"]:
        return
    best = found["best"]
    counts = ", ".join(f"{count} {status}" for status, count in found["points"].items())
    console.say(f"\nBest of {sum(found['points'].values())} points ({counts}): {best['point']}", style="bold")
    console.say(f"{best['val_top1']:.2f} % on validation, {best['test_top1']:.2f} % of the test images")
    if best["as_good"]:
        console.say(
            f"As many on validation have {best['as_good']} other points: it is the first of them, and no better"
        )
    console.say(
        "Chosen for its accuracy on validation, which is therefore optimistic; the test images chose nothing. "
        "Whether it is better than another choice, new seeds tell (with -m seed=1,2,3 behind it):"
    )
    console.say(f"  {best['command']}")
    if found["importances"]:
        shares = ", ".join(f"{key} {100 * value:.0f} %" for key, value in found["importances"].items())
        console.say(f"What the difference between good and bad trials hangs on (PED-ANOVA): {shares}")
