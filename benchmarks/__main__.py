"""Measures kd beside what its users would otherwise take, and writes the page after every row."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.measure import Failed, run
from benchmarks.page import Page, machine, table
from benchmarks.rows import ROWS
from benchmarks.with_torchdistill import install
from benchmarks.workplace import Sizes, Workplace

_PAGE = Path("docs", "benchmarks.md")
_DATA = Path(os.environ.get("KD_DATA", "data"), "cifar10_jpeg")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    default = Sizes()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"{', '.join(ROWS)}; all unless some are given")
    parser.add_argument("--data", type=Path, default=_DATA, help="CIFAR-10 as JPEG: train/CLASS/* and test/CLASS/*")
    parser.add_argument("--images", type=int, default=default.images, help="that every side trains on (%(default)s)")
    parser.add_argument("--epochs", type=int, default=default.epochs, help="of a distillation (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of every row (%(default)s)")
    parser.add_argument("--no-torchdistill", action="store_true", help="do not install it")
    parser.add_argument("--out", type=Path, default=_PAGE, help="the page that is written (%(default)s)")
    args = parser.parse_args(arguments)
    unknown = [row for row in args.rows if row not in ROWS]
    if unknown:
        parser.error(f"there is no row {unknown[0]!r}; there are {', '.join(ROWS)}")
    if not (args.data / "train").is_dir():
        parser.error(f"--data: there is no folder {args.data / 'train'}; name the folder that holds train/ and test/")
    if args.images < 200 or args.images % 10:
        parser.error(f"--images {args.images} is not possible; take a multiple of 10, 200 at least")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the folder is removed, the programs are ended
    args = parse(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    sizes = replace(Sizes(), images=args.images, epochs=args.epochs)
    page = Page(shlex.join(["python", "-m", "benchmarks", *words]), sizes, args.repeats, machine())
    with tempfile.TemporaryDirectory(prefix="kd-benchmarks-") as folder:
        place = Workplace(Path(folder).resolve(), sizes, run)
        say(f"preparing {args.images:,} images and a teacher")
        place.prepare(args.data)
        if not args.no_torchdistill:
            _add_torchdistill(place, page)
        for name in args.rows or ROWS:
            say(f"measuring {name}")
            _measure(name, place, page)
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(page.text())
    say(f"written to {args.out}")
    return 1 if page.problems else 0


def _add_torchdistill(place: Workplace, page: Page) -> None:
    """Installs it and trains one epoch with it; without it the other sides are measured all the same."""
    say("installing torchdistill in an environment of its own")
    try:
        place.torchdistill = install(place.folder / "torchdistill")
        page.facts["torchdistill"] = place.other("student", 1).report["version"]
    except (OSError, Failed) as error:
        place.torchdistill = None
        _note(page, "torchdistill", error)


def _measure(name: str, place: Workplace, page: Page) -> None:
    try:
        rows = ROWS[name](place, page.repeats)
    except Failed as error:
        _note(page, name, error)
        return
    page.rows += rows
    say(table(rows))


def _note(page: Page, what: str, error: OSError | Failed) -> None:
    page.problems.append(f"{what}: {error}")
    say(f"{what}: {error}\n{getattr(error, 'detail', '')}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
