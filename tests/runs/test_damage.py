"""Every damage to a checkpoint or a cache is noticed; what was whole before it is used, or it is made again."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kd_cli.errors import DataError
from kd_cli.runs.checkpoint import Checkpoint, Checkpoints
from kd_cli.runs.predictions import FILE, Predictions, read_predictions, write_predictions
from kd_cli.runs.sweep_folder import SweepDir
from kd_cli.storage.cache import cache_folder, read_cached, shards_in, write_cached
from kd_cli.storage.files import file_digest, open_regular
from kd_cli.storage.parts import writing
from kd_cli.teachers.outputs import Entry, make_layout
from kd_cli.types import Outputs
from tests.conftest import SMALL, Outcome

Damage = Callable[[bytes, random.Random], bytes]
TIMES = 300
OF_A_CHECKPOINT = ("model.safetensors", "training.safetensors", "state.json", "manifest.json")


def flip(content: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(8 * len(content))
    changed = bytearray(content)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.choice([0, chance.randrange(len(content)), len(content) - 1])]


def zero(content: bytes, chance: random.Random) -> bytes:
    """A block that was zeros already is none: another is drawn."""
    start, length = chance.randrange(len(content)), chance.randint(1, 4096)
    block = content[start : start + length]
    return content[:start] + bytes(len(block)) + content[start + length :] if any(block) else zero(content, chance)


def save(checkpoints: Checkpoints, epoch: int) -> None:
    """Two files of tensors and one of plain values, different for every epoch."""
    made = torch.Generator().manual_seed(epoch)
    tensors = {stem: {"w": torch.randn(40, 9, generator=made)} for stem in ("model", "training")}
    checkpoints.save((epoch, 0), tensors, {"records": [{"epoch": epoch}], "scaler": {}})


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    made = Checkpoints(tmp_path / "checkpoints", run="this")
    for epoch in (1, 2):
        save(made, epoch)
    return made


def keep_answers(entry: Entry, view: str) -> None:
    """20 rows of logits and embeddings in two shards."""
    said = Outputs(torch.randn(20, 5), {"embedding": torch.randn(20, 5)})
    layout = make_layout(said, entry.kept)
    shards = entry.shards(view, layout, 20, batch_size=4)
    rows = layout.pack(layout.encode(said)).numpy().tobytes()
    for number in range(shards.count):
        with writing(shards, number, wait=False) as part:
            assert part is not None
            part.add(rows[: shards.size(number)])
            part.finish()


@pytest.fixture
def cached() -> list[Path]:
    """A file of each kind that the cache has."""
    entry = Entry({"number": 1}, 10**9, per_shard=12)
    for view in ("train", "seed-0-view-0000", "seed-0-view-0001"):
        keep_answers(entry, view)
    write_cached(entry.path / "val.safetensors", {"logits": torch.randn(20, 5)}, {})
    write_cached(cache_folder() / "data" / "0123.safetensors", {"images": torch.ones(9, 4, 4, 3)}, {"digest": "abc"})
    return sorted(path for kind in ("safetensors", "rows") for path in cache_folder().rglob(f"*.{kind}"))


def read(path: Path) -> object | None:
    """What a file of the cache has, if it is what was written there."""
    if path.suffix == ".safetensors":
        return read_cached(path)
    return shards_in(path.parent).find(int(path.name[:4]))


def check_passed_over(checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture) -> None:
    """The newest checkpoint is refused, in one line, and the one before it taken."""
    caplog.clear()
    with pytest.raises(DataError):
        Checkpoint(checkpoints.folder / "epoch-0002").tensors("training")
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.place == (1, 0)
    (line,) = caplog.messages
    assert line.endswith("; the one before it is used")
    assert "\n" not in line


def check_made_again(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A cache file is refused, in one line."""
    caplog.clear()
    assert read(path) is None
    (line,) = caplog.messages
    assert line.endswith("it is not used")
    assert str(path) in line
    assert "\n" not in line


