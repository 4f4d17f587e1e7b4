"""The processes of `devices=N`, forked from the one that starts them, as the fresh Pythons that kd asks PyTorch for."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import SubprocessHandler

from kd_cli.launch import rank
from tests.support import forked


def fork_ranks(patch: pytest.MonkeyPatch) -> None:
    """For this process and those that are forked from it."""
    patch.setattr(SubprocessHandler, "_popen", lambda _, words, environment: ForkedRank(words, environment))


class ForkedRank:
    """What PyTorch's agent needs of a `Popen`. The process has the name `rank N`."""

    def __init__(self, words: tuple[str, ...], environment: dict[str, str]) -> None:
        *command, folder = words
        assert command == [sys.executable, "-m", "kd_cli.launch.rank"]

        def begin() -> None:
            os.setsid()
            for number in (signal.SIGHUP, signal.SIGQUIT):
                signal.signal(number, signal.SIG_DFL)
            os.environ.update(environment)
            Path("/proc/self/comm").write_text(f"rank {environment['RANK']}")

        self.returncode: int | None = None
        self.pid = forked.fork(folder, before=begin, main=rank.main, printed=(1, 2)).pid

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float) -> int:
        if not ended_within(self.pid, timeout):
            raise subprocess.TimeoutExpired("rank", timeout)
        code = self.poll()
        assert code is not None
        return code


def ended_within(pid: int, seconds: float) -> bool:
    """Whether a child ends in this time."""
    with suppress(ProcessLookupError):
        file = os.pidfd_open(pid)
        try:
            return bool(select.select([file], [], [], seconds)[0])
        finally:
            os.close(file)
    return True


def ranks_of(parent: int) -> dict[int, int]:
    """Rank → process, of those that a `kd` has forked."""
    found: dict[int, int] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            name = (process / "comm").read_text().strip()
            if name.startswith("rank ") and _parent(process) == parent:
                found[int(name.split()[1])] = int(process.name)
    return found


def _parent(process: Path) -> int:
    return int((process / "stat").read_text().rpartition(")")[2].split()[1])
