"""Checkpoints: each is a folder that is written whole or not at all, and whose every bit is checked when it is read."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_cli.errors import DataError
from kd_cli.storage.files import file_digest, guard_disk, read_json, whole_folder
from kd_cli.storage.tensors import read_tables, read_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

_MANIFEST = "manifest.json"
_NEEDED = ("model.safetensors", "state.json")
_NAME = re.compile(r"[a-z0-9_-]+\.(safetensors|json)")


class Checkpoint:
    """One whole checkpoint: a folder with the files of its manifest, each with the SHA-256 given there, and no other.

    Args:
        path: its folder.

    Attributes:
        plain: state.json.

    Raises:
        DataError: missing, damaged, or another checkpoint than its place says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.manifest = _read_manifest(path)
            self._check_files()
        except FileNotFoundError as error:
            raise DataError(f"{path} was removed while it was read, by the run that it is of; type it again") from error
        self.plain: dict[str, Any] = read_json(path / "state.json") or {}
        self._check_place()

    @property
    def place(self) -> tuple[int, int]:
        """Where the training stands: epochs done, and updates done in the epoch after them."""
        return self.plain["epoch"], self.plain["step"]

    @property
    def model_digest(self) -> str:
        """SHA-256 of the network's weights file."""
        return self.manifest["model.safetensors"]

    def tensors(self, stem: str) -> dict[str, Tensor]:
        """Name → tensor of `model` or `training`.

        Raises:
            DataError: its file is no safetensors file; somebody wrote both it and the manifest.
        """
        return read_tensors(self.path / f"{stem}.safetensors")[0]

    def _check_files(self) -> None:
        there = {entry.name for entry in self.path.iterdir() if not entry.name.startswith(".")}  # a file browser's own
        for name in sorted(there ^ {*self.manifest, _MANIFEST}):
            raise DataError(f"{self.path / name} is {'not in manifest.json' if name in there else 'missing'}")
        for name, digest in self.manifest.items():
            file = self.path / name
            if file.is_symlink() or not file.is_file():
                raise DataError(f"{file} is not a regular file, as those of a checkpoint are")
            if file_digest(file) != digest:
                raise DataError(f"{file} is damaged: its SHA-256 is not the one in manifest.json")

    def _check_place(self) -> None:
        for key in ("epoch", "step"):
            if type(self.plain.get(key)) is not int or self.plain[key] < 0:
                raise DataError(f"{self.path / 'state.json'} is damaged: it does not say which {key} it is of")
        name = place_name(self.place)
        if self.path.name.startswith("epoch-") and self.path.name != name:
            raise DataError(f"{self.path} is in the wrong place: it was saved as {name}")


def place_name(place: tuple[int, int]) -> str:
    """How the folder of a checkpoint is called: `epoch-0007`, or within the epoch after it `epoch-0007-step-0012`."""
    epoch, step = place
    return f"epoch-{epoch:04d}" + (f"-step-{step:04d}" if step else "")


def _read_manifest(path: Path) -> dict[str, str]:
    """File name → SHA-256; every byte of it is as `write_checkpoint` would write it.

    Raises:
        DataError: missing or damaged, or it names something that no checkpoint has.
    """
    manifest = read_json(path / _MANIFEST)
    if manifest is None:
        raise DataError(f"{path} is not a checkpoint: it has no readable {_MANIFEST}")
    wrong = [name for name, digest in manifest.items() if not _NAME.fullmatch(name) or not isinstance(digest, str)]
    missing = [name for name in _NEEDED if name not in manifest]
    if wrong or missing or (path / _MANIFEST).read_bytes() != _manifest_text(manifest):
        reason = f": it names {wrong[0][:80]!r}" if wrong else f": it does not name {missing[0]}" if missing else ""
        raise DataError(f"{path / _MANIFEST} is damaged{reason}")
    return manifest


def _manifest_text(manifest: Mapping[str, str]) -> bytes:
    return json.dumps(manifest, indent=2).encode()


def load_state(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """`load_state_dict` of tensors that come from a safetensors file.

    Such a file has no place for the format versions that `state_dict()` carries along, and some networks (MNASNet)
    refuse to load without them; the module's own are used.

    Raises:
        RuntimeError: names or shapes differ.
    """
    state = OrderedDict(tensors)
    state._metadata = module.state_dict()._metadata  # type: ignore[attr-defined]
    module.load_state_dict(state)


def write_checkpoint(path: Path, tensors: Mapping[str, Mapping[str, Tensor]], plain: Mapping[str, Any]) -> None:
    """Writes a folder under a temporary name, makes sure that it is on the disk, then gives it its name.

    Args:
        tensors: file stem → name → tensor.
        plain: everything else, as plain JSON values.

    Raises:
        DiskError: the disk is full or cannot be written; nothing is left behind.
    """
    from safetensors.torch import save

    files = {f"{stem}.safetensors": save(_on_cpu(values)) for stem, values in tensors.items()}
    files["state.json"] = json.dumps(plain).encode()
    manifest = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    files[_MANIFEST] = _manifest_text(manifest)
    size = sum(map(len, files.values()))
    with guard_disk(path, size), whole_folder(path) as temporary:  # in the place of a damaged one of the same epoch
        for name, content in files.items():
            (temporary / name).write_bytes(content)


def wrong_tables(checkpoint: Path) -> list[str]:
    """The tables of whole numbers of a saved moving average that are not those of the network that it is of.

    kd averaged them and cut the result before it knew better; what was trained stands in the same checkpoint.

    Args:
        checkpoint: its folder; where it has no readable training.safetensors nothing is known.
    """
    try:
        saved = read_tables(checkpoint / "model.safetensors")
        trained = read_tables(checkpoint / "training.safetensors") if saved else {}
    except DataError:
        return []
    own: dict[str, set[bytes]] = {}  # by their last names: a method can have made another network of the student
    for name, values in trained.items():
        if name.startswith("task."):
            own.setdefault(name.rpartition(".")[2], set()).add(values)
    return [name for name, values in saved.items() if values not in own.get(name.rpartition(".")[2], {values})]


def damage_by_averaging(path: Path) -> str | None:
    """A sentence, where a checkpoint has `wrong_tables`, or the best or last one of a run.

    Args:
        path: a run's folder or a checkpoint's.
    """
    found = [name for each in (path, *sorted(path.glob("checkpoints/epoch-*"))) for name in wrong_tables(each)]
    if not found:
        return None
    rest = len(set(found)) - 1
    return (
        f"{path}: its moving average (trainer.ema_decay) is damaged, because an earlier kd averaged tables of whole "
        f"numbers, too ({found[0]}{f' and {rest} more' if rest else ''}); its accuracy, and whatever is made of it, is "
        "that of the damaged network. Train it again, in another folder"
    )


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


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
        """The one after `epoch` epochs. Raises DataError: it is missing, damaged or of another run."""
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
