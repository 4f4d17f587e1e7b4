"""What made a run: command, code, versions and machine."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("kd-cli", "torch", "torchvision", "hydra-core", "omegaconf", "safetensors", "numpy")
_MAX_DIFF = 1_000_000  # characters; a larger diff is data that somebody has not ignored yet


def provenance(command: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Facts for run.json; `git_diff` is the text of the uncommitted changes."""
    return {
        "command": command,
        "arguments": list(arguments),
        "directory": str(Path.cwd()),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
        "host": platform.node(),
        "executable": sys.executable,
        **_git(),
    }


def rerun_line(record: Mapping[str, Any]) -> str:
    """The command that made a run, from its run.json, as it can be typed again."""
    return " ".join(["kd", str(record.get("command")), *map(shlex.quote, record.get("arguments", []))])


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any]:
    commit = _git_output("rev-parse", "HEAD")
    if not commit:
        return {"git_commit": None}
    diff = _git_output("diff", "HEAD")
    return {"git_commit": commit.strip(), "git_dirty": bool(diff), "git_diff": diff[:_MAX_DIFF]}


def _git_output(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
