"""Everything that is shown to a person. With `--json`, standard output is left to one JSON object."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status
    from rich.table import Table

# What would move the cursor, change colours or the direction of reading: names in data may hold anything.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_json = False
_quiet = False
_emitted = False
_noticed: dict[str, None] = {}  # in their order
_live_console: Console | None = None  # while a live line is drawn, everything else must be printed through its console
_live_line: Status | None = None


def setup(*, as_json: bool) -> None:
    """Says where things go: people's text to standard output, or to standard error beside JSON."""
    global _json, _emitted
    _json, _emitted = as_json, False
    _noticed.clear()
    logger = logging.getLogger("kd")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers = [_Notices()]


def as_json() -> bool:
    """Whether standard output is left to one JSON object."""
    return _json


@contextmanager
def in_program(*, quiet: bool) -> Iterator[None]:
    """While kd works for a program of somebody's: all is said on its standard output, and its logging is as it was.

    Args:
        quiet: nothing but notices is said.
    """
    global _json, _emitted, _quiet
    logger, before = logging.getLogger("kd"), (_json, _emitted, _quiet, dict(_noticed))
    level, propagates, handlers = logger.level, logger.propagate, logger.handlers
    setup(as_json=False)
    _quiet = quiet
    try:
        yield
    finally:
        _json, _emitted, _quiet, noticed = before
        _noticed.clear()
        _noticed.update(noticed)
        logger.setLevel(level)
        logger.propagate, logger.handlers = propagates, handlers


def say(text: str = "", *, style: str = "") -> None:
    """One line for a person."""
    _people().print(printable(text), style=style or None, markup=False, highlight=False, soft_wrap=True)


def printable(text: str) -> str:
    """Without anything that does something to a terminal; it also makes a name of undecodable bytes writable."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def live(text: str) -> None:
    """The live line, where there is one."""
    if _live_line is not None:
        from rich.text import Text

        _live_line.update(Text(text))


def notice(text: str) -> None:
    """One line on standard error, once: what the user should know and does not stop the run."""
    if text in _noticed:  # several networks may meet the same file
        return
    _noticed[text] = None
    _console(sys.stderr).print(
        f"note: {printable(text)}", style="yellow", markup=False, highlight=False, soft_wrap=True
    )


def noticed() -> list[str]:
    """The notices so far."""
    return list(_noticed)


def emit(value: Mapping[str, Any]) -> None:
    """The one JSON object of `--json`: the first that is emitted. Nothing without `--json`."""
    global _emitted
    if _json and not _emitted:
        _emitted = True
        sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
        sys.stdout.flush()


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, left: Sequence[str] = ()) -> None:
    """A table for a person.

    Args:
        left: columns that hold text; the others hold numbers and stand to the right.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, title_style="bold")
    for name in columns:
        drawn.add_column(name, justify="left" if name in left else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(printable(_cell(value))) for value in row))
    _print_table(drawn)


def short_path(path: str | Path) -> str:
    """A path as a person would type it: relative where it is below the working directory."""
    full = Path(path)
    return str(full.relative_to(Path.cwd())) if full.is_relative_to(Path.cwd()) else str(full)


def panel(title: str, text: str) -> None:
    """An error, on standard error."""
    from rich.panel import Panel
    from rich.text import Text

    _console(sys.stderr).print(Panel(Text(printable(text)), title=Text(title), border_style="red", title_align="left"))


class Counted:
    """Follows work on so many images: the live line on a terminal, elsewhere a plain line now and then.

    Args:
        text: what is done: `teacher    was asked about`.
        total: images.
        every: seconds between two plain lines.
    """

    def __init__(self, text: str, total: int, every: float = 20.0) -> None:
        self._text, self._total, self._every = text, total, every
        self._done, self._start = 0, time.monotonic()
        self._said = self._start

    def add(self, images: int) -> None:
        """So many more are done."""
        self._done += images
        now = time.monotonic()
        left = _clock((now - self._start) * (self._total - self._done) / self._done)
        line = f"{self._text} {self._done:,} of {self._total:,} images, {left} left"
        if _live_line is not None:
            live(line)
        elif now - self._said >= self._every and self._done < self._total:
            self._said = now
            say(line)


