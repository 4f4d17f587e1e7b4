"""The networks of a run and what each is to the others: teacher, baseline, distilled student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kd_cli import console
from kd_cli.errors import DataError, KDError
from kd_cli.handover import join_teachers
from kd_cli.saved import Saved, expand


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

    Raises:
        ConfigError: as `Saved`.
        DataError: as `Saved`.
    """
    saved = partial(Saved, overrides=overrides, config_dirs=config_dirs)
    parts = expand(path)
    compared = parts != [path]
    wanted = [part for part in parts if part.name in ("baseline", "distilled")] if compared else parts
    runs = [saved(part, which=which) for part in wanted]
    opened = [Opened(_role(run), (run,), run.network(device)) for run in runs]
    if not compared and not with_teacher:
        return opened
    return [*_teacher(runs[-1], saved, device), *opened]


def _role(saved: Saved) -> str:
    return str(saved.source.record.get("stage") or "network")


def _teacher(student: Saved, saved: partial[Saved], device: torch.device) -> list[Opened]:
    """What taught a student; nothing, and a notice of why, where it is not there any more."""
    record = student.source.record.get("teacher")
    if not record:
        return []
    try:
        members = tuple(_members(student, record, saved))
        loaded = [(each.network(device), {"specialist": each.source.record.get("specialist")}) for each in members]
        network = loaded[0][0]
        if len(members) > 1:
            weights = student.recorded["ensemble"]["weights"]
            network = join_teachers(loaded, weights, student.spec().num_classes).to(device).eval()
    except KDError as error:
        console.notice(f"its teacher is left out: {error}")
        return []
    return [Opened("teacher", members, network)]


def _members(student: Saved, record: Mapping[str, Any], saved: partial[Saved]) -> list[Saved]:
    """The runs that taught, with the weights that they had then.

    Raises:
        DataError: one of them is gone or has other weights.
    """
    members = [saved(_found(student, Path(source))) for source in record["sources"]]
    for member, digest in zip(members, record["sha256"], strict=True):
        if member.source.sha256 != digest:
            raise DataError(f"{member.path} has changed since it taught {student.path}")
    return members


def _found(student: Saved, source: Path) -> Path:
    """The folder on record, or the one beside the student where both were moved together."""
    beside = student.source.run.parent / source.name if student.source.run else source
    return source if source.exists() or not beside.exists() else beside
