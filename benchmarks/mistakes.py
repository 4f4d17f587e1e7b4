"""How long `kd` takes to refuse bad input: each mistake of tests/support/bad_inputs.py in a process of its own."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.measure import ROOT
from tests.support.bad_inputs import BAD, Bad

_LIMIT = 2.0  # seconds


def seconds_of(bad: Bad) -> float:
    """From the start of the process to its end.

    Raises:
        AssertionError: the exit code is another one.
    """
    with tempfile.TemporaryDirectory(prefix="kd-mistakes-") as name:
        folder = Path(name)
        bad.make(folder)
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": path, "KD_CACHE": str(folder / "cache")}
        start = time.perf_counter()
        command = [sys.executable, "-m", "kd_cli", *bad.line]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        assert done.returncode == bad.code, f"{bad}: exit code {done.returncode}\n{done.stderr}"
        return seconds


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mistakes", description=__doc__)
    parser.add_argument("--repeats", type=int, default=1, help="the fastest of so many counts (%(default)s)")
    args = parser.parse_args(arguments)
    mistakes = [bad for group in BAD.values() for bad in group]
    seconds = [min(seconds_of(bad) for _ in range(args.repeats)) for bad in mistakes]
    slow = sorted((taken, str(bad)) for taken, bad in zip(seconds, mistakes, strict=True) if taken >= _LIMIT)
    print(
        f"{len(seconds)} mistakes: median {median(seconds):.2f} s, slowest {max(seconds):.2f} s; "
        f"{len(seconds) - len(slow)} in less than {_LIMIT:g} s"
    )
    for taken, bad in reversed(slow):
        print(f"{taken:.2f} s  kd {bad}")


if __name__ == "__main__":
    main()