class Watcher:
    """Follows one training: a live line on a terminal, one plain line per epoch elsewhere.

    Args:
        label: what is trained: `teacher`.
        epochs: how many there will be.
        done: epochs that an earlier process has done.
        chosen_by: an epoch's record → the score that chooses among epochs, where accuracy does not; else empty.
    """

    def __init__(
        self, label: str, epochs: int, done: int = 0, chosen_by: Callable[[Mapping[str, float]], str] = lambda _: ""
    ) -> None:
        self.label, self.total, self.done, self.chosen_by = label, epochs, done, chosen_by
        self._start: float | None = None  # when the first batch was done: what comes before it is set-up
        self._last = 0.0
        self._before = 0

    def batch(self, progress: Any) -> None:
        """Called after every batch (see trainer.Progress); draws a few times a second at most."""
        if self._start is None:
            self._start, self._before = time.monotonic(), progress.images
        if _live_line is None or time.monotonic() - self._last < 0.2 or progress.images == self._before:
            return
        self._last = time.monotonic()
        share = (progress.epoch - 1 - self.done + progress.batch / progress.batches) / max(1, self.total - self.done)
        elapsed = self._last - self._start
        known = progress.glimpse()
        shown = "" if known is None else f"loss {known[0]:.4f}  train {known[1]:5.2f} %  "
        left = _clock(elapsed / max(share, 1e-9) - elapsed)
        speed = (progress.images - self._before) / max(elapsed, 1e-9)
        live(
            f"{self.label:<10} epoch {progress.epoch}/{self.total}  {_bar(progress.batch / progress.batches)}  "
            f"{shown}{speed:,.0f} img/s  {left} left"
        )

    def epoch(self, record: Mapping[str, float]) -> None:
        """One line that stays."""
        val = f"  val {record['val_top1']:5.2f} %" if "val_top1" in record else ""
        val += f"  {score}" if (score := self.chosen_by(record)) else ""
        say(
            f"{self.label:<10} epoch {record['epoch']:>{len(str(self.total))}}/{self.total}  "
            f"loss {record['train_loss']:.4f}  train {record['train_top1']:5.2f} %{val}  "
            f"{record['images_per_second']:,.0f} images/s"
        )


@contextmanager
def watching(label: str, epochs: int, *options: Any) -> Iterator[Watcher]:
    """A Watcher with its live line, where there is a terminal to draw it on; `options` are the Watcher's."""
    with live_line(f"{label} starts"):
        yield Watcher(label, epochs, *options)


@contextmanager
def live_line(text: str) -> Iterator[None]:
    """A line that stays at the bottom of the terminal, if there is one, and that `live` changes."""
    people = _people()
    if people.quiet or not people.is_terminal:
        yield
        return
    global _live_console, _live_line
    with people.status(text) as _live_line:
        _live_console = people
        try:
            yield
        finally:
            _live_console = _live_line = None


class _Notices(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        notice(record.getMessage())


def _people() -> Console:
    return _live_console or _console(sys.stderr if _json else sys.stdout, quiet=_quiet)


def _console(stream: Any, *, quiet: bool = False) -> Console:
    from rich.console import Console

    plain = os.environ.get("NO_COLOR") or os.environ.get("CI") or os.environ.get("TERM") == "dumb"
    # A notebook is a file: Rich would draw there with widgets that may not be installed.
    return Console(file=stream, force_terminal=False if plain else None, force_jupyter=False, quiet=quiet)


def _print_table(drawn: Table) -> None:
    console = _people()
    if not console.is_terminal:
        console.width = 1000  # a file has no edge; tables are as wide as their contents
    console.print(drawn)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _bar(share: float, width: int = 10) -> str:
    full = round(share * width)
    return "━" * full + "╌" * (width - full)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
