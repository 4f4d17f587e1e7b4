"""Which files below a folder are images; what else lies there is left out, counted, and told once."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from kd_cli.data.decode import FORMATS, is_image
from kd_cli.errors import DataError, listed

# Files that are called so are meant as images: one that cannot be read is told, not passed over.
SUFFIXES = (  # of decode.FORMATS
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".gif", ".webp"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff"}
)
# What systems and programs leave in people's folders, besides names that begin with a dot.
_COMPANIONS = frozenset(
    {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found"}
    | {"system volume information"}
)


class LeftOut:
    """What is below a folder and is not taken for an image, counted while it is walked.

    Args:
        folder: as messages name it.

    Attributes:
        folders: those that were looked into, and when each was changed last, ns.
    """

    def __init__(self, folder: Path | str) -> None:
        self._folder = folder
        self.folders: dict[str, int] = {}
        self._notes: list[str] = []
        self._hidden: Counter[str] = Counter()
        self._others: Counter[str] = Counter()

    def hides(self, name: str, kind: str = "") -> bool:
        """Whether a name is hidden or a companion's, at any depth; it is counted then.

        Args:
            kind: `/` for a folder.
        """
        hidden = name.startswith(".") or name.lower() in _COMPANIONS
        if hidden:
            self._hidden["._*" if name.startswith("._") else name + kind] += 1
        return hidden

    def passes_over(self, folder: str, name: str) -> bool:
        """Whether a file is no image, by its name or else by its content; it is counted then.

        Args:
            folder: with a `/` at its end.
        """
        _, dot, ending = name.rpartition(".")
        suffix = (dot + ending).lower() if dot else ""
        if suffix in SUFFIXES or is_image(folder + name):
            return False
        self.pass_over(suffix or "without suffix")
        return True

    def pass_over(self, what: str) -> None:
        """Counts something that is not read: a suffix, or a folder's name with `/`."""
        self._others[what] += 1

    def note(self, text: str) -> None:
        """Keeps what is to be told besides."""
        self._notes.append(text)

    def notices(self) -> list[str]:
        """What was noted, one of what is hidden, and one of all else."""
        said = [*self._notes]
        if self._hidden:
            said.append(f"{self._folder}: left out as hidden or companions: {_counted(self._hidden)}")
        if self._others:
            said.append(f"{self._folder}: passed over: {_counted(self._others)} (images are {', '.join(FORMATS)})")
        return said


def _counted(found: Counter[str]) -> str:
    return listed([f"{count:,} {name}" for name, count in found.most_common()], most=8)


def folders_in(folder: Path, left_out: LeftOut) -> list[str]:
    """The names of the folders in a folder, sorted, without the hidden ones. Raises DataError: it cannot be read."""
    try:
        left_out.folders[str(folder)] = os.stat(folder).st_mtime_ns  # noqa: PTH116
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror}); type dataset.root=DIR") from error
    return [name for name in names if not left_out.hides(name, "/")]


def images_in(folder: Path, left_out: LeftOut) -> Iterator[str]:
    """The images that lie in a folder itself, not in its folders."""
    _, _, names = next(os.walk(folder), ("", [], []))
    return (path for path in _images(str(folder), names, left_out))


def walk_images(folder: Path, left_out: LeftOut) -> Iterator[str]:
    """The paths of all images below a folder, each folder once however links lead to it."""
    seen: set[tuple[int, int]] = set()
    for parent, below, names in os.walk(folder, followlinks=True):
        status = os.stat(parent)  # noqa: PTH116
        if (status.st_dev, status.st_ino) in seen:
            below.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        left_out.folders[parent] = status.st_mtime_ns
        below[:] = [name for name in below if not left_out.hides(name, "/")]
        yield from _images(parent, names, left_out)


def _images(parent: str, names: list[str], left_out: LeftOut) -> Iterator[str]:
    folder = os.path.join(parent, "")  # noqa: PTH118  (a million joined paths take longer than all the rest)
    for name in names:
        if not left_out.hides(name) and not left_out.passes_over(folder, name):
            yield folder + name


def file_state(path: str) -> tuple[int, int]:
    """Bytes and time of the last change (ns) of an image file; a link is what it leads to, wherever that is.

    Raises:
        DataError: it is a device, a pipe or a link to nothing.
    """
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError as error:
        raise DataError(f"{path} is no file ({error.strerror}); mend or remove it") from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path} is a device or a pipe, not a file; remove it")
    return status.st_size, status.st_mtime_ns
