"""What made a run: command, code, versions and machine; and what of it is different when the run goes on."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_cli.config.overrides import hydra_quote, resume_command
from kd_cli.console import short_path

if TYPE_CHECKING:
    import torch

log = logging.getLogger("kd")

_PACKAGES = ("kd-cli", "torch", "torchvision", "hydra-core", "omegaconf", "safetensors", "numpy")
_SHOWN = 40  # characters of a value: a whole git commit
_MATTERS = {
    "threads": "threads",
    "device": "device",
    "device_name": "device's name",
    "instructions": "instructions of the processor",
    "python": "python",
    "git_commit": "git commit",
    "git_diff_sha256": "SHA-256 of uncommitted changes",
}
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


def arithmetic(device: torch.device) -> dict[str, Any]:
    """What decides the last bits of a training beside versions: how sums are divided, and by which instructions."""
    import torch

    return {
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def go_on(before: Mapping[str, Any], identity: Mapping[str, Any]) -> dict[str, Any]:
    """What to record of a start that goes on with a run. What may keep it from the same bits is said in one line.

    Args:
        before: the run's record, which stays as it is.
        identity: what a new run would have recorded.
    """
    different = changes(before, identity)
    if different:
        log.warning("%s", _told(different))
    now = datetime.now(timezone.utc).isoformat()
    return {"time": now, "pid": os.getpid(), "host": identity.get("host"), "changes": different}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What bits depend on and is not as it was: `{"threads": [2, 1]}`; what one of both does not know is left out."""
    then, here = _that_matters(before), _that_matters(now)
    return {key: [then[key], here[key]] for key in then if key in here and then[key] != here[key]}


def resume_line(path: Path, identity: Mapping[str, Any]) -> str:
    """What to type to go on with a run. A part of a comparison goes on with that; what is not begun begins again."""
    of_comparison = identity.get("command") == "run" and identity.get("stage")
    run = path.parent if of_comparison else path
    if (run / "run.json").exists():
        return resume_command(short_path(run), identity.get("arguments", []))
    place = f"hydra.run.dir={hydra_quote(short_path(run))}"
    return rerun_line({**identity, "arguments": [*identity.get("arguments", []), place]})


def rerun_line(record: Mapping[str, Any]) -> str:
    """The command that made a run, from its run.json, as it can be typed again."""
    return " ".join(["kd", str(record.get("command")), *map(shlex.quote, record.get("arguments", []))])


def _told(changes: Mapping[str, Sequence[Any]]) -> str:
    each = "; ".join(f"{key}: {_word(then)} then, {_word(here)} now" for key, (then, here) in changes.items())
    threads = changes.get("threads", [None])[0]
    hint = f"; with OMP_NUM_THREADS={threads} the threads are as before" if threads else ""
    return f"not all is as it was when this run was begun, so its last bits may differ ({each}){hint}"


def _that_matters(record: Mapping[str, Any]) -> dict[str, Any]:
    facts = {name: record[key] for key, name in _MATTERS.items() if key in record}
    machine = {"processor": record["machine"].get("processor")} if "machine" in record else {}
    return {**facts, **machine, **record.get("packages", {})}


def _word(value: Any) -> str:
    return "none" if value is None else str(value)[:_SHOWN]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any]:
    commit = _git_output("rev-parse", "HEAD")
    if not commit:
        return {"git_commit": None}
    diff = _git_output(
        "diff", "--no-ext-diff", "--no-textconv", "--ignore-submodules=dirty", "HEAD", without=_filters()
    )
    digest = hashlib.sha256(diff.encode(errors="replace")).hexdigest() if diff else None
    facts = {"git_commit": commit.strip(), "git_dirty": bool(diff), "git_diff_sha256": digest}
    return {**facts, "git_diff": diff[:_MAX_DIFF]}


def _filters() -> list[str]:
    """The filters that the repository's own configuration has: programs that `git diff` would run."""
    listed = _git_output("config", "--show-scope", "--name-only", "-z", "--get-regexp", r"^filter\.").split("\0")
    scoped = zip(listed[::2], listed[1::2], strict=False)
    return sorted({name.rpartition(".")[0] for scope, name in scoped if scope not in ("system", "global")})


def _git_output(*arguments: str, without: Sequence[str] = ()) -> str:
    """What git prints; whoever made the repository has no program of theirs run by it."""
    settings = {"core.fsmonitor": "false", "core.hooksPath": os.devnull, "protocol.allow": "never"}
    settings |= {f"{name}.{option}": "" for name in without for option in ("clean", "process")}
    settings |= {f"{name}.required": "false" for name in without}
    environment = {**os.environ, "GIT_NO_LAZY_FETCH": "1", "GIT_CONFIG_COUNT": str(len(settings))}
    for place, (key, value) in enumerate(settings.items()):
        environment |= {f"GIT_CONFIG_KEY_{place}": key, f"GIT_CONFIG_VALUE_{place}": value}
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=10, errors="replace", env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
