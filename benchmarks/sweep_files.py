"""What a sweep asks of the file system that its machines share: operations per point, counted by strace (Linux).

`python -m benchmarks.sweep_files --points 20` sweeps the points of `benchmarks.sweep_overhead`, with the sweep's folder
and the cache in one folder, and counts every system call that names something in it, or a file that is open in it.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.sweep_overhead import Side, sides

_CALLS = "openat,mkdir,rename,renameat,renameat2,link,unlink,rmdir,fsync,fdatasync,flock,fcntl,getdents64"
_LOOKS = "stat,lstat,newfstatat,statx,access,faccessat,faccessat2,readlink,readlinkat"
_LINE = re.compile(r"(\d+) +(\w+)\((.*)")
_PATH = re.compile(r'"(/[^"]*)"|<(/[^>]*)>(?:, "([^"]*)")?')
KINDS = ("created", "opened", "mkdir", "renamed", "removed", "looked at", "listed", "fsync", "locked")
OWNERS = ("a point's own, each", "the sweep's, by points", "the sweep's, by kd -m", "the cache's")


def kind_of(call: str, rest: str) -> str | None:
    """What a system call is for a file server; None: it does not come to one."""
    if call == "openat":
        return "created" if "O_CREAT" in rest else "opened"
    if call == "fcntl":
        return "locked" if "F_SETLK" in rest or "F_OFD_SETLK" in rest else None
    if call in _LOOKS.split(","):
        return "looked at"
    names = {"flock": "locked", "fdatasync": "fsync", "getdents64": "listed", "unlink": "removed", "rmdir": "removed"}
    return "renamed" if call.startswith(("rename", "link")) else names.get(call, call)


def count(lines: Iterable[str], shared: str) -> Counter[tuple[str, str]]:
    """Of the lines that `strace -f -y` writes, those that name something in a folder, by whose it is and by kind.

    Args:
        shared: holds `swept`, with a folder for each point, and `cache`.
    """
    found: Counter[tuple[str, str]] = Counter()
    first = None
    for line in lines:
        match = _LINE.match(line)
        if match is None:  # the end of a call that was interrupted, or of a process
            continue
        pid, call, rest = match.groups()
        first = first or pid
        kind, path = kind_of(call, rest), _path(rest)
        if kind is not None and path.startswith(f"{shared}/"):
            found[_owner(path.removeprefix(f"{shared}/").split("/"), by_first=pid == first), kind] += 1
    return found


def _path(rest: str) -> str:
    match = _PATH.search(rest)
    if match is None:
        return ""
    absolute, opened, inside = match.groups()
    return absolute or os.path.normpath(os.path.join(opened, inside or ""))  # noqa: PTH118 - text, no files


def _owner(parts: Sequence[str], *, by_first: bool) -> str:
    if parts[0] != "swept":
        return OWNERS[3]
    if len(parts) > 1 and "=" in parts[1]:
        return OWNERS[0]
    return OWNERS[2] if by_first else OWNERS[1]


def sweep(side: Side, points: int, epochs: int, shared: Path) -> Counter[tuple[str, str]]:
    """Runs a sweep and counts; its folder is there afterwards.

    Raises:
        CalledProcessError: strace is not there, or a point failed.
    """
    log = shared.parent / "strace.txt"
    trace = ["strace", "-f", "-y", "--seccomp-bpf", "-s", "4096", "-e", f"trace={_CALLS},{_LOOKS}", "-o", str(log)]
    words = [*side.words, side.seeds.format(points), f"trainer.epochs={epochs}", f"hydra.sweep.dir={shared / 'swept'}"]
    environment = {**os.environ, "KD_CACHE": str(shared / "cache"), "OMP_NUM_THREADS": "1"}
    command = [*trace, sys.executable, "-m", *words]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with log.open(errors="replace") as lines:
        return count(lines, str(shared))


def main(arguments: Sequence[str] | None = None) -> None:
    every = {name: side for name, side in sides(2).items() if name.startswith("kd, ")}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep_files", description=__doc__)
    parser.add_argument("side", nargs="?", default="kd, process", choices=every)
    parser.add_argument("--points", type=int, default=20, help="of the sweep (%(default)s)")
    parser.add_argument("--epochs", type=int, default=2, help="of each point (%(default)s)")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="kd-files-") as folder:
        shared = Path(folder).resolve() / "shared"
        shared.mkdir()
        found = sweep(every[given.side], given.points, given.epochs, shared)
        files = [file for file in (shared / "swept").rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        own = sum("=" in file.relative_to(shared / "swept").parts[0] for file in files)
    print(f"{given.side}: {given.points} points of {given.epochs} epochs: operations")
    print(f"at the end {own / given.points:g} files of each point, {len(files) - own} of the sweep;", end=" ")
    print(f"{size / given.points / 1e3:.0f} KB per point")
    print(f"{'':24}" + "".join(f"{kind:>10}" for kind in KINDS) + f"{'all':>10}")
    for owner in OWNERS:
        row = [found[owner, kind] / (given.points if owner == OWNERS[0] else 1) for kind in KINDS]
        print(f"{owner:24}" + "".join(f"{number:>10.5g}" for number in [*row, sum(row)]))


if __name__ == "__main__":
    main()
