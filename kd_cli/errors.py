"""The errors a user can cause or meet, and the exit code of each.

KDError            1  the run failed
├── ConfigError    2  usage or configuration
├── DataError      3  data missing, unreadable or not fitting
├── DiskError      1  a full disk, or one that cannot be written
├── DivergedError  4  the loss is not finite
├── OutOfMemory    1  something does not fit into memory
├── Pruned         0  a search saw no hope in it
├── Interrupted  130  Ctrl-C
└── Terminated   143  SIGTERM
"""

from __future__ import annotations

import errno
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


class KDError(Exception):
    """A run failed for a reason that its message states in full."""

    exit_code = 1


class ConfigError(KDError):
    """The command line or the configuration is wrong."""

    exit_code = 2


class DataError(KDError):
    """Data are missing, unreadable or do not fit."""

    exit_code = 3


class DiskError(KDError, OSError):
    """Something did not get onto the disk; what was written before is whole.

    Args:
        text: what and why, for the user.
        number, reason: as an OSError has them.
    """

    def __init__(self, text: str, number: int | None = None, reason: str = "") -> None:
        super().__init__(number, reason)
        self.text = text

    def __str__(self) -> str:
        return self.text


class DivergedError(KDError):
    """The loss is not finite; the weights were left as they were before that step."""

    exit_code = 4


class OutOfMemory(KDError):
    """Something does not fit into memory; the message says what, and what makes it need less."""


class Pruned(KDError):
    """A search ended a training that the ones before it were better than.

    Args:
        val_top1: its accuracy on validation images, percent.
    """

    exit_code = 0

    def __init__(self, text: str, val_top1: float) -> None:
        super().__init__(text)
        self.val_top1 = val_top1


class Interrupted(KDError):
    """The user pressed Ctrl-C."""

    exit_code = 130


class Terminated(KDError):
    """The process was asked to end (SIGTERM)."""

    exit_code = 143


def status_after(error: BaseException | None) -> str:
    """The status of a run that ended with this error: completed, failed, diverged, pruned or interrupted."""
    if error is None:
        return "completed"
    if isinstance(error, DivergedError | Pruned):
        return "diverged" if isinstance(error, DivergedError) else "pruned"
    return "interrupted" if isinstance(error, KeyboardInterrupt | Interrupted | Terminated | SystemExit) else "failed"


# In the words of torch's allocators, numpy, the C library and the libraries of accelerators.
_SHORTAGE = re.compile("out of memory|not enough memory|can(no|')t allocate memory|alloc_failed", re.IGNORECASE)
_WANTED = re.compile(r"(?:tried|unable) to allocate (?P<size>[\d.]+) (?P<unit>bytes|[KMGTP]i?B)", re.IGNORECASE)


def missing_memory(error: BaseException) -> str | None:
    """` (1.5 GB more were asked for)`, where the error says so, and otherwise nothing; None: it is another error."""
    short = isinstance(error, MemoryError) or _SHORTAGE.search(str(error))
    if not short or not isinstance(error, MemoryError | RuntimeError | OSError):
        return None
    wanted = _WANTED.search(str(error))
    if wanted is None:
        return ""
    unit = wanted["unit"]
    size = float(wanted["size"]) * (
        1 if unit == "bytes" else (1024 if "i" in unit else 1000) ** (" KMGTP".index(unit[0]))
    )
    scale = next((scale for scale in ((1e9, "GB"), (1e6, "MB")) if size >= scale[0]), (1e3, "kB"))
    return f" ({size / scale[0]:.3g} {scale[1]} more were asked for)"


