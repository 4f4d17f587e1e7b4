"""torchvision's data sets: found, downloaded with their checksums, or refused with what to do instead."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_cli.errors import DataError

_MOST_BYTES = 1_000_000_000  # the largest archive has 170 MB, the largest file of an unpacked one 155 MB

log = logging.getLogger("kd")


@dataclass(frozen=True)
class Source:
    """Where torchvision expects a data set.

    Args:
        title: for messages: `MNIST`.
        dataset: the torchvision class.
        files: what must be there, relative to the root.
        archives: what is downloaded, relative to the root, with its MD5; one that is already there and has it is used.
        url: where a person can get them.
    """

    title: str
    dataset: Callable[..., Any]
    files: Sequence[str]
    archives: Mapping[str, str]
    url: str


def open_parts(source: Source, root: str, *, download: bool) -> tuple[Any, Any]:
    """The training and the test part as torchvision's objects.

    Args:
        root: the folder that holds the data set's own folder.
        download: fetch what is missing or damaged.

    Raises:
        DataError: missing, damaged, or the download failed.
    """
    folder = Path(root).expanduser().absolute()
    problem = _missing(source, folder)
    if not problem:
        try:
            return _open(source, folder)
        except (
            Exception
        ) as error:  # each format has its own: RuntimeError, ValueError, AssertionError, UnpicklingError …
            problem = f"{source.title} in {folder} is damaged ({_line(error)})"
    if not download:
        raise DataError(f"{problem}. Type dataset.download=true, or {_by_hand(source, folder)}")
    log.info("%s: downloading it into %s", problem, folder)
    try:
        _fetch(source, folder)
        return _open(source, folder)
    except Exception as error:  # URLError, RuntimeError (checksum), OSError (disk full, no permission), TarError …
        raise DataError(f"{problem}, and the download failed ({_line(error)}). {_by_hand(source, folder)}") from error


def _open(source: Source, folder: Path) -> tuple[Any, Any]:
    return source.dataset(folder, train=True), source.dataset(folder, train=False)


def _missing(source: Source, folder: Path) -> str:
    large = [
        name for name in source.files if (folder / name).is_file() and (folder / name).stat().st_size > _MOST_BYTES
    ]
    if large:
        return f"{source.title} in {folder} is damaged ({large[0]} has {(folder / large[0]).stat().st_size:,} bytes)"
    absent = [name for name in source.files if not (folder / name).is_file()]
    listed = ", ".join(absent[:4]) + (" …" if len(absent) > 4 else "")
    return f"{source.title} is not in {folder} (looked for {listed})" if absent else ""


def _by_hand(source: Source, folder: Path) -> str:
    return (
        f"put {', '.join(source.archives)} (from {source.url}) or the unpacked files into {folder}, "
        "or say where they are with dataset.root=DIR or the environment variable KD_DATA=DIR"
    )


def _fetch(source: Source, folder: Path) -> None:
    """Downloads beside the destination and moves what is complete into it, so that a failure leaves nothing."""
    made = _first_new(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".kd-download-", dir=folder) as name:
            scratch = Path(name)
            _lend(source, folder, scratch)
            with contextlib.redirect_stdout(sys.stderr), _kept_inside():  # standard output belongs to --json
                source.dataset(scratch, train=True, download=True)
            for file in source.files:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (scratch / file).replace(folder / file)
    except BaseException:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
        raise


def _first_new(folder: Path) -> Path | None:
    """The highest folder that making `folder` would make."""
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    return absent[-1] if absent else None


def _lend(source: Source, folder: Path, scratch: Path) -> None:
    """Shows the archives that a person put there to torchvision, which downloads the others.

    It would write a download through a link to what is no such archive.
    """
    for archive, digest in source.archives.items():
        if (folder / archive).is_file() and _digest(folder / archive) == digest:
            (scratch / archive).parent.mkdir(parents=True, exist_ok=True)
            (scratch / archive).symlink_to(folder / archive)


def _digest(path: Path) -> str:
    """MD5, which is all that these data sets' authors give."""
    if path.stat().st_size > _MOST_BYTES:
        return ""
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@contextlib.contextmanager
def _kept_inside() -> Iterator[None]:
    """Has Python's tarfile refuse members that lead out of the folder, links, devices, as it does from 3.14 on."""
    before = tarfile.TarFile.__dict__.get("extraction_filter")
    data_filter = getattr(tarfile, "data_filter", None)
    tarfile.TarFile.extraction_filter = staticmethod(data_filter) if data_filter else None
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before


def _line(error: Exception) -> str:
    """An exception as one line."""
    return " ".join(str(error).split()) or type(error).__name__
