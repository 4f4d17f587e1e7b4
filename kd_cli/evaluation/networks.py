"""The networks of a run and what each is to the others: teacher, baseline, distilled student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kd_cli import console
from kd_cli.errors import ConfigError, DataError, KDError
from kd_cli.models.base import view_options
from kd_cli.runs.folder import expand
from kd_cli.runs.records import need, run_record
from kd_cli.saved.network import Saved
from kd_cli.saved.weights import specialty
from kd_cli.teachers.ensemble import join_teachers


@dataclass(frozen=True)
class Opened:
    """A network that is ready to be used.

    Args:
        name: `teacher`, `baseline`, `distilled`; `network` where no run says what it is.
        members: where its weights come from; several for an ensemble.
        network: in eval mode.
    """

    name: str
    members: tuple[Saved, ...]
    network: nn.Module

    @property
    def first(self) -> Saved:
        """Its only member, or the one that speaks for an ensemble."""
        return self.members[0]


def open_networks(
    path: Path,
    *,
    which: str | None = None,
    overrides: Sequence[str] = (),
    config_dirs: Sequence[str] = (),
    device: torch.device,
    with_teacher: bool = False,
) -> list[Opened]:
    """The networks of a run: of a comparison teacher, baseline and distilled student, of any other run its own.

    Args:
        which: the epoch, `best` or `last`; a teacher is always as it taught.
        with_teacher: a single student's teacher too, if it is still there.
    """
    saved = partial(Saved, overrides=overrides, config_dirs=config_dirs)
    parts = expand(path)
    compared = parts != [path]
    wanted = [part for part in parts if part.name in ("baseline", "distilled")] if compared else parts
    runs = [saved(part, which=which) for part in wanted]
    opened = [Opened(str(run.source.record.get("stage") or "network"), (run,), run.network(device)) for run in runs]
    if not compared and not with_teacher:
        return opened
    try:
        teacher = teacher_of(runs[-1], device, overrides=overrides, config_dirs=config_dirs)
    except KDError as error:
        console.notice(f"its teacher is left out: {error}")
        return opened
    return [*([teacher] if teacher else []), *opened]


def teacher_facts(student: Saved) -> Mapping[str, Any]:
    """What is on record of a student's teacher; of a comparison's baseline that of its twin; nothing without one."""
    record, run = student.source.record, student.source.run
    if run is not None and record.get("stage") == "baseline" and (run.parent / "run.json").exists():
        record = run_record(run.parent / "distilled")
    facts: Mapping[str, Any] = record.get("teacher") or {}
    return facts


def teacher_of(
    student: Saved,
    device: torch.device,
    *,
    image_shape: tuple[int, int, int] | None = None,
    overrides: Sequence[str] = (),
    config_dirs: Sequence[str] = (),
) -> Opened | None:
    """What taught a student, in eval mode; None where nothing did.

    Args:
        image_shape: of the images that it is to see; None: as recorded.

    Raises:
        KDError: a part of it is gone or has changed since.
    """
    facts = teacher_facts(student)
    if not facts:
        return None
    saved = partial(Saved, overrides=overrides, config_dirs=config_dirs)
    if facts.get("ready"):
        raise ConfigError(f"{facts['sources'][0]} was ready as it stood, and kd builds no such network from a record")
    sources, digests = (need(facts, key, student.source.run) for key in ("sources", "sha256"))
    members = tuple(saved(_found(student, Path(source))) for source in sources)
    for place, member in enumerate(members):
        if member.source.sha256 not in digests[place : place + 1]:
            raise DataError(f"{member.path} has changed since it taught {student.path}")
    spec = student.spec()
    shape, views = image_shape or spec.image_shape, map(view_options, need(facts, "models", student.source.run))
    seen = [replace(member.spec(), image_shape=shape, mean=spec.mean, std=spec.std) for member in members]
    each = zip(members, seen, views, strict=True)
    networks = [member.network(device, shown, view) for member, shown, view in each]
    groups = [specialty(member.source, spec.class_names) for member in members]
    network = join_teachers(list(zip(networks, groups, strict=True)), facts.get("weights"), spec.num_classes)
    return Opened("teacher", members, network.to(device).eval())


def _found(student: Saved, source: Path) -> Path:
    """The folder on record, or the one beside the student where both were moved together."""
    beside = student.source.run.parent / source.name if student.source.run else source
    return source if source.exists() or not beside.exists() else beside
