"""Jobs that outlive the command that submitted them: what their queue says of them, and what of it is pending."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from kd_cli.runs.sweep_folder import find_jobs

# Every job of the user's, by one request. `sacct` says more, and nothing at all on a cluster without accounting.
_SQUEUE = ("squeue", "--noheader", "--me", "--array", "--states=all", "--format=%i %T")
_PATIENCE = 30.0  # seconds, for an answer

GONE = "GONE"  # not in the queue; Slurm forgets a job some minutes after its end, a waiting one of an array at once
_WAITS = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
DIED = {"BOOT_FAIL", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}
_OVER = DIED | {"CANCELLED", "COMPLETED", "PREEMPTED", "REVOKED", GONE}


def longest_array() -> int | None:
    """How many jobs Slurm takes as one array; None where it does not say."""
    said = _answer(("scontrol", "show", "config")) or ""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", said, flags=re.MULTILINE)
    return int(found[1]) if found else None


def job_name(cluster: str, number: str) -> str:
    """How a job is recorded: `slurm 12_0`, `local 4711 HOST`."""
    return f"slurm {number}" if cluster == "slurm" else f"local {number} {platform.node()}"


def elsewhere(job: str) -> str | None:
    """The machine that runs a job, if it is another one than this."""
    host = job.split()[2] if job.startswith("local") else None
    return None if host == platform.node() else host


def states(jobs: Iterable[str]) -> dict[str, str]:
    """Slurm's word for what each job does; one of which nobody here can say anything is left out.

    Args:
        jobs: by their names on record.
    """
    names = set(jobs)
    there = _slurm() if any(name.startswith("slurm") for name in names) else None
    found = {name: there.get(name.split()[1], GONE) for name in names if name.startswith("slurm") and there is not None}
    local = {name for name in names if name.startswith("local") and elsewhere(name) is None}
    return found | {name: "RUNNING" if _runs(name.split()[1]) else GONE for name in local}


def is_over(state: str | None) -> bool:
    return state in _OVER


def status(state: str | None) -> str:
    """Of a job that is not over, in the words of runs."""
    return "queued" if state in _WAITS or state is None else "running"


def pending(outputs: Path) -> dict[Path, str]:
    """The points below a folder that were submitted and are not over → `queued` or `running`.

    Where the queue does not answer, one that has begun is left out: its run.json says more.
    """
    jobs = find_jobs(outputs)
    said = states(jobs.values())
    known = {folder: job for folder, job in jobs.items() if job in said or not (folder / "run.json").exists()}
    return {folder: status(said.get(job)) for folder, job in known.items() if not is_over(said.get(job))}


def _slurm() -> Mapping[str, str] | None:
    said = _answer(_SQUEUE)
    if said is None:
        return None
    rows = [line.split() for line in said.splitlines()]
    return {row[0]: row[1] for row in rows if len(row) == 2}


def _answer(command: Sequence[str]) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=_PATIENCE).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def _runs(pid: str) -> bool:
    """Whether submitit's process is there; another one may have its number by now."""
    facts = Path("/proc", pid)
    try:
        with suppress(ChildProcessError):  # one that this process started is there until somebody asks
            os.waitpid(int(pid), os.WNOHANG)
        os.kill(int(pid), 0)
        if not Path("/proc/self").exists():
            return True
        command, state = (facts / "cmdline").read_bytes(), (facts / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z" and (not command or b"submitit" in command)  # it has none at its very start
