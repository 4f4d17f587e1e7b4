"""Folders that one process at a time has, and who has them.

The lock is the system's (`flock`), so it ends with the process, however that ends. What is in the locked file says who
has it. Where a file system has no locks, that is all there is, and a notice says so.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import logging
import os
import platform
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from kd_cli import console
from kd_cli.errors import ConfigError, offer
from kd_cli.storage.files import is_full, not_written, read_json
from kd_cli.turns import rest

log = logging.getLogger("kd")

LOCK_FILE = ".lock"
_TAKEN = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}
_UNKNOWN = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}  # what file systems without locks say
_PATIENCE = 0.2  # seconds: somebody may only be looking whether the folder is free, or be about to be gone
_LOOK_AGAIN = 0.02


class Lock:
    """A folder that this process has, until `close` or its end. Processes that are forked from it do not have it.

    Args:
        path: the folder.
        file: its lock file, open and locked.
        command: what others are told.
    """

    def __init__(self, path: Path, file: io.FileIO, command: str) -> None:
        self.path = path
        self.file = file
        since = datetime.now(timezone.utc).isoformat()
        self._sign({"pid": os.getpid(), "host": platform.node(), "since": since, "command": command})
        _held.add(self)

    def check(self) -> None:
        """Makes sure that the folder is still there and still the same.

        Raises:
            FileNotFoundError: it was removed or renamed, or its disk is no longer mounted.
        """
        if not _is_file_of(self.path, self.file):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))

    def close(self) -> None:
        """Lets others have the folder."""
        if not self.file.closed:
            self._sign({})
            self.file.close()

    def _sign(self, facts: Mapping[str, object]) -> None:
        with suppress(OSError):  # a full disk; the lock holds all the same
            self.file.truncate(0)
            self.file.write(json.dumps(facts).encode() if facts else b"")


_held: weakref.WeakSet[Lock] = weakref.WeakSet()


def _let_go() -> None:
    """A worker that decodes images must not keep the folder of a run that was killed."""
    for lock in list(_held):
        lock.file.close()


os.register_at_fork(after_in_child=_let_go)


def take(
    path: Path, command: str, *, wait: bool = False, patient: bool = True, key: str = "hydra.run.dir"
) -> Lock | None:
    """Takes a folder, which is made if need be; None if another process has it and is not to be waited for.

    Args:
        command: for what; it is what others are told.
        patient: another one may have it for a moment only.
        key: the option that names another folder.

    Raises:
        ConfigError: the folder cannot be written.
        DiskError: the disk is full.
    """
    end = time.monotonic() + (_PATIENCE if patient else 0)
    while True:
        file = _opened(path, key)
        has_it = _try(file, path) or (wait and _waited(file, path))
        if has_it and _is_file_of(path, file):
            return Lock(path, file, command)
        file.close()
        if not has_it and time.monotonic() >= end:
            return None
        rest(_LOOK_AGAIN)


def holder(path: Path) -> str:
    """Who has a folder: `process 12 on HOST since 2026-01-31 12:00:03 UTC (kd run …)`."""
    facts = read_json(path / LOCK_FILE)
    if facts is None:
        return "another process"
    since = str(facts.get("since"))[:19].replace("T", " ")
    return f"process {facts.get('pid')} on {facts.get('host')} since {since} UTC ({facts.get('command')})"


def is_held(path: Path) -> bool | None:
    """Whether a process has a folder; None where that cannot be known."""
    try:
        with (path / LOCK_FILE).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


def _opened(path: Path, key: str) -> io.FileIO:
    try:
        while True:
            path.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # another process has just removed the folder, which was empty
                return io.FileIO(path / LOCK_FILE, "a+")
    except OSError as error:
        if is_full(error):
            raise not_written(path, None, error) from error
        text = f"{key}: {path} cannot be written ({error.strerror}); choose another: {offer(key, 'DIR')}"
        raise ConfigError(text) from error


def _try(file: io.FileIO, path: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        if error.errno not in _UNKNOWN:
            raise ConfigError(f"{path} cannot be locked ({error.strerror}); choose a folder on another disk") from error
        if _is_ours(path) or _is_alive(read_json(path / LOCK_FILE) or {}):
            return False
        log.warning("%s is on a file system without locks: start nothing else in this folder meanwhile", path)
    return True


def _waited(file: io.FileIO, path: Path) -> bool:
    try:
        wait_for(file, f"waiting for {console.short_path(path)}: it is in use by {holder(path)}")
    except OSError:  # this file system has no locks
        return False
    return True


def wait_for(file: IO[Any], text: str) -> None:
    """Waits for the lock of an open file, which a training that shares this process may have.

    Args:
        text: said if it takes time.

    Raises:
        OSError: this file system has no locks.
    """
    said = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
        else:
            return
        if not said:
            console.say(text)
        said = True
        rest(_LOOK_AGAIN)


def _is_ours(path: Path) -> bool:
    """Whether a training that shares this process has the folder."""
    return any(not lock.file.closed and _is_file_of(path, lock.file) for lock in _held)


def _is_alive(facts: Mapping[str, object]) -> bool:
    """Whether a process of this machine, other than this one, is there."""
    pid = facts.get("pid")
    if facts.get("host") != platform.node() or not isinstance(pid, int) or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_file_of(path: Path, file: io.FileIO) -> bool:
    try:
        there = (path / LOCK_FILE).stat()
    except OSError:
        return False
    return os.path.samestat(there, os.fstat(file.fileno()))
