"""A run as its folder tells it. Nothing that is missing or damaged in it stops a report: it becomes a warning."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from kd_cli.metrics.significance import exact_top1
from kd_cli.runs.folder import status_of
from kd_cli.runs.records import sound_result
from kd_cli.storage.files import read_text
from kd_cli.storage.yaml import parse_record


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        path: its folder, without symbolic links.
        record: run.json.
        result: result.json; empty while there is none.
        config: config.yaml, resolved.
        epochs: the rows of metrics.jsonl.
        status: as `rundir.status_of`.
    """

    path: Path
    record: Mapping[str, Any]
    result: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    epochs: tuple[Mapping[str, Any], ...] = ()
    status: str = "unknown"

    @property
    def stage(self) -> str:
        """`teacher`, `baseline`, `distilled`, or what else a comparison calls it: `assistant-1`, `teacher-2`."""
        return str(self.result.get("stage") or self.record.get("stage") or "unknown")

    @property
    def done(self) -> bool:
        """Whether it has been tested."""
        return number(self.result.get("test_top1")) is not None

    @property
    def seed(self) -> int | None:
        seed = next((found for found in (self.record, self.result, self.config) if "seed" in found), {}).get("seed")
        return seed if isinstance(seed, int) else None

    @property
    def weights(self) -> str | None:
        """SHA-256 of the weights of the best epoch."""
        digest = mapping(self.result.get("weights_sha256")).get("best")
        return digest if isinstance(digest, str) else None

    @property
    def started(self) -> str:
        return str(self.record.get("started") or "")

    @property
    def data(self) -> Mapping[str, Any]:
        """What it was trained on: `name`, `fingerprint`, `classes`, …"""
        return mapping(self.record.get("data"))

    @property
    def typed(self) -> dict[str, str]:
        """The overrides of its command line: `{"loss.temperature": "4"}`."""
        words = [word for word in self.record.get("arguments", ()) if "=" in word]
        return {key.lstrip("+"): value for key, _, value in (word.partition("=") for word in words)}


def read_run(path: Path, record: Mapping[str, Any], warnings: list[str]) -> Run:
    """The run in a folder whose run.json is read already."""
    result, status = sound_result(path), status_of(path)
    if result is None and status == "completed":
        missing = "damaged" if (path / "result.json").exists() else "missing"
        warnings.append(f"{path} is recorded as completed, but its result.json is {missing}: it is left out of tables")
    return Run(path, record, _unrounded(result or {}), _config(path, warnings), tuple(_epochs(path, warnings)), status)


def _unrounded(result: Mapping[str, Any]) -> Mapping[str, Any]:
    known = [key for key in ("test_top1", "test_top1_last") if number(result.get(key)) is not None]
    return {**result, **{key: exact_top1(result, key) for key in known}}


def _config(path: Path, warnings: list[str]) -> Mapping[str, Any]:
    try:
        return _parsed(read_text(path / "config.yaml"))
    except (OSError, ValueError):
        warnings.append(f"{path / 'config.yaml'} is missing or damaged: it is compared with no other")
        return {}


@lru_cache(maxsize=256)  # the parts of a comparison have the same
def _parsed(text: str) -> Mapping[str, Any]:
    return mapping(parse_record(text))


def _epochs(path: Path, warnings: list[str]) -> list[Mapping[str, Any]]:
    try:
        lines = read_text(path / "metrics.jsonl").splitlines()
    except (OSError, ValueError):
        return []
    rows = [_row(line) for line in lines]
    if not all(rows):
        warnings.append(f"{path / 'metrics.jsonl'} is damaged: {rows.count({})} of its {len(rows)} lines are left out")
    return [row for row in rows if row]


def _row(line: str) -> Mapping[str, Any]:
    try:
        row = mapping(json.loads(line))
    except (ValueError, RecursionError):
        return {}
    return row if number(row.get("epoch")) is not None else {}


def mapping(value: Any) -> Mapping[str, Any]:
    """The value, if it is a mapping; otherwise an empty one."""
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float | int | None:
    """The value, if it is a finite number; otherwise None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if math.isfinite(value) else None


def plain(value: Any) -> Any:
    """For JSON: what is not finite becomes None, and what JSON does not know becomes text."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float):
        return number(value)
    return value if value is None or isinstance(value, str | int) else str(value)
