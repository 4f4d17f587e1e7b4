"""Where a teacher's answers are kept on disk.

<cache>/teacher/<key>/about.json                        what the key was made of
<cache>/teacher/<key>/train.safetensors                 its answers, a row for each training image
<cache>/teacher/<key>/seed-0-view-0003.safetensors      the same where images are augmented: anew for every view
<cache>/teacher/<key>/seed-0-view-0003-first-960-of-epoch-0003.safetensors     of those alone that an epoch uses
<cache>/teacher/<key>/val.safetensors                   its logits for the validation images

N training images, B per batch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd_cli.storage.cache import cache_folder, entry_name, make_room, read_cached, write_cached
from kd_cli.storage.files import read_json, write_json
from kd_cli.storage.locks import wait_for


class Rows:
    """One output for all training images, in the memory format in which the teacher gave it.

    Args:
        values: [N, …], contiguous.
        order: the output's dimensions as they lie in `values`: (0, 2, 3, 1) for channels last.
    """

    def __init__(self, values: Tensor, order: tuple[int, ...]) -> None:
        self.values = values
        self.order = order
        self._back = [order.index(dimension) for dimension in range(len(order))]

    @classmethod
    def like(cls, output: Tensor, size: int) -> Rows:
        """Room for `size` rows such as those of `output` [B, …]."""
        order = (0, *sorted(range(1, output.dim()), key=output.stride, reverse=True))
        shape = [size, *(output.shape[dimension] for dimension in order[1:])]
        return cls(torch.empty(shape, dtype=output.dtype, device=output.device), order)

    def put(self, ids: Tensor, output: Tensor) -> None:
        """Fills the rows `ids` [B] with `output` [B, …]."""
        self.values[ids] = output.permute(self.order)

    def take(self, ids: Tensor) -> Tensor:
        """The rows `ids` [B], on their device: [B, …]."""
        return self.values.index_select(0, ids.to(self.values.device)).permute(self._back)


class Answers(dict[str, Rows]):
    """Tap → its rows. (A class of its own, since of a plain dict there are no weak references.)"""


@dataclass(frozen=True)
class Entry:
    """Where the answers of one teacher to one kind of question are.

    Args:
        facts: all that they depend on but seed and epoch, as plain JSON values.
        limit: bytes that this and all other entries may take.
    """

    facts: Mapping[str, Any]
    limit: int

    @property
    def path(self) -> Path:
        """Its folder."""
        return cache_folder() / "teacher" / entry_name(self.facts)

    def read(self, name: str, size: int) -> Answers | None:
        """The answers in a file to so many images; None if it is missing or damaged."""
        found = read_cached(self.path / name)
        if found is None:
            return None
        with suppress(OSError):
            os.utime(self.path / "about.json")  # used now: others make room first
        order = json.loads(found[1]["order"])
        answers = Answers({tap: Rows(values, tuple(order[tap])) for tap, values in found[0].items()})
        return answers if all(len(rows.values) == size for rows in answers.values()) else None

    def write(self, name: str, answers: Mapping[str, Rows]) -> None:
        """Keeps answers, if the disk takes them; what was not used for longest makes room."""
        tensors = {tap: rows.values.cpu() for tap, rows in answers.items()}
        make_room(self.path, self.limit - sum(values.nbytes for values in tensors.values()))
        write_cached(self.path / name, tensors, {"order": json.dumps({tap: row.order for tap, row in answers.items()})})

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process asks the teacher while the others wait; where files have no locks, each asks."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("a")
        except OSError:
            yield
            return
        with lock:
            with suppress(OSError):  # this file system has no locks
                wait_for(lock, "teacher    is being asked by another training; waiting for its answers")
            with suppress(OSError):
                if entry_name(read_json(self.path / "about.json") or {}) != self.path.name:  # missing or damaged
                    write_json(self.path / "about.json", self.facts)
            yield
