"""Whether a run's folder can be had: its lock, and the configuration that made what is in it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd_cli.errors import ConfigError, DataError, offer
from kd_cli.runs.records import read_config, run_record, sound_result
from kd_cli.storage.locks import holder, is_held


def is_complete(path: Path, config: Mapping[str, Any]) -> bool:
    """Whether a folder that the user named holds this run, complete; looks only, and takes nothing.

    Raises:
        ConfigError: the folder is in use, holds another run, or cannot be written.
        DataError: its run.json is damaged.
    """
    check_free(path)
    check_same(path, run_record(path), config)
    return sound_result(path) is not None


def check_free(path: Path, key: str = "hydra.run.dir") -> None:
    """Finds out whether a folder can be taken, and makes nothing.

    Args:
        key: the option that names another folder.

    Raises:
        ConfigError: it is in use or cannot be written.
    """
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        reason = "Permission denied" if there.is_dir() else "Not a directory"
        raise ConfigError(f"{key}: {path} cannot be written ({reason}); choose another: {offer(key, 'DIR')}")
    if is_held(path):
        raise in_use(path, key)


def in_use(path: Path, key: str = "hydra.run.dir") -> ConfigError:
    """What is raised where another process has the folder."""
    return ConfigError(f"{path} is in use by {holder(path)}; wait for it, or choose another {key}")


def check_same(path: Path, record: Mapping[str, Any] | None, config: Mapping[str, Any]) -> None:
    """Refuses a folder that was begun with another configuration, or has files of others that a run's would replace.

    Args:
        record: its run.json; nothing where it holds no run.

    Raises:
        ConfigError: what differs.
    """
    foreign = None if record else _foreign(path, config)
    if foreign:
        raise ConfigError(
            f"hydra.run.dir: {path} holds no run of kd (there is no run.json), and its {foreign} would be replaced; "
            f"choose another: {offer('hydra.run.dir', 'DIR')}"
        )
    if record and record.get("config_digest") != config_digest(config):
        raise ConfigError(f"{path} holds another run ({_difference(path, config)}); choose another hydra.run.dir")


def _foreign(path: Path, config: Mapping[str, Any]) -> str | None:
    """A file in the way of a run that is not begun; killed just before run.json was written, it has left its config."""
    try:
        others = config_digest(read_config(path)) != config_digest(config)
    except DataError:
        others = (path / "config.yaml").exists()
    there = (name for name in ("result.json", "metrics.csv", "metrics.jsonl") if (path / name).exists())
    return "config.yaml" if others else next(there, None)


def config_digest(config: Mapping[str, Any]) -> str:
    """SHA-256 of a configuration, whatever the order of its keys; wherever, and on how many devices, it runs."""
    config = {key: value for key, value in config.items() if key not in ("logger", "devices")}
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one: `{"loss.temperature": 4.0}`."""
    if not isinstance(node, Mapping):
        return {prefix: node}
    items: dict[str, Any] = {}
    for key, value in node.items():
        items |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return items


def _difference(path: Path, config: Mapping[str, Any]) -> str:
    try:
        old = flatten(read_config(path))
    except DataError:
        return "its config.yaml cannot be read"
    new = flatten(dict(config))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key) and not key.startswith("logger.")]
    shown = ", ".join(f"{key}: {old.get(key)} there, {new.get(key)} here" for key in keys[:3])
    return shown + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
