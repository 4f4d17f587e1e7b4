"""A run's folder: who owns it, what made it, its metrics and its checkpoints. Nothing in it is ever half written.

run.json             identity and status: running, completed, failed, diverged, pruned, interrupted; when it went on
config.yaml          the resolved configuration
git.diff             uncommitted changes of the working directory's repository, where there are any
metrics.jsonl, .csv  one line per epoch
checkpoints/         epoch-0007/{model.safetensors, training.safetensors, state.json, manifest.json}
                     epoch-0007-step-0012: twelve updates into the epoch after the seventh
predictions.safetensors  the chosen epoch's logits of the test images, and their labels
result.json          appears only when the run is complete
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from kd_cli.errors import ConfigError, DiskError, status_after
from kd_cli.machine import ranks
from kd_cli.runs.checkpoint import Checkpoints, owner
from kd_cli.runs.identity import check_same, config_digest, in_use
from kd_cli.runs.metrics import write_metrics
from kd_cli.runs.provenance import go_on, rerun_line, resume_line
from kd_cli.runs.records import run_record, sound_record, sound_result
from kd_cli.storage.files import guard_disk, remove_unfinished, write_json, write_text
from kd_cli.storage.locks import Lock, is_held, take

log = logging.getLogger("kd")


class RunDir:
    """The folder of one run, locked for as long as this object is open.

    Args:
        path: the folder; `RunDir.open` finds or makes it.
        lock: on it.

    Attributes:
        record: run.json as it stands.
        remedy: what to type to go on.
        follows: another process owns the folder.
    """

    follows = False

    def __init__(self, path: Path, lock: Lock) -> None:
        self.path = path
        self.record: dict[str, Any] = {}  # run.json, which nobody else writes while the lock is held
        self._lock = lock
        self.remedy = ""

    @classmethod
    def open(
        cls, path: Path, identity: Mapping[str, Any], config: Mapping[str, Any], *, exact: bool, wait: bool = False
    ) -> RunDir:
        """Takes the folder: a new one, or that of an unfinished or completed run with the same configuration.

        Args:
            identity, config: what to record: command, stage, overrides, provenance; the resolved configuration.
            exact: the user named this folder. Otherwise, where it is taken, `path-2`, … is made: no two runs share one.
            wait: for whoever has it.

        Raises:
            ConfigError: the folder is in use, holds another run, or cannot be written.
            DiskError: the disk is full.
        """
        if (others := ranks()) is None:
            return cls._open(path, identity, config, exact=exact, wait=wait)
        from kd_cli.runs.following import opened

        return opened(others, lambda: cls._open(path, identity, config, exact=exact, wait=wait))

    @classmethod
    def _open(
        cls, path: Path, identity: Mapping[str, Any], config: Mapping[str, Any], *, exact: bool, wait: bool
    ) -> RunDir:
        for attempt in range(1, 1000):
            candidate = path if attempt == 1 else path.with_name(f"{path.name}-{attempt}")
            lock = take(candidate, rerun_line(identity), wait=wait, patient=exact)
            if lock is not None and (exact or not (candidate / "run.json").exists()):
                return cls(candidate, lock)._begun(identity, config)
            if lock is not None:
                lock.close()
            if exact:
                raise in_use(path)
        raise ConfigError(f"{path}: a thousand runs started in the same second; choose a folder with hydra.run.dir=DIR")

    @property
    def result(self) -> dict[str, Any] | None:
        """result.json, or None while the run is not complete."""
        return sound_result(self.path)

    @contextmanager
    def there(self) -> Iterator[None]:
        """Around everything that is done in the folder: it must still be there, and the same.

        Raises:
            DiskError: it is not, or cannot be written; what to type once it can.
        """
        with guard_disk(self.path, go_on=self.remedy):
            self._lock.check()
            yield

    def note(self, **facts: Any) -> None:
        """Adds facts to run.json."""
        with self.there():
            if not (self.path / "run.json").exists():  # somebody has taken it away: the run is given up
                raise FileNotFoundError(errno.ENOENT, "it cannot be read", "run.json")
            record = self.record | facts
            write_json(self.path / "run.json", record)
            self.record = record

    def log(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Writes metrics.jsonl and metrics.csv: the records of all epochs so far."""
        with self.there():
            write_metrics(self.path, records)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes result.json: from now on the run is complete."""
        with self.there():
            write_json(self.path / "result.json", result)
        self._wait_for_others()

    def _wait_for_others(self) -> None:
        if (others := ranks()) is not None:
            others.wait()

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints of this run; what is done with them is done inside `there`."""
        return Checkpoints(self.path / "checkpoints", owner(self.record))

    def __enter__(self) -> RunDir:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = status_after(error)
        facts = {"status": status, "ended": now()} | ({"error": str(error) or type(error).__name__} if error else {})
        try:
            if self.record.get("status") != "completed" or error is not None:
                self.note(**facts)
        except DiskError as failure:  # it must not hide why the run ended
            if error is None:
                raise
            log.warning("the status %r was not recorded: %s", status, str(failure).partition(" What was")[0])
        finally:
            self._lock.close()

    def _begun(self, identity: Mapping[str, Any], config: Mapping[str, Any]) -> RunDir:
        try:
            remove_unfinished(self.path)
            self.remedy = resume_line(self.path, identity)
            self._begin(identity, config)
        except BaseException:
            self._lock.close()
            raise
        return self

    def _begin(self, identity: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        before = self.record = self._whole_record()
        digest = config_digest(config)
        check_same(self.path, before, config)
        if self.result is not None:
            return
        running = {"status": "running", "pid": os.getpid()}
        if before:
            self.note(**running, ended=None, error=None, resumed=[*before.get("resumed", []), go_on(before, identity)])
            return
        facts = dict(identity)
        diff = facts.pop("git_diff", "")
        from kd_cli.storage.yaml import yaml_text

        with self.there():
            if diff:
                write_text(self.path / "git.diff", diff)
            write_text(self.path / "config.yaml", yaml_text(config))
            self.record = {**facts, "config_digest": digest, "started": now(), **running}
            write_json(self.path / "run.json", self.record)
        self.remedy = resume_line(self.path, identity)

    def _whole_record(self) -> dict[str, Any]:
        """run.json, or nothing where there is none yet."""
        record = run_record(self.path)
        if self.result is None and (self.path / "result.json").exists():
            log.warning("%s is damaged; it is made again", self.path / "result.json")
        return record


def find_records(root: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Every folder under `root` that holds a run, with its run.json, newest first; links are not followed."""
    found = []
    for folder, below, files in os.walk(root):
        if "run.json" in files:
            found.append((Path(folder), sound_record(Path(folder)) or {}))
            below[:] = set(below) - {"checkpoints"}
    return sorted(found, key=lambda run: str(run[1].get("started", "")), reverse=True)


def status_of(path: Path, record: Mapping[str, Any] | None = None) -> str:
    """The status in `record`, its run.json; a run that runs by its record but whose process is gone is interrupted."""
    status = str((record or sound_record(path) or {}).get("status", "unknown"))
    if status != "running":
        return status
    return "interrupted" if is_held(path) is False else status


def now() -> str:
    """UTC, to the microsecond, so that runs sort by it."""
    return datetime.now(timezone.utc).isoformat()


def expand(path: Path) -> list[Path]:
    """The runs of a comparison or of a sweep, in its order; any other path is itself."""
    is_sweep = any((path / name).exists() for name in ("sweep.json", "multirun.yaml"))
    parts = [part.parent for part in path.glob("*/run.json")] if (path / "run.json").exists() else []
    parts = _complete(list(_points(path))) if is_sweep else parts
    parts.sort(key=lambda part: str((sound_record(part) or {}).get("started")))
    return [run for part in parts for run in expand(part)] or [path]


def _points(folder: Path) -> Iterator[Path]:
    """The runs of a sweep, which may be in folders inside of its own; parts that they share are not its points."""
    for each in sorted(folder.iterdir()):
        if (each / "run.json").exists():
            yield each
        elif each.is_dir() and not each.is_symlink() and each.name not in ("parts", "reports"):
            yield from _points(each)


def _complete(points: list[Path]) -> list[Path]:
    """Those that have ended, if any have; the others are told."""
    ended = [point for point in points if sound_result(point) is not None]
    if ended and len(ended) < len(points):
        log.warning("left out, not complete: %s", ", ".join(str(point) for point in points if point not in ended))
    return ended or points
