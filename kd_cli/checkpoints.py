"""The checkpoints of one run: which are kept, and which one a training goes on from."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_cli.checkpoint import Checkpoint, place_name, write_checkpoint
from kd_cli.errors import DataError
from kd_cli.files import guard_disk

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("kd")

_KEEP = 2  # beside the best one
_PLACE = re.compile(r"epoch-(\d+)(?:-step-(\d+))?")

Place = tuple[int, int]  # epochs done, and updates done in the epoch after them


@dataclass(frozen=True)
class Checkpoints:
    """The folder of a run's checkpoints.

    Args:
        folder: it is made when the first one is saved.
        run: the run, as `owner` names it; a checkpoint of another one is not taken for one of this.
    """

    folder: Path
    run: str

    def save(
        self,
        place: Place,
        tensors: Mapping[str, Mapping[str, Tensor]],
        plain: Mapping[str, Any],
    ) -> None:
        """Writes one checkpoint beside the others.

        Args:
            place: where the training stands.
            tensors: file stem (`model`, `training`) → name → tensor.
            plain: everything else, as plain JSON values.

        Raises:
            KDError: the disk is full or cannot be written; the others are as they were.
        """
        with guard_disk(self.folder):
            self.folder.mkdir(exist_ok=True)
            facts = {"epoch": place[0], "step": place[1], "run": self.run}
            write_checkpoint(self.folder / place_name(place), tensors, {**plain, **facts})

    def prune(self, place: Place, best_epoch: int | None) -> None:
        """Removes what is neither recent nor best.

        Args:
            place: of the newest one.
            best_epoch: the epoch whose checkpoint must stay; None: there is none yet.
        """
        # What lies behind it is damaged, or of a training that was given up.
        newest = [path.name for other, path in self._places() if other <= place][-_KEEP:]
        for old in self.folder.iterdir():
            if old.name not in {*newest, place_name((best_epoch or 0, 0))}:
                shutil.rmtree(old, ignore_errors=True)

    def latest(self) -> Checkpoint | None:
        """The newest one that is whole and of this run; others are passed over with a notice."""
        paths = [path for _, path in self._places()]
        for number, path in reversed(list(enumerate(paths))):
            try:
                return self._open(path)
            except DataError as error:
                log.warning("%s; %s", error, "the one before it is used" if number else "training begins again")
        return None

    def newest(self) -> Place | None:
        """Where the newest one stands, by its name."""
        places = self._places()
        return places[-1][0] if places else None

    def after(self, epoch: int) -> Checkpoint:
        """The one after `epoch` epochs.

        Raises:
            DataError: it is missing, damaged or of another run.
        """
        return self._open(self.folder / place_name((epoch, 0)))

    def _open(self, path: Path) -> Checkpoint:
        checkpoint = Checkpoint(path)
        if checkpoint.plain.get("run") != self.run:
            raise DataError(f"{path} is a checkpoint of another run")
        return checkpoint

    def _places(self) -> list[tuple[Place, Path]]:
        """All that are there, from the first to the last."""
        named = [(_PLACE.fullmatch(path.name), path) for path in self.folder.glob("epoch-*")]
        return sorted(((int(name[1]), int(name[2] or 0)), path) for name, path in named if name)


def owner(record: Mapping[str, Any]) -> str:
    """How a run is known to its checkpoints, by its run.json; parts of a comparison share their configuration."""
    return f"{record.get('started')} {record.get('config_digest')}"
