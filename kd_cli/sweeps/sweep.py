"""A sweep: what varies in it, its points' folders, and how a bad point is kept from stopping the others."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

from kd_cli import console
from kd_cli.config.overrides import VALUE_FOLLOWS, override_key
from kd_cli.errors import ConfigError, KDError, offer, suggest
from kd_cli.sweeps.point import Point, attempt, failed, logged, not_started

_MOST_POINTS = 100_000
_LONGEST_NAME = 120  # characters; most file systems stop at 255 bytes


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
        parser, counts = OverridesParser.create(loader), {}
        for place, argument in enumerate(self.asked):
            if "=" not in argument or argument.startswith("-") or self.asked[place - 1] in VALUE_FOLLOWS:
                continue
            override = parser.parse_override(argument)
            if override.is_sweep_override():
                key = override_key(argument)
                self.keys.add(key)
                counts[key] = 1  # of a key that is typed twice Hydra takes the last
                if override.is_discrete_sweep():
                    counts[key] = self._keep(place, override, _values(override), loader)
        check_points_number(self.keys, list(counts.values()))

    def _keep(self, place: int, override: Any, values: Sequence[str], loader: Any) -> int:
        """Leaves out what stands twice, whose points would share a folder, and group choices that do not exist.

        Hydra would refuse the whole sweep for one of those.

        Returns:
            How many values are left.
        """
        group, known = override.key_or_group, loader.get_group_options(override.key_or_group)
        times = Counter(values)  # in their order
        single = list(times)
        good = [value for value in single if not known or value in known] or single
        for value in sorted(set(single) - set(good), key=single.index):
            text = f"{group}: there is no {group} {value!r}{suggest(value, known)}"
            self.failures.append(failed(f"{group}={value}", KDError(text), exit_code=2))
        if len(single) < len(values):
            again = ", ".join(value for value, count in times.items() if count > 1)
            console.notice(f"{override.get_key_element()}: {again} stands there more than once; it is one point")
        if len(good) < len(values):
            self.arguments[place] = f"{override.get_key_element()}={','.join(good)}"
        return len(good)

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
        point = attempt(label, (lambda: logged(start, log)) if log else start)
        self.stopped = point["status"] == "interrupted"
        if point["status"] in ("failed", "diverged"):
            console.panel(f"point {hydra.job.num + 1} failed: {label}", point["error"])
        return point


def _values(override: Any) -> list[str]:
    """What a key is in each point, as Hydra types it; of too many only so many that they are seen to be.

    Raises:
        ConfigError: a range that has none or no end, or one inside a list.
    """
    try:
        values = list(islice(override.sweep_string_iterator(), _MOST_POINTS + 1))
    except Exception:  # Hydra's own are of several libraries, and none says which word it is about
        values = []
    if not values:
        key = override.get_key_element()
        raise ConfigError(
            f"{override.input_line} gives no values: a range has a step other than 0, ends behind its first number, "
            f"and stands by itself; type {offer(key, '1,2,3')} or {offer(key, 'range(1,4)')}"
        )
    return values


def _only_how(word: str) -> bool:
    """Whether an argument says how the points are run and not what they are."""
    of_hydra = ("hydra.launcher", "hydra/launcher", "hydra.sweep", "hydra.mode")
    afterwards = ("logger", "study.")  # where it is logged, and what a study does with what came of it
    return word.startswith(("-m", "--multirun")) or override_key(word).startswith((*of_hydra, *afterwards))


def _file_name(text: str) -> str:
    name = re.sub(r"[^\w.=,+~-]+", "-", text)
    return name if name == text and len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}-{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def check_points_number(keys: Iterable[str], counts: Sequence[int]) -> None:
    """Raises a ConfigError if a sweep has more points than Hydra can list, which it does before the first one runs."""
    if prod(counts) > _MOST_POINTS:
        raise ConfigError(
            f"{' '.join(sorted(keys))}: these are more than {_MOST_POINTS:,} points; type fewer values, or "
            "hydra/sweeper=optuna to search among them"
        )