def listed(names: Sequence[str], most: int = 5) -> str:
    """`a, b, c and 97 more`: the first of many names."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest:,} more" if rest > 0 else "")


def suggest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'? Known: x, y, z`, as the end of a message about an unknown `word`."""
    names = sorted(str(name) for name in known)
    # Of a key's last part: what stands before it is right. Two edits make any short word of any other.
    allowed = min(2, max(1, len(str(word).rpartition(".")[2]) // 3))
    found = ((_edits(str(word).lower(), name.lower()), name[:1] != str(word)[:1], name) for name in names)
    distance, _, close = min(found, default=(allowed + 1, True, ""))
    hint = f"; did you mean {close!r}?" if distance <= allowed else "."
    return f"{hint} Known: {', '.join(names) or 'none'}"


def offer(key: str, value: object = "…") -> str:
    """`KEY=VALUE`, for the end of a message, as a shell and Hydra take it: an item is typed with the list around it.

    Args:
        key: `trainer.milestones[0]`, of which with 10 comes `trainer.milestones=[10]`.
        value: as Hydra writes it.
    """
    whole, *inside = re.findall(r"\[\d+\]|^[^\[]+|[^.\[\]]+", key)
    text = str(value)
    for around, part in reversed([*zip([whole, *inside], inside, strict=False)]):
        name = "name: NAME, " if around.startswith("[") else ""  # a list's mappings are components
        text = f"[{text}]" if part.startswith("[") else f"{{{name}{part}: {text}}}"
    word = f"{whole}={text}"
    return f"'{word}'" if re.search(r"[\s(){}$&|;<>*?]", word) else word


def _edits(word: str, other: str) -> int:
    """Letters to insert, remove, replace or exchange with their neighbour (optimal string alignment)."""
    if abs(len(word) - len(other)) > 2:  # more than are asked for
        return 3
    rows = [list(range(len(other) + 1))]
    for i, letter in enumerate(word, 1):
        row = [i]
        for j, its in enumerate(other, 1):
            row.append(min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (letter != its)))
            if i > 1 and j > 1 and (letter, its) == (other[j - 2], word[i - 2]):
                row[j] = min(row[j], rows[-2][j - 2] + 1)
        rows.append(row)
    return rows[-1][-1]


@dataclass(frozen=True)
class Problem:
    """An error as the user sees it."""

    title: str
    text: str
    exit_code: int


def describe_error(error: BaseException) -> Problem:
    """What to show of an error, and the exit code."""
    if isinstance(error, KDError):
        return Problem(type(error).__name__, str(error), error.exit_code)
    module = type(error).__module__.partition(".")[0]
    if module in ("hydra", "omegaconf") or (isinstance(error, ValueError) and _raised_in_hydra(error)):
        return Problem("ConfigError", _hydra_text(error), ConfigError.exit_code)
    if isinstance(error, OSError) and _raised_in_hydra(error):
        text = f"{error.filename or error} cannot be written ({error.strerror}); choose another: hydra.run.dir=DIR"
        kind = DiskError if error.errno in (errno.ENOSPC, errno.EDQUOT) else ConfigError
        return Problem(kind.__name__, text, kind.exit_code)
    missing = missing_memory(error)
    if missing is not None:
        text = f"the memory does not suffice{missing}. Take smaller batches, images or networks, or another device"
        return Problem(OutOfMemory.__name__, text, OutOfMemory.exit_code)
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = f"\n{place[0].filename}:{place[0].lineno} in {place[0].name}" if place else ""
    text = f"{error}{where}\nHYDRA_FULL_ERROR=1 shows the whole traceback."
    return Problem(type(error).__name__, text, KDError.exit_code)


def _raised_in_hydra(error: BaseException) -> bool:
    """Hydra itself failed, and not a job that it called (a job's errors are raised again outside of it)."""
    hydra = sys.modules.get("hydra")
    folder = str(Path(str(hydra.__file__)).parent) if hydra else "no hydra"
    return any(frame.filename.startswith(folder) for frame in traceback.extract_tb(error.__traceback__))


def _hydra_text(error: BaseException) -> str:
    """Hydra's message, with the nearest known key where it has none."""
    cause = error.__cause__ or error
    missing = getattr(error, "missing_cfg_file", None)
    if missing is not None:
        group, _, name = str(missing).rpartition("/")
        options = getattr(error, "options", None) or ()
        return f"{group or '--config-name'}: there is no {group or 'configuration'} {name!r}{suggest(name, options)}"
    if type(cause).__name__.startswith("Interpolation"):
        where = getattr(cause, "full_key", None)
        reason = str(cause).splitlines()[0]
        return f"{where}: {reason}; type ${{KEY}} with a key of the configuration, which cannot be removed"
    if str(error).startswith("Could not delete"):
        return f"{error} type ~KEY with a key that is there: --cfg job shows all of them"
    lines = [line for line in str(error).splitlines() if "append to your config use" not in line]
    parent, key = getattr(cause, "parent_node", None), getattr(cause, "key", None)
    if "Config" in type(cause).__name__ and parent is not None and hasattr(parent, "keys") and key not in parent:
        full = str(getattr(cause, "full_key", None) or key)
        prefix = full.rpartition(".")[0]
        known = [f"{prefix}.{name}" if prefix else str(name) for name in parent]
        return f"{full}: there is no such option{suggest(full, known)}"
    cause_text = "" if cause is error or str(cause) in str(error) else f"\n{str(cause).splitlines()[0]}"
    quote = "\nA value that holds = or , needs quotes of its own: key=\"'a=b'\"" if "input" in lines[0] else ""
    return "\n".join(lines) + cause_text + quote
