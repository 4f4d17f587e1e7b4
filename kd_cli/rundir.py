"""A run's folder: who owns it, what made it, its metrics and its checkpoints. Nothing in it is ever half written.

run.json             identity and status: running, completed, failed, diverged, pruned, interrupted
config.yaml          the resolved configuration
git.diff             uncommitted changes of the working directory's repository, where there are any
metrics.jsonl, .csv  one line per epoch
checkpoints/         epoch-0007/{model.safetensors, training.safetensors, state.json, manifest.json}
                     epoch-0007-step-0012: twelve updates into the epoch after the seventh
predictions.safetensors  the chosen epoch's logits of the test images, and their labels
result.json          appears only when the run is complete
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from kd_cli.checkpoints import Checkpoints, owner
from kd_cli.config import to_yaml
from kd_cli.errors import ConfigError, DataError, KDError, status_after
from kd_cli.files import guard_disk, read_json, write_json, write_text
from kd_cli.metrics import read_metrics, write_metrics

log = logging.getLogger("kd")


class RunDir:
    """The folder of one run, locked for as long as this object is open.

    Args:
        path: the folder; `RunDir.open` finds or makes it.
    """

    def __init__(self, path: Path, lock: io.TextIOWrapper) -> None:
        self.path = path
        self._lock = lock

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
        """
        for attempt in range(1, 1000):
            candidate = path if attempt == 1 else path.with_name(f"{path.name}-{attempt}")
            lock = try_lock(candidate, wait=wait)
            if lock is not None and (exact or not (candidate / "run.json").exists()):
                return cls(candidate, lock)._begun(identity, config)
            if lock is not None:
                lock.close()
            if exact:
                raise ConfigError(f"{path} is in use by another run of kd; wait for it or choose another hydra.run.dir")
        raise ConfigError(f"{path}: a thousand runs started in the same second; choose a folder with hydra.run.dir=DIR")

    @property
    def record(self) -> dict[str, Any]:
        """run.json as it stands."""
        return read_json(self.path / "run.json") or {}

    @property
    def result(self) -> dict[str, Any] | None:
        """result.json, or None while the run is not complete."""
        return read_json(self.path / "result.json")

    def note(self, **facts: Any) -> None:
        """Adds facts to run.json."""
        with guard_disk(self.path):
            write_json(self.path / "run.json", self.record | facts)

    def metrics(self) -> list[dict[str, Any]]:
        """The records of all epochs so far."""
        return read_metrics(self.path)

    def log(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Writes metrics.jsonl and metrics.csv: the records of all epochs so far."""
        with guard_disk(self.path):
            write_metrics(self.path, records)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes result.json: from now on the run is complete."""
        with guard_disk(self.path):
            write_json(self.path / "result.json", result)

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints of this run."""
        return Checkpoints(self.path / "checkpoints", owner(self.record))

    def __enter__(self) -> RunDir:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = status_after(error)
        facts: dict[str, Any] = {"status": status, "ended": now()}
        if error is not None:
            facts["error"] = str(error) or type(error).__name__
        try:
            if self.record.get("status") != "completed" or error is not None:
                self.note(**facts)
        except KDError as failure:  # a full disk must not hide why the run ended
            log.warning("%s: the status %r could not be recorded: %s", self.path, status, failure)
        finally:
            self._lock.close()

    def _begun(self, identity: Mapping[str, Any], config: Mapping[str, Any]) -> RunDir:
        try:
            self._begin(identity, config)
        except BaseException:
            self._lock.close()
            raise
        return self

    def _begin(self, identity: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        before = self._whole_record()
        digest = config_digest(config)
        if before and before.get("config_digest") != digest:
            raise ConfigError(
                f"{self.path} holds another run ({_difference(self.path, config)}); choose another hydra.run.dir"
            )
        if self.result is not None:
            return
        with guard_disk(self.path):
            for leftover in self.path.glob(".*.tmp"):  # of a process that was killed
                leftover.unlink()
            identity = dict(identity)
            diff = identity.pop("git_diff", "")
            if diff:
                write_text(self.path / "git.diff", diff)
            write_text(self.path / "config.yaml", to_yaml(config))
            started = {"config_digest": digest, "started": before.get("started", now())}
            resumed = {"resumed": [*before.get("resumed", []), now()]} if before else {}
            begun = {**before, **identity, **started, **resumed, "status": "running", "pid": os.getpid()}
            write_json(self.path / "run.json", begun)

    def _whole_record(self) -> dict[str, Any]:
        """run.json, or nothing where there is none yet."""
        if not self.record and (self.path / "run.json").exists():
            raise DataError(
                f"{self.path / 'run.json'} is damaged, so what this run is cannot be known; choose another folder, "
                "hydra.run.dir=DIR (its checkpoints can still be evaluated: kd evaluate FOLDER/checkpoints/epoch-…)"
            )
        if self.result is None and (self.path / "result.json").exists():
            log.warning("%s is damaged; it is made again", self.path / "result.json")
        return self.record


def find_runs(root: Path) -> Iterator[Path]:
    """Every folder under `root` that holds a run, newest first; what a comparison links to is found where it is."""
    return (path for path, _ in find_records(root))


def find_records(root: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The runs of `find_runs`, each with its run.json."""
    found = []
    for folder, below, files in os.walk(root):
        if "run.json" in files:
            found.append((Path(folder), read_json(Path(folder, "run.json")) or {}))
            below[:] = set(below) - {"checkpoints"}
    return sorted(found, key=lambda run: str(run[1].get("started", "")), reverse=True)


def status_of(path: Path, record: Mapping[str, Any] | None = None) -> str:
    """The status in `record`, its run.json; a run that runs by its record but whose process is gone is interrupted."""
    status = str((record or read_json(path / "run.json") or {}).get("status", "unknown"))
    if status != "running":
        return status
    try:
        with (path / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # the run holds it, or it cannot be read: nothing is known beyond the record
        return status
    return "interrupted"


def config_digest(config: Mapping[str, Any]) -> str:
    """SHA-256 of a configuration, whatever the order of its keys and wherever its run is logged."""
    config = {key: value for key, value in config.items() if key != "logger"}
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


def now() -> str:
    """UTC, to the microsecond, so that runs sort by it."""
    return datetime.now(timezone.utc).isoformat()


def try_lock(path: Path, *, wait: bool = False) -> io.TextIOWrapper | None:
    """An exclusive lock on the folder, made if need be; None if another process has it and is not to be waited for."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / ".lock").open("a")
    except OSError as error:
        raise ConfigError(
            f"hydra.run.dir: {path} cannot be written ({error.strerror}); choose another: hydra.run.dir=DIR"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        lock.close()
        return None
    return lock


def _difference(path: Path, config: Mapping[str, Any]) -> str:
    from omegaconf import OmegaConf

    try:
        old = flatten(OmegaConf.to_container(OmegaConf.load(path / "config.yaml")))
    except (OSError, ValueError):
        return "its config.yaml cannot be read"
    new = flatten(dict(config))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key) and not key.startswith("logger.")]
    shown = ", ".join(f"{key}: {old.get(key)} there, {new.get(key)} here" for key in keys[:3])
    return shown + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one: `{"loss.temperature": 4.0}`."""
    if not isinstance(node, Mapping):
        return {prefix: node}
    items: dict[str, Any] = {}
    for key, value in node.items():
        items |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return items
