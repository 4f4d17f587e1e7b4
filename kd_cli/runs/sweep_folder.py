"""A sweep's folder: what was asked, what came of each point, and the trainings that its points share.

sweep.json  the command, the keys that vary, the study, every start; each point with its status, log and rerun line;
            the jobs of points that were submitted and not heard of since
parts/      teachers and baselines, each trained once for all points that have it
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from os.path import relpath
from pathlib import Path
from typing import Any

from kd_cli import console
from kd_cli.errors import ConfigError, DataError
from kd_cli.runs.folder import now
from kd_cli.runs.provenance import rerun_line
from kd_cli.runs.records import Fits, check_kinds, is_texts
from kd_cli.storage.files import guard_disk, read_json, read_record, write_json
from kd_cli.storage.locks import LOCK_FILE, Lock, holder, take

_RECORD, _PARTS = "sweep.json", "parts"
_KEPT = ("point", "folder", "status", "error", "exit_code", "log", "rerun")  # of a point; its result is in its folder

_JOB = re.compile(r"slurm \d+(_\d+)?|local \d{1,9} \S+")
_OF_A_START = ("arguments", "git_commit", "git_diff_sha256", "packages")


def _is_points(value: Any) -> bool:
    points = value if isinstance(value, list) else [None]
    return all(isinstance(point, dict) and isinstance(point.get("folder"), str) for point in points)


def _is_jobs(value: Any) -> bool:
    jobs = value if isinstance(value, dict) else {"": None}
    return all(
        isinstance(job, str) and _JOB.fullmatch(job) and not {"..", "/"} & {*Path(name).parts}
        for name, job in jobs.items()
    )


_KINDS: Mapping[str, Fits] = {
    "keys": is_texts,
    "points": _is_points,
    "jobs": _is_jobs,
    "starts": lambda value: isinstance(value, list),
}


class SweepDir:
    """The folder of one sweep, locked for as long as it runs.

    Args:
        path: the folder; made if need be.
        facts: of the record: command, arguments, keys, study, provenance.

    Raises:
        ConfigError: it is in use, or cannot be written.
        DataError: its record is damaged.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        self.path = path
        lock = take(path, rerun_line(facts), key="hydra.sweep.dir")
        if lock is None:
            raise ConfigError(
                f"{path}: this sweep runs already, in {holder(path)}; wait for it, or choose another hydra.sweep.dir"
            )
        self._lock: Lock = lock
        before = self._begun()
        if before:
            _say_begun(path, before, facts)
        start = {"time": now(), **{key: facts.get(key) for key in _OF_A_START}}
        self._record = {
            **facts,
            "keys": sorted({*before.get("keys", []), *facts["keys"]}),
            "started": before.get("started", start["time"]),
            "ended": None,
            "starts": [*before.get("starts", []), start],
            "points": before.get("points", []),
            "jobs": before.get("jobs", {}),
        }
        self._write()

    @property
    def jobs(self) -> Mapping[str, str]:
        """The folder's name of each point that was submitted and not heard of since → its job."""
        jobs: dict[str, str] = self._record["jobs"]
        return jobs

    def submitted(self, jobs: Mapping[str, str]) -> None:
        """Records jobs, so that they are found again however this process ends."""
        self._record["jobs"] = {**self.jobs, **jobs}
        self._write()

    def close(self, points: Sequence[Mapping[str, Any]]) -> None:
        """Records what came of the points; those of an earlier start that were not asked for now stay."""
        kept = [{key: point[key] for key in _KEPT if key in point} for point in points]
        new = {name: {**point, "folder": name} for point in kept for name in [relpath(point["folder"], self.path)]}
        old = {point["folder"]: point for point in self._record["points"]}
        told = {name for name, point in new.items() if point["status"] not in ("queued", "running")}
        jobs = {name: job for name, job in self.jobs.items() if name not in told}
        self._record |= {"ended": now(), "points": [*(old | new).values()], "jobs": jobs}
        self._write()
        self._lock.close()

    def _begun(self) -> dict[str, Any]:
        """The record of an earlier start; empty without one."""
        try:
            return read_sweep(self.path)
        except DataError:
            self._lock.close()
            raise

    def _write(self) -> None:
        with guard_disk(self.path):
            write_json(self.path / _RECORD, self._record)


def read_sweep(path: Path) -> dict[str, Any]:
    """The record of a sweep's folder; empty for any other folder. Raises DataError: it is damaged."""
    remedy = "Remove it and give the sweep's command again: points that are complete are not run again"
    record = read_record(path / _RECORD, remedy) or {}
    check_kinds(record, _KINDS, path / _RECORD)
    return record


def find_jobs(root: Path) -> dict[Path, str]:
    """The folder of every point below `root` that was submitted and not heard of since → its job."""
    found: dict[Path, str] = {}
    for folder, below, files in os.walk(root):
        jobs = (read_json(Path(folder, _RECORD)) or {}).get("jobs", {}) if _RECORD in files else {}
        if _is_jobs(jobs):  # a damaged record stops no table
            found |= {Path(folder, name): job for name, job in jobs.items()}
        below[:] = [] if "run.json" in files else below
    return found


def shared_folder(point: Path) -> Path | None:
    """Where the sweep that a run is a point of keeps what its points share; None for a run by itself."""
    sweep = next(filter(_is_sweep, point.absolute().parents), None)
    return None if sweep is None else sweep / _PARTS


def _is_sweep(folder: Path) -> bool:
    """Other programs have files of that name, and no lock beside it; all points look, so nobody reads it."""
    return (folder / _RECORD).exists() and (folder / LOCK_FILE).exists()


def _say_begun(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """What is complete is not run again, so it must be said what it was made with."""
    where = (
        f"{console.short_path(path)} holds this sweep, begun {str(before.get('started'))[:16].replace('T', ' ')} UTC"
    )
    console.say(f"{where}: what is complete there is not run again; hydra.sweep.dir=DIR makes a new one")
    for key, what in (("git_commit", "commit"), ("git_diff_sha256", "uncommitted changes"), ("packages", "packages")):
        if before.get(key) != now.get(key):
            console.notice(f"{what}: {_brief(before.get(key))} then, {_brief(now.get(key))} now; results may differ")


def _brief(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    return "none" if value is None else str(value)[:12]
