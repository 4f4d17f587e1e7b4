"""From the folders that a user names to the runs, comparisons and sweeps in them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd_cli.errors import ConfigError
from kd_cli.report.records import Run, mapping, read_run
from kd_cli.runs.folder import find_records, status_of
from kd_cli.runs.records import sound_record
from kd_cli.storage.files import read_json


@dataclass(frozen=True)
class Compared:
    """The folder of one `kd run`.

    Args:
        path: as it was found.
        record: run.json.
        parts: `teacher`, `baseline`, `distilled`, … → the real folder of the run.
        status: of the whole.
    """

    path: Path
    record: Mapping[str, Any]
    parts: Mapping[str, Path]
    status: str


@dataclass
class Collected:
    """All that was found, the oldest first.

    Attributes:
        runs: by their real folder; each training once, however many comparisons use it.
        compared: the comparisons.
        sweeps: folder → sweep.json.
        warnings: what could not be read.
    """

    runs: dict[Path, Run] = field(default_factory=dict)
    compared: list[Compared] = field(default_factory=list)
    sweeps: dict[Path, Mapping[str, Any]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def sweep_folder(self, path: Path) -> Path | None:
        """The sweep that a point's folder belongs to."""
        folder = path.parent.resolve()
        return next((above for above in (folder, *folder.parents) if above in self.sweeps), None)

    def sweep_of(self, path: Path) -> Mapping[str, Any]:
        """Its sweep.json; empty for any other folder."""
        folder = self.sweep_folder(path)
        return {} if folder is None else self.sweeps[folder]


def collect(targets: Sequence[Path]) -> Collected:
    """Reads every run below the targets, and the parts and teachers of those runs wherever they are.

    Raises:
        ConfigError: a target is not there, or nothing below it was made by kd.
    """
    found = Collected()
    for target in targets:
        if not target.exists():
            raise ConfigError(f"there is no folder {target}; kd list runs shows what is there")
        _search(target, found)
    if not found.runs and not found.compared and not found.sweeps:
        names = ", ".join(map(str, targets))
        raise ConfigError(f"there is no run in {names}; kd run makes some, and kd list runs --outputs DIR shows them")
    _add_teachers(found)
    found.runs = dict(sorted(found.runs.items(), key=lambda item: (item[1].started, item[0])))
    found.compared.sort(key=lambda each: (str(each.record.get("started")), each.path))
    return found


def _search(target: Path, found: Collected) -> None:
    seen = {each.path.resolve() for each in found.compared}
    folders = [folder for folder, _ in find_records(target)]
    for folder in {target, *(above for each in folders for above in _above(each, target))}:
        _add_sweep(folder, found)
    for folder in folders:
        record = sound_record(folder)
        if record is None:
            found.warnings.append(f"{folder / 'run.json'} is damaged: the run is left out")
        elif record.get("stage") is not None:
            _add_run(folder.resolve(), record, found)
        elif folder.resolve() not in seen:
            found.compared.append(Compared(folder, record, dict(_parts(folder, found)), status_of(folder)))


def _above(folder: Path, target: Path) -> Iterator[Path]:
    """The folders from the one that holds `folder` up to the target."""
    for above in folder.parents:
        if above == target or target not in above.parents:
            return
        yield above


def _add_sweep(folder: Path, found: Collected) -> None:
    if not (folder / "sweep.json").exists():
        return
    sweep = read_json(folder / "sweep.json")
    if sweep is None:
        found.warnings.append(f"{folder / 'sweep.json'} is damaged: points that did not finish may be missing here")
    else:
        found.sweeps[folder.resolve()] = sweep


def _parts(folder: Path, found: Collected) -> Iterator[tuple[str, Path]]:
    """The runs in a comparison's folder; those that it shares with others are symbolic links."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir())
    for name in names:
        real = (folder / name).resolve()
        record = sound_record(real)
        if record is not None:
            _add_run(real, record, found)
            yield name, real


def _add_run(real: Path, record: Mapping[str, Any], found: Collected) -> None:
    if real not in found.runs:
        found.runs[real] = read_run(real, record, found.warnings)


def _add_teachers(found: Collected) -> None:
    """What taught the students here may lie elsewhere: it is read too, if it still is what taught them."""
    known = {run.weights for run in found.runs.values()}
    for run in list(found.runs.values()):
        for source, digest in _teachers(run):
            folder = Path(source)
            record = sound_record(folder)
            if digest in known or record is None or record.get("stage") is None:
                continue
            teacher = read_run(folder.resolve(), record, [])
            if teacher.weights == digest:
                known.add(digest)
                found.runs[teacher.path] = teacher


def _teachers(run: Run) -> list[tuple[str, str]]:
    facts = mapping(run.record.get("teacher"))
    sources, digests = facts.get("runs") or facts.get("sources"), facts.get("sha256")
    if not isinstance(sources, list) or not isinstance(digests, list):
        return []
    return [(str(source), str(digest)) for source, digest in zip(sources, digests, strict=False)]


def teacher_digests(run: Run) -> list[str]:
    """SHA-256 of the weights of what taught a run."""
    return [digest for _, digest in _teachers(run)]