@pytest.mark.slow  # 900 files are damaged and read
@pytest.mark.parametrize("damage", [flip, cut, zero])
def test_300_damages_of_each_kind_are_noticed(
    damage: Damage, checkpoints: Checkpoints, cached: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_predictions(tmp_path, Predictions(torch.randn(30, 4), torch.arange(30) % 4), weights="abc")
    of_checkpoint = [checkpoints.folder / "epoch-0002" / name for name in OF_A_CHECKPOINT]
    paths = [*of_checkpoint, *cached, tmp_path / FILE]
    whole = {path: path.read_bytes() for path in paths}
    chance = random.Random(damage.__name__)
    for number in range(TIMES):
        path = paths[number % len(paths)]
        path.write_bytes(damage(whole[path], chance))
        if path in of_checkpoint:
            check_passed_over(checkpoints, caplog)
        elif path in cached:
            check_made_again(path, caplog)
        else:
            assert read_predictions(tmp_path, weights="abc") is None
        path.write_bytes(whole[path])
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.place == (2, 0)
    assert all(read(path) for path in cached)
    assert read_predictions(tmp_path, weights="abc") is not None


def swap_folders(folder: Path) -> None:
    (folder / "epoch-0002").rename(folder / "epoch-0003")
    (folder / "epoch-0001").rename(folder / "epoch-0002")
    (folder / "epoch-0003").rename(folder / "epoch-0001")


@pytest.mark.parametrize("name", OF_A_CHECKPOINT)
def test_a_missing_or_foreign_file_of_a_checkpoint_is_noticed(
    name: str, checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (checkpoints.folder / f"epoch-000{epoch}" / name for epoch in (1, 2))
    whole = second.read_bytes()
    second.unlink()
    check_passed_over(checkpoints, caplog)
    shutil.copy(first, second)
    check_passed_over(checkpoints, caplog)
    second.write_bytes(whole)
    second.rename(second.with_name("moved"))
    second.symlink_to("moved")
    check_passed_over(checkpoints, caplog)


@pytest.mark.parametrize("extra", ["model-2.safetensors", "notes.txt", "folder"])
def test_an_extra_file_in_a_checkpoint_is_noticed(
    extra: str, checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture
) -> None:
    path = checkpoints.folder / "epoch-0002" / extra
    path.mkdir() if extra == "folder" else path.write_text("extra")
    check_passed_over(checkpoints, caplog)


def test_a_file_browsers_hidden_file_is_no_damage(checkpoints: Checkpoints) -> None:
    (checkpoints.folder / "epoch-0002" / ".DS_Store").write_text("")
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.place == (2, 0)


def test_a_checkpoint_under_another_epochs_name_is_noticed(checkpoints: Checkpoints) -> None:
    (checkpoints.folder / "epoch-0002").rename(checkpoints.folder / "epoch-0003")
    with pytest.raises(DataError, match="wrong place: it was saved as epoch-0002"):
        Checkpoint(checkpoints.folder / "epoch-0003")


def test_two_epochs_that_changed_places_are_both_refused(checkpoints: Checkpoints) -> None:
    swap_folders(checkpoints.folder)
    assert checkpoints.latest() is None


def test_another_runs_checkpoint_is_noticed(
    checkpoints: Checkpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = Checkpoints(tmp_path / "other", run="other")
    save(other, 2)
    shutil.rmtree(checkpoints.folder / "epoch-0002")
    shutil.copytree(other.folder / "epoch-0002", checkpoints.folder / "epoch-0002")
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.place == (1, 0)
    assert len(caplog.messages) == 1
    assert "another run" in caplog.text


def test_a_space_more_in_a_manifest_is_noticed(checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture) -> None:
    path = checkpoints.folder / "epoch-0002" / "manifest.json"
    path.write_text(path.read_text() + " ")
    check_passed_over(checkpoints, caplog)


def test_a_pipe_has_no_digest(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert file_digest(tmp_path / "pipe") == ""
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(Path("/dev/zero"))


def link_to_zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors", "epoch-0002"])
def test_pipes_and_devices_in_a_checkpoint_are_neither_waited_for_nor_read(
    name: str, checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture
) -> None:
    folder = checkpoints.folder / "epoch-0002"
    path = folder if name == folder.name else folder / name
    for make in (os.mkfifo, link_to_zeros, link_to_itself):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        make(path)
        check_passed_over(checkpoints, caplog)


def test_cache_files_that_changed_places_are_noticed(cached: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    other = Entry({"number": 2}, 10**9, per_shard=12)
    keep_answers(other, "train")
    (elsewhere,) = shards_in(other.path / "train").files(0)
    (first,) = (path for path in cached if path.name.startswith("0000-") and path.parent.name == "train")
    for path, source in [*((path, cached[number - 1]) for number, path in enumerate(cached)), (first, elsewhere)]:
        whole = path.read_bytes()
        shutil.copyfile(source, path)
        check_made_again(path, caplog)
        path.write_bytes(whole)


def test_a_shard_under_its_own_name_in_another_place_is_noticed(
    cached: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (path for path in cached if path.parent.name == "train")
    moved = first.parent / first.name.replace("0000-", "0001-")
    other = first.parent.with_name("seed-0-view-0000") / first.name
    second.unlink()
    for path in shards_in(other.parent).files():
        path.unlink()
    for place in (moved, other):
        shutil.copyfile(first, place)
        check_made_again(place, caplog)


@pytest.mark.parametrize(
    ("before", "after"),
    [("[0, 1]", "[1, 0]"), ('"tap": "embedding"', '"tap": "embeddinG"'), ('"rows": 20', '"rows": 21'), ("32", "16")],
    ids=["order", "name of a tap", "number of images", "type"],
)
def test_another_manifest_is_noticed(
    before: str, after: str, cached: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    (first,) = (path for path in cached if path.name.startswith("0000-") and path.parent.name == "train")
    path = first.parent / "manifest.json"
    changed = path.read_text().replace(before, after, 1)
    assert changed != path.read_text()
    path.write_text(changed)
    check_made_again(first, caplog)
    assert not shards_in(path.parent).is_whole()


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "3", "{}", '{"rows": 20}', "[" * 100_000),
        '{"rows": 1e30, "rows_per_shard": 0, "row_bytes": 1}',
        '{"rows": "x", "rows_per_shard": 1, "row_bytes": 1}',
        '{"rows": 1, "rows_per_shard": 1e9, "row_bytes": 1e30}',
        '{"rows": 1000000000000000000000000, "rows_per_shard": 1, "row_bytes": 1}',
        '{"rows": 20, "rows_per_shard": -1, "row_bytes": -1}',
    ],
)
def test_a_manifest_of_anybodys_is_damaged_and_nothing_else(cached: list[Path], content: str) -> None:
    path = next(each.parent for each in cached if each.suffix == ".rows") / "manifest.json"
    path.write_text(content)
    assert not shards_in(path.parent).is_whole()


def test_changed_facts_in_a_cache_file_are_noticed(cached: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    (path,) = (path for path in cached if path.stem == "0123")
    path.write_bytes(path.read_bytes().replace(b'digest\\": \\"abc', b'digest\\": \\"abd', 1))
    check_made_again(path, caplog)


def test_predictions_of_other_weights_are_not_taken(tmp_path: Path) -> None:
    write_predictions(tmp_path, Predictions(torch.randn(3, 4), torch.arange(3)), weights="these")
    assert read_predictions(tmp_path, weights="those") is None


@pytest.mark.parametrize("make", [os.mkfifo, link_to_zeros, os.mkdir])
def test_what_is_no_file_in_the_cache_is_noticed(
    make: Callable[[Path], None], cached: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    cached[0].unlink()
    make(cached[0])
    check_made_again(cached[0], caplog)


# --- the command line: a damaged checkpoint or cache costs time, and nothing else

TRAIN = ("train-teacher", *SMALL, "trainer.epochs=4", "hydra.run.dir=run", "--json")


def flip_model(newest: Path) -> None:
    spoil(newest / "model.safetensors", flip)


def spoil(path: Path, damage: Damage) -> None:
    path.write_bytes(damage(path.read_bytes(), random.Random(1)))


def take_an_older_model(newest: Path) -> None:
    shutil.copy(newest.parent / "epoch-0003" / "model.safetensors", newest)


def take_an_older_one(newest: Path) -> None:
    shutil.rmtree(newest)
    shutil.copytree(newest.parent / "epoch-0003", newest)


RUINS: dict[str, Callable[[Path], object]] = {
    "flipped bit": flip_model,
    "cut": lambda newest: spoil(newest / "training.safetensors", cut),
    "zeros": lambda newest: spoil(newest / "state.json", zero),
    "manifest": lambda newest: spoil(newest / "manifest.json", flip),
    "missing": lambda newest: (newest / "training.safetensors").unlink(),
    "older model": take_an_older_model,
    "older checkpoint": take_an_older_one,
}


@pytest.mark.slow  # a training for each ruin
def test_a_run_with_a_damaged_checkpoint_ends_with_the_same_bits(kd: Callable[..., Outcome]) -> None:
    whole = kd(*TRAIN).json
    Path("run").rename("finished")
    for name, ruin in RUINS.items():
        shutil.copytree("finished", "run")
        Path("run/result.json").unlink()
        ruin(Path("run/checkpoints/epoch-0004"))
        again = kd(*TRAIN)
        assert again.json["weights_sha256"] == whole["weights_sha256"], name
        assert again.err.count("the one before it is used") == 1, name
        assert "goes on after epoch 3" in again.err, name
        shutil.rmtree("run")


@pytest.mark.slow  # a training for each damage
def test_a_damaged_cache_gives_the_same_student(kd: Callable[..., Outcome], teacher: dict[str, Any]) -> None:
    distill = ("distill", *SMALL, f"teacher.checkpoint={teacher['run']}", "--json")
    whole = kd(*distill).json["weights_sha256"]
    for name in ("train/*.rows", "val.safetensors"):
        (path,) = cache_folder().rglob(name)
        for damage in (flip, cut, zero):
            spoil(path, damage)
            again = kd(*distill)
            assert again.json["weights_sha256"] == whole
            assert again.err.count("it is not used") == 1
            assert read(path)


def test_a_damaged_record_of_the_cache_is_shown_as_one(kd: Callable[..., Outcome], teacher: dict[str, Any]) -> None:
    kd("distill", *SMALL, f"teacher.checkpoint={teacher['run']}", "--json")
    about = next(cache_folder().rglob("about.json"))
    about.write_text(about.read_text().replace("mlp", "MLP"))
    assert "damaged" in kd("cache", "verify", code=3).message
    about.write_text('{"teacher": [], "data": 3, "taps": "x"}')
    kd("cache")


# --- damaged records are never taken for missing ones


def break_json(path: Path) -> None:
    path.write_text(path.read_text()[:-5])


@pytest.mark.parametrize("command", ["show", "resume", "evaluate", "export", "profile"])
def test_a_damaged_run_json_is_an_error(command: str, kd: Callable[..., Outcome], teacher: dict[str, Any]) -> None:
    break_json(Path(teacher["run"], "run.json"))
    message = kd(command, teacher["run"], code=3).message
    assert "run.json is damaged" in message


def test_a_damaged_result_is_an_error_that_says_what_to_do(kd: Callable[..., Outcome], teacher: dict[str, Any]) -> None:
    path = Path(teacher["run"], "result.json")
    break_json(path)
    for command in (["evaluate", teacher["run"]], ["show", teacher["run"]]):
        assert "result.json is damaged" in kd(*command, code=3).message
    path.write_text(json.dumps({"best_epoch": "../../x"}))
    assert "best_epoch cannot be '../../x'" in kd("evaluate", teacher["run"], code=3).message


HOSTILE_JOBS = (
    *(
        {"p": job}
        for job in (3, None, "", "slurm", "slurm 1;id", "slurm -1", "local 1", "local 99999999999999999999 h")
    ),
    *({name: "slurm 1"} for name in ("../p", "/p", "a/../../p")),
    ["slurm 1"],
)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"points": [3]}', '{"keys": {}}', *(json.dumps({"jobs": jobs}) for jobs in HOSTILE_JOBS)],
)
def test_a_damaged_sweep_json_is_an_error_and_its_folder_is_free_again(content: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(content)
    for _ in range(2):
        with pytest.raises(DataError, match=r"sweep\.json is damaged"):
            SweepDir(tmp_path, {"keys": []})


@pytest.mark.parametrize("jobs", HOSTILE_JOBS)
def test_a_list_of_runs_shows_no_job_that_cannot_be(kd: Callable[..., Outcome], jobs: Any) -> None:
    Path("outputs/swept").mkdir(parents=True)
    Path("outputs/swept/sweep.json").write_text(json.dumps({"jobs": jobs}))
    assert kd("list", "runs", "--json").json["runs"] == []


def test_a_list_of_runs_names_the_damaged_ones(kd: Callable[..., Outcome], teacher: dict[str, Any]) -> None:
    break_json(Path(teacher["run"], "run.json"))
    (run,) = kd("list", "runs", "--json").json["runs"]
    assert run["status"] == "damaged"


def test_weights_of_another_kind_of_number_are_refused(kd: Callable[..., Outcome], teacher: dict[str, Any]) -> None:
    folder = Path(teacher["run"], "checkpoints", f"epoch-{teacher['best_epoch']:04d}")
    weights = load_file(folder / "model.safetensors")
    words = [word for word in SMALL if not word.startswith(("trainer", "student.hidden"))]
    for change, said in (
        (lambda tensor: tensor.to(torch.int32), "is int32, not float32"),
        (lambda tensor: tensor / 0, "not finite"),
    ):
        save_file({name: change(tensor) for name, tensor in weights.items()}, "other.safetensors")
        assert said in kd("evaluate", "other.safetensors", *words, "student=mlp", code=3).message
