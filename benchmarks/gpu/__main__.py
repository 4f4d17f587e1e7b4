"""Counts and times what kd promises on a GPU, beside a plain script and, if one is given, another build."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from benchmarks.gpu.session import FULL, MEASURES, SMALL, Session, measure
from benchmarks.gpu.table import text
from benchmarks.measure import run
from benchmarks.page import machine


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(MEASURES)}; all unless some are given")
    parser.add_argument("--out", type=Path, help="all numbers as JSON, written after each measurement")
    parser.add_argument("--minutes", type=float, default=6.0, help="what does not fit is skipped (%(default)s)")
    parser.add_argument("--before", type=Path, help="a checkout of another build, measured beside this one")
    parser.add_argument("--commit", help="of this build, where there is no git")
    parser.add_argument("--device", default="cuda", help="cpu: to try it, with --small (%(default)s)")
    parser.add_argument("--small", action="store_true", help="few images: nothing that it prints is a measurement")
    args = parser.parse_intermixed_args(arguments)
    unknown = [name for name in args.names if name not in MEASURES]
    if unknown:
        parser.error(f"there is no measurement {unknown[0]!r}; there are {', '.join(MEASURES)}")
    if args.before and not (args.before / "kd_cli").is_dir():
        parser.error(f"--before: there is no folder {args.before / 'kd_cli'}; name a checkout of kd")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the folder is removed, the programs are ended
    args = parse(arguments)
    end = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory(prefix="kd-gpu-") as folder:
        sizes, before = SMALL if args.small else FULL, args.before.resolve() if args.before else None
        session = Session(Path(folder).resolve(), args.device, sizes, run, end, before)
        facts = machine() | card() | ({"commit": args.commit} if args.commit else {})
        report(session, args.names or list(MEASURES), args.out, facts)
    return 1 if session.skipped else 0


def report(session: Session, names: Sequence[str], out: Path | None, facts: Mapping[str, str]) -> None:
    """Measures, writes the file after each measurement, and prints the table."""
    from benchmarks.gpu.images import write_stored, write_tree

    sizes = session.sizes
    write_stored(session.folder, sizes.images, sizes.test)
    write_tree(session.folder, sizes.files, sizes.files // 10)

    def write() -> None:
        if out is not None:
            whole = {"facts": dict(facts), "sizes": asdict(sizes), "raw": session.raw, "not measured": session.skipped}
            out.write_text(json.dumps(whole, indent=1) + "\n")
        print(f"measured {', '.join(session.raw)}; {session.left:.0f} s are left", file=sys.stderr, flush=True)

    measure(session, names, write)
    print("\n".join(f"{name}: {fact}" for name, fact in facts.items()))
    print(text(session.raw, session.skipped, sizes), flush=True)


def card() -> dict[str, str]:
    """The GPU and its driver, as nvidia-smi says."""
    words = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.CalledProcessError):
        return {"card": subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()}
    return {"card": "none"}


if __name__ == "__main__":
    sys.exit(main())
