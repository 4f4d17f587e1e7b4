"""The points of one sweep: how each is run, and what came of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kd_cli import console
from kd_cli.config.base import TRIAL
from kd_cli.config.overrides import flags, hydra_quote, override_key, typed_overrides, without_added
from kd_cli.runs.identity import check_free
from kd_cli.runs.provenance import provenance, rerun_line
from kd_cli.runs.sweep_folder import SweepDir
from kd_cli.sweeps.point import LOG, Point, is_fine, not_started
from kd_cli.sweeps.sweep import Sweep
from kd_cli.sweeps.worker import Work


class Points:
    """The points of a sweep: Hydra calls it for each that runs here, our launcher has it run all of them apart.

    Args:
        study: of which the sweep is part, or None.
        here: runs a point in this process, from its composed configuration.
        alone: runs one from its own command line; importable, since it travels to other processes.
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
        alone: Callable[[Sequence[str]], Point],
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

        hydra = HydraConfig.get()
        self.open(hydra)
        log = _folder(hydra) / LOG if self.writes else None
        self._add([hydra], [self._sweep.guard(partial(self._here, config), log)])

    def open(self, hydra: Any) -> SweepDir | None:
        """Takes the sweep's folder, whose name Hydra knows; None where nothing is written."""
        if not self.writes:
            check_free(Path(str(hydra.sweep.dir)).absolute(), "hydra.sweep.dir")
        elif self._folder is None:
            facts = {**provenance(self._command, self._arguments), "keys": sorted(self._sweep.keys)}
            diff = facts.pop("git_diff", "")
            facts["git_diff_sha256"] = hashlib.sha256(diff.encode()).hexdigest() if diff else None
            self._folder = SweepDir(Path(str(hydra.sweep.dir)).absolute(), facts | {"study": self._study})
        return self._folder

    def close(self) -> None:
        """Records what came of the points."""
        if self._folder is not None:
            self._folder.close(self.records)

    def run_apart(self, configs: Sequence[Any], run: Callable[[Sequence[Work], int], Sequence[Point]]) -> None:
        """Has every point run in a process of its own.

        Args:
            configs: as Hydra composed them, `hydra` included.
            run: runs them, and is told how many points earlier batches had.
        """
        self.open(configs[0].hydra)
        works = [self._work(config.hydra) for config in configs]
        if self._sweep.stopped:  # in an earlier batch; Hydra would go on
            points = [not_started(work.label) for work in works]
        else:
            points = list(run(works, len(self.records)))
        self._add([config.hydra for config in configs], points)
        over = ("interrupted", "not started", "running")  # the last: on a cluster, and the user did not wait
        self._sweep.stopped = any(point["status"] in over and not is_fine(point) for point in points)

    def command_for(self, overrides: Sequence[str]) -> str:
        """What to type to run one point by itself, in a folder of its own."""
        typed = without_added(self._arguments, overrides)
        return rerun_line({"command": self._command, "arguments": [*flags(self._arguments), *typed]})

    def _work(self, hydra: Any) -> Work:
        folder = _folder(hydra)
        environment = {**self._environment, **{name: str(value) for name, value in hydra.job.env_set.items()}}
        start = partial(self._alone, _alone(self._arguments, hydra, str(folder)))
        return Work(self._sweep.label(hydra.overrides.task), folder, environment, start)

    def _add(self, hydras: Sequence[Any], points: Sequence[Point]) -> None:
        """Keeps what came of points, with where they wrote and what to type to run one of them by itself."""
        self.records += [{**point, **self._trace(hydra)} for hydra, point in zip(hydras, points, strict=True)]

    def _trace(self, hydra: Any) -> Point:
        log = _folder(hydra) / LOG
        arguments = _alone(self._arguments, hydra, console.short_path(log.parent))
        rerun = rerun_line({"command": self._command, "arguments": arguments})
        return {"folder": str(log.parent), "log": str(log) if log.exists() else None, "rerun": rerun}


def _folder(hydra: Any) -> Path:
    return Path(os.path.abspath(Path(str(hydra.sweep.dir), str(hydra.sweep.subdir))))  # noqa: PTH100 - as Hydra


def _alone(arguments: Sequence[str], hydra: Any, folder: str) -> list[str]:
    """What to type to run one point of a sweep by itself, in the folder that it has in the sweep."""
    whole = ("hydra.mode", "hydra.sweep", "hydra.run", "hydra.launcher", "hydra/launcher", "hydra/sweeper")
    search = f"hydra.job.env_set.{TRIAL}"
    of_hydra = [word for word in hydra.overrides.hydra if not override_key(word).startswith((*whole, search))]
    place = f"hydra.run.dir={hydra_quote(folder)}"
    return [*flags(arguments), *typed_overrides(arguments, hydra), *of_hydra, place]
