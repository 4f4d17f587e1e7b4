"""The points of one sweep: how each is run, and what came of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from kd_cli import console
from kd_cli.config.base import TRIAL
from kd_cli.config.compose import all_overrides
from kd_cli.config.overrides import flags, hydra_quote, override_key, without_added
from kd_cli.runs.identity import check_free
from kd_cli.runs.provenance import provenance, rerun_line
from kd_cli.runs.sweep_folder import SweepDir
from kd_cli.storage.files import without_empty_folders
from kd_cli.sweeps.point import LOG, Point, is_fine, not_started
from kd_cli.sweeps.sweep import Sweep
from kd_cli.sweeps.worker import Work

if TYPE_CHECKING:
    from kd_cli.config.alike import Pattern


Run = Callable[[Sequence[Work], int], Sequence[Point]]  # the second: how many points earlier batches had


class Alone(Protocol):
    """Runs a point from its own command line; importable, since it travels to other processes."""

    def __call__(self, arguments: Sequence[str], *, pattern: Pattern | None) -> Point: ...


class Place(NamedTuple):
    """What is known of a point before it runs.

    Args:
        task, hydra: its overrides, and those of Hydra.
        sweep: the sweep's folder.
        folder: its own.
        variables: of the environment, that its configuration sets.
    """

    task: Sequence[str]
    hydra: Sequence[str]
    sweep: Path
    folder: Path
    variables: Mapping[str, str]


def place_of(hydra: Any) -> Place:
    """Of the node `hydra` of a point's configuration."""
    folder = Path(os.path.abspath(Path(str(hydra.sweep.dir), str(hydra.sweep.subdir))))  # noqa: PTH100 - as Hydra
    variables = {name: str(value) for name, value in hydra.job.env_set.items()}
    return Place([*hydra.overrides.task], [*hydra.overrides.hydra], sweep_folder(hydra), folder, variables)


def sweep_folder(hydra: Any) -> Path:
    """Where all points of a sweep are, by the node `hydra` of its configuration."""
    return Path(str(hydra.sweep.dir)).absolute()


class Points:
    """The points of a sweep: Hydra calls it for each that runs here, our launcher has it run all of them apart.

    Args:
        study: of which the sweep is part, or None.
        here: runs a point in this process, from its composed configuration.
        alone: runs one from its own command line.
        writes: whether the points do; if not, each is to run here, and the sweep has no folder.
        detach: whether the points are only to be submitted.
    """

    def __init__(
        self,
        sweep: Sweep,
        study: Any,
        command: str,
        arguments: Sequence[str],
        here: Callable[[Any], Point],
        alone: Alone,
        *,
        writes: bool,
        detach: bool,
    ) -> None:
        self.records: list[Point] = []
        self.writes, self.detach = writes, detach
        self.found: Mapping[str, Any] | None = None  # by a search
        self.unknown = sweep.failures  # points of a group's choices that are not there
        self._sweep, self._study, self._command, self._arguments = sweep, study, command, arguments
        self._here, self._alone = here, alone
        self._environment = dict(os.environ)
        self._folder: SweepDir | None = None

    def __call__(self, config: Any) -> None:
        from hydra.core.hydra_config import HydraConfig

        place = place_of(HydraConfig.get())
        self.open(place.sweep)
        log = place.folder / LOG if self.writes else None
        self._add([place], [self._sweep.guard(partial(self._here, config), log)])

    def open(self, folder: Path) -> SweepDir | None:
        """Takes the sweep's folder; None where nothing is written."""
        if not self.writes:
            check_free(folder, "hydra.sweep.dir")
        elif self._folder is None:
            facts = {**provenance(self._command, self._arguments), "keys": sorted(self._sweep.keys)}
            diff = facts.pop("git_diff", "")
            facts["git_diff_sha256"] = hashlib.sha256(diff.encode()).hexdigest() if diff else None
            self._folder = SweepDir(folder, facts | {"study": self._study})
        return self._folder

    @property
    def folder(self) -> Path | None:
        """The sweep's, if it has one."""
        return None if self._folder is None else self._folder.path

    def close(self) -> None:
        """Records what came of the points."""
        if self._folder is not None:
            self._folder.close(self.records)

    def run_apart(self, places: Sequence[Place], run: Run, pattern: Callable[[Sequence[str]], Pattern | None]) -> None:
        """Has every point run in a process of its own.

        Args:
            pattern: what a command line, without its flags, is alike; its process need not compose it then.
        """
        self.open(places[0].sweep)
        works = [self._work(place, pattern) for place in places]
        if self._sweep.stopped:  # in an earlier batch; Hydra would go on
            points = [not_started(work.label) for work in works]
        else:
            points = list(run(works, len(self.records)))
        self._add(places, points)
        over = ("interrupted", "not started", "running")  # the last: on a cluster, and the user did not wait
        self._sweep.stopped = any(point["status"] in over and not is_fine(point) for point in points)

    def command_for(self, overrides: Sequence[str]) -> str:
        """What to type to run one point by itself, in a folder of its own."""
        typed = without_added(self._arguments, overrides)
        return rerun_line({"command": self._command, "arguments": [*flags(self._arguments), *typed]})

    def _work(self, place: Place, pattern: Callable[[Sequence[str]], Pattern | None]) -> Work:
        environment = {**self._environment, **place.variables} if place.variables else self._environment
        words = _alone(self._arguments, place, str(place.folder))
        start = partial(self._alone, words, pattern=pattern(all_overrides(words)))
        return Work(self._sweep.label(place.task), place.folder, environment, start)

    def _add(self, places: Sequence[Place], points: Sequence[Point]) -> None:
        """Keeps what came of points, with where they wrote and what to type to run one of them by itself."""
        self.records += [{**point, **self._trace(place)} for place, point in zip(places, points, strict=True)]

    def _trace(self, place: Place) -> Point:
        log = place.folder / LOG
        arguments = _alone(self._arguments, place, console.short_path(place.folder))
        rerun = rerun_line({"command": self._command, "arguments": arguments})
        return {"folder": str(place.folder), "log": str(log) if log.exists() else None, "rerun": rerun}


def _alone(arguments: Sequence[str], point: Place, folder: str) -> list[str]:
    """What to type to run one point of a sweep by itself, in the folder that it has in the sweep."""
    whole = ("hydra.mode", "hydra.sweep", "hydra.run", "hydra.launcher", "hydra/launcher", "hydra/sweeper")
    search = f"hydra.job.env_set.{TRIAL}"
    of_hydra = [word for word in point.hydra if not override_key(word).startswith((*whole, search))]
    place = f"hydra.run.dir={hydra_quote(folder)}"
    return [*flags(arguments), *without_added(arguments, point.task), *of_hydra, place]


@contextmanager
def recorded(folder: Path, points: Points) -> Iterator[None]:
    """Records what came of the points at the end; where nothing came of them the sweep's folder is as it was."""
    listing = folder / "multirun.yaml"  # Hydra's record of a sweep
    before = listing.read_bytes() if listing.is_file() else None
    with without_empty_folders(folder):
        try:
            yield
        finally:
            points.close()
            if not (points.writes and points.records):
                with suppress(OSError):
                    listing.write_bytes(before) if before is not None else listing.unlink()
