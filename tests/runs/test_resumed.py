"""A training resumed from any of its checkpoints ends with the same bits: each of them holds all state."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from kd_cli.runs.checkpoint import Checkpoints
from kd_cli.storage.files import file_digest
from tests.support.forked import fork, run
from tests.support.interrupted import COMMANDS, HARD, STEPS, everything, write_network
from tests.support.sample import ALL

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`whole`, a complete distillation; `snapshots`, its folder as it was after each of its checkpoints."""
    folder = tmp_path_factory.mktemp("resumed")
    write_network(folder)
    (folder / "work").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "work")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("KD_CACHE", str(folder / "cache"))
        run("train-teacher", *HARD, "hydra.run.dir=../teacher")
        run("distill", *HARD, *COMMANDS["distill"], "hydra.run.dir=../whole", before=_keep_snapshots)
    return folder


def _keep_snapshots() -> None:
    save = Checkpoints.save

    def save_and_copy(self: Checkpoints, *arguments: Any, **options: Any) -> None:
        save(self, *arguments, **options)
        run = self.folder.parent
        shutil.copytree(
            run, run.parent / "snapshots" / "{:02}-{:02}".format(*self.newest() or ()), copy_function=os.link
        )

    Checkpoints.save = save_and_copy  # type: ignore[method-assign]


@pytest.fixture
def work(place: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place / "work")
    monkeypatch.setenv("KD_CACHE", str(place / "cache"))
    return place


def resumed(folder: Path) -> dict[str, Any]:
    """Goes on with the run in a folder; all that it leaves."""
    run("distill", *HARD, *COMMANDS["distill"], f"hydra.run.dir={folder}")
    return everything(folder)


def test_from_each_of_48_steps_it_ends_with_the_same_bits(work: Path, tmp_path: Path) -> None:
    """By default from the first and last ones of epochs, some inside, and the last of all."""
    expected = everything(work / "whole")
    snapshots = sorted((work / "snapshots").iterdir())
    assert len(snapshots) == STEPS
    taken = snapshots if ALL else [snapshots[step - 1] for step in (1, 6, 12, 13, 29, 36, 47, 48)]
    copies = [Path(shutil.copytree(snapshot, tmp_path / snapshot.name)) for snapshot in taken]
    same = [copy for copy in copies if resumed(copy) == expected]
    print(f"{len(same)} of {len(copies)} ended with the same bits")
    assert same == copies


# What a checkpoint holds in the middle of an epoch: a pattern of names, for every piece.
PIECES = {
    "weights": r"task\.network\..*(weight|bias)",
    "statistics of batch normalisation": r"task\.network\..*running_(mean|var)",
    "count of batch normalisation": r"task\.network\..*num_batches_tracked",
    "layers of the loss": r"task\.method\..*(weight|bias)",
    "memory of the loss": r"task\.method\.(?!.*(weight|bias)).*",
    "first moments": r"optimizer\..*\.exp_avg",
    "second moments": r"optimizer\..*\.exp_avg_sq",
    "steps of the optimizer": r"optimizer\..*\.step",
    "moving average": r"average\.module\..*",
    "count of the moving average": r"average\.n_averaged",
    "sums of the epoch": r"sums\..*",
}
PLAIN = ("seen", "sums", "records", "optimizer", "scaler")


def test_every_tensor_of_a_checkpoint_is_in_one_piece(work: Path) -> None:
    names = load_file(work / "snapshots" / "02-05" / "checkpoints" / "epoch-0002-step-0005" / "training.safetensors")
    found = {name: [piece for piece, pattern in PIECES.items() if re.fullmatch(pattern, name)] for name in names}
    assert {name: pieces for name, pieces in found.items() if len(pieces) != 1} == {}
    assert {piece for pieces in found.values() for piece in pieces} == set(PIECES)


@pytest.mark.parametrize("piece", PIECES)
def test_without_one_piece_of_its_state_it_does_not(piece: str, work: Path, tmp_path: Path) -> None:
    """Once the piece is missing, which is refused, and once it is what it was after the first step."""
    for replace in (False, True):
        folder = Path(shutil.copytree(work / "snapshots" / "02-05", tmp_path / f"replaced-{replace}"))
        checkpoint = folder / "checkpoints" / "epoch-0002-step-0005"
        first = load_file(
            work / "snapshots" / "00-01" / "checkpoints" / "epoch-0000-step-0001" / "training.safetensors"
        )
        tensors = load_file(checkpoint / "training.safetensors")
        chosen = {name for name in tensors if re.fullmatch(PIECES[piece], name)}
        kept = {name: tensor for name, tensor in tensors.items() if name not in chosen}
        (checkpoint / "training.safetensors").unlink()  # it is a link to the snapshot's
        save_file(
            kept | ({name: first[name] for name in chosen} if replace else {}), checkpoint / "training.safetensors"
        )
        seal(checkpoint)
        assert_not_the_same(folder, work)


@pytest.mark.parametrize("key", PLAIN)
def test_without_one_plain_value_of_its_state_it_does_not(key: str, work: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(work / "snapshots" / "02-05", tmp_path / "run"))
    checkpoint = folder / "checkpoints" / "epoch-0002-step-0005"
    plain = json.loads((checkpoint / "state.json").read_text())
    del plain[key]
    (checkpoint / "state.json").write_text(json.dumps(plain))
    seal(checkpoint)
    assert_not_the_same(folder, work)


def seal(checkpoint: Path) -> None:
    """A manifest that fits what was changed."""
    names = [path.name for path in checkpoint.iterdir() if path.name != "manifest.json"]
    manifest = {name: file_digest(checkpoint / name) for name in names}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest, indent=2))


def assert_not_the_same(folder: Path, work: Path) -> None:
    outcome = fork("distill", *HARD, *COMMANDS["distill"], f"hydra.run.dir={folder}").ended()
    assert outcome.code or everything(folder) != everything(work / "whole")
