"""Disks of a test's own: small, read-only, unmounted. They exist in one forked process and its children only."""

from __future__ import annotations

import ctypes
import os
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

_NEW_MOUNTS, _NEW_USER = 0x00020000, 0x10000000  # CLONE_NEWNS, CLONE_NEWUSER
_READ_ONLY, _REMOUNT, _RECURSIVE, _PRIVATE = 1, 32, 16384, 1 << 18  # MS_…
_CAPABILITIES_3 = 0x20080522  # _LINUX_CAPABILITY_VERSION_3

_libc = ctypes.CDLL(None, use_errno=True)


def small_disk(folder: Path, pages: int, files: int = 10_000) -> None:
    """Makes an empty disk of so many pages of 4096 bytes in a folder, for so many files and folders."""
    _mount("tmpfs", folder, "tmpfs", 0, f"size={4096 * pages},nr_inodes={files},mode=755")


def grow(folder: Path, pages: int) -> None:
    """Gives it more pages."""
    _mount("tmpfs", folder, "tmpfs", _REMOUNT, f"size={4096 * pages}")


def make_read_only(folder: Path) -> None:
    """Nothing can be written on it any more."""
    _mount("tmpfs", folder, "tmpfs", _REMOUNT | _READ_ONLY, None)


def apart(task: Callable[[], None]) -> None:
    """Runs a task in a process that may mount disks which nobody else sees; what it raises fails the test."""
    notes = os.memfd_create("notes")
    with warnings.catch_warnings():  # Python ≥ 3.12 warns of threads, of which pytest-xdist has some
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            _unshare()
            task()
            os._exit(0)
        except BaseException:
            os.write(notes, traceback.format_exc().encode())
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(notes) as stream:
        stream.seek(0)
        said = stream.read()
    assert status == 0, said


def obey_permissions() -> None:
    """From now on this process may not write what its permissions forbid, even if it is root's."""
    nothing = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable capabilities, twice
    _check(_libc.capset((ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0), nothing))


def can_mount() -> bool:
    """Whether this machine lets a test have disks of its own."""
    try:
        apart(lambda: small_disk(Path.cwd(), 1))
    except (AssertionError, OSError):
        return False
    return True


def _unshare() -> None:
    user, group = os.getuid(), os.getgid()
    _check(_libc.unshare(_NEW_USER | _NEW_MOUNTS))
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path("/proc/self", name).write_text(text)
    _mount("none", Path("/"), None, _RECURSIVE | _PRIVATE, None)


def _mount(source: str, target: Path, kind: str | None, flags: int, options: str | None) -> None:
    words = [word.encode() if word is not None else None for word in (source, str(target), kind, options)]
    _check(_libc.mount(words[0], words[1], words[2], flags, words[3]))


def _check(code: int) -> None:
    if code:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
