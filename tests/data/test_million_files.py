"""What a million files need: an index, names in one buffer, headers without a library, splits by one sort."""

from __future__ import annotations

import io
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import million_files
from kd_cli.data import files, tree_index
from kd_cli.data.base import load_dataset
from kd_cli.data.decode import STAMPED, Unreadable, read_header, usual_header
from kd_cli.data.files import Files
from kd_cli.data.geometry import Geometry
from kd_cli.data.names import Names, joined, pack
from kd_cli.data.sampling import draw_per_class, generator, stratified_split
from kd_cli.data.sources import FolderSource
from kd_cli.storage.cache import cache_folder
from tests.support.images import make_tree
from tests.support.reading import pixels_of, refused

LONG_AGO = 1_500_000_000


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree that counts as a large one, of which one file is asked for."""
    monkeypatch.setattr(tree_index, "FEWEST", 1)
    monkeypatch.setattr(tree_index, "_SAMPLE", 1)
    root = make_tree(tmp_path / "tree")
    (root / "train" / "cat" / "notes.txt").write_text("of cats")
    settle(root)
    return root


def settle(root: Path) -> None:
    """Its folders were changed long ago."""
    for folder, _, _ in os.walk(root):
        os.utime(folder, (LONG_AGO, LONG_AGO))


def streamed(root: Path, **others: Any) -> dict[str, Any]:
    return {"name": "image_folder", "root": str(root), "in_memory": False, "workers": 0, "val_fraction": 0, **others}


def rewrite(path: Path, color: tuple[int, int, int] = (9, 9, 9)) -> None:
    """Another image in the same file; the folder's time stays."""
    content = io.BytesIO()
    Image.new("RGB", (8, 6), color).save(content, "png")
    path.write_bytes(content.getvalue())


def indexes() -> int:
    return len(list((cache_folder() / "data").glob("*.safetensors")))


# --- the index


def test_a_second_look_is_the_first_with_all_it_said_and_asks_for_no_file(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = load_dataset(streamed(root))
    said = [record.getMessage() for record in caplog.records]
    assert any("passed over: 1 .txt" in text for text in said)
    caplog.clear()
    (root / "train" / "dog" / "3.png").write_bytes(b"")  # nobody sees it
    second = load_dataset(streamed(root))
    assert [record.getMessage() for record in caplog.records] == said
    assert second.fingerprint == first.fingerprint
    assert second.spec == first.spec
    assert torch.equal(second.labels("train"), first.labels("train"))


@pytest.mark.parametrize("change", ["more", "fewer", "renamed", "deeper", "other class"])
def test_what_changes_a_folder_is_seen(change: str, root: Path) -> None:
    cat = root / "train" / "cat"
    (cat / "deep").mkdir()
    settle(root)
    before = load_dataset(streamed(root))
    if change == "fewer":
        (cat / "0.png").unlink()
    elif change == "renamed":
        (cat / "0.png").rename(cat / "00.png")
    elif change == "other class":
        (cat / "0.png").rename(root / "train" / "dog" / "moved.png")
    else:
        rewrite(cat / ("deep" if change == "deeper" else "") / "new.png")
    after = load_dataset(streamed(root))
    assert after.fingerprint != before.fingerprint
    assert after.size("train") - before.size("train") == {"more": 1, "deeper": 1, "fewer": -1}.get(change, 0)


def test_a_file_that_was_written_anew_in_its_place_is_named_when_it_is_read(root: Path) -> None:
    load_dataset(streamed(root))
    path = root / "train" / "cat" / "3.png"
    rewrite(path)
    with pytest.raises(Unreadable, match=f"3.png has .* bytes, and had .* touch {path.parent}"):
        pixels_of(load_dataset(streamed(root)), "train")
    os.utime(path.parent)
    assert (pixels_of(load_dataset(streamed(root)), "train")[3] == 9).all()


def test_a_sample_of_the_files_is_asked_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_dataset(streamed(root)).fingerprint
    monkeypatch.setattr(tree_index, "_SAMPLE", 1_000)
    rewrite(root / "test" / "eel" / "4.png")
    assert load_dataset(streamed(root)).fingerprint != before


def test_of_images_that_are_held_each_file_is_asked_for(root: Path) -> None:
    options = streamed(root, in_memory=True)
    load_dataset(options)
    rewrite(root / "train" / "cat" / "3.png")
    assert (pixels_of(load_dataset(options), "train")[3] == 9).all()


def test_no_index_is_kept_of_folders_that_may_still_be_filled(root: Path) -> None:
    os.utime(root / "test" / "eel")
    load_dataset(streamed(root))
    assert indexes() == 1  # what the headers said
    settle(root)
    load_dataset(streamed(root))
    assert indexes() == 2


def test_a_small_tree_has_no_index(tmp_path: Path) -> None:
    settle(make_tree(tmp_path / "tree"))
    load_dataset(streamed(tmp_path / "tree"))
    assert indexes() == 1
    rewrite(tmp_path / "tree" / "train" / "cat" / "3.png")
    assert (pixels_of(load_dataset(streamed(tmp_path / "tree")), "train")[3] == 9).all()


def test_a_damaged_index_is_made_again(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = load_dataset(streamed(root)).fingerprint
    for path in (cache_folder() / "data").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-7])
    assert load_dataset(streamed(root)).fingerprint == first
    assert "is damaged" in caplog.text
    shutil.rmtree(root)
    assert "there is no folder" in refused(streamed(root))


def test_what_a_tree_is_known_by_is_the_same_at_every_look_and_in_memory_or_not(root: Path) -> None:
    (root / "train" / "cat" / "2.png").write_bytes(b"no image")
    settle(root)
    known = set()
    for held in (False, False, True, True):
        data = load_dataset(streamed(root, image_size=96, in_memory=held, unreadable="skip"))
        known.add(data.fingerprint)
    assert len(known) == 1
    (root / "train" / "cat" / "1.png").rename(root / "train" / "cat" / "one.png")
    assert load_dataset(streamed(root, image_size=96, unreadable="skip")).fingerprint not in known


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_headers_tell_the_same_whoever_reads_them_and_how_many_at_a_time(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_HEADERS", 4)
    (tmp_path / "tree").mkdir()
    contents = [JPEGS["usual"], JPEGS["grey"], OTHERS["turned"], b"no image", JPEGS["large"], OTHERS["cut"]] * 3
    paths = [tmp_path / "tree" / f"{number:02}.jpg" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    source = FolderSource(tmp_path / "tree", pack(path.name for path in paths), torch.tensor([*map(len, contents)]))
    paths[4].unlink()
    paths[7].write_bytes(contents[7] + b"more")
    stamps, errors = Files(source, Geometry(8), "rgb").check(workers)
    assert sorted(errors) == [3, 4, 5, 7, 9, 11, 15, 17]
    assert "No such file" in str(errors[4])
    assert "written anew" in str(errors[7])
    assert stamps.tolist() == [read_header(path)[2] for row, path in enumerate(paths) if row not in errors]


# --- names


def test_names_are_bytes_in_one_buffer_in_any_order() -> None:
    words = ["a/é.jpg", "", "b/\udcff.png", "c" * 300]
    names = joined([pack(words[:1]), pack([]), pack(words[1:])])
    assert [names[row] for row in range(len(names))] == words
    some = names.take(torch.tensor([2, 0]))
    assert list(some.chunks()) == [[os.fsencode(words[2]), os.fsencode(words[0])]]
    assert isinstance(pickle.loads(pickle.dumps(some)), Names)


def test_a_source_goes_to_a_worker_that_was_not_forked(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    size = (tmp_path / "tree/train/cat/1.png").stat().st_size
    source = FolderSource(tmp_path / "tree", pack(["train/cat/1.png"]), torch.tensor([size]))
    files = Files(source, Geometry(), "rgb")
    assert torch.equal(pickle.loads(pickle.dumps(files))[0], files[0])


# --- headers


def jpeg(**options: Any) -> bytes:
    mode, size = options.pop("mode", "RGB"), options.pop("size", (37, 21))
    content = io.BytesIO()
    Image.effect_noise(size, 60).convert(mode).save(content, "JPEG", **options)
    return content.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(exif=exif)


JPEGS = {
    "usual": jpeg(),
    "grey": jpeg(mode="L"),
    "progressive": jpeg(progressive=True),
    "with a comment": jpeg(comment=b"of eels"),
    "restarts": jpeg(restart_marker_blocks=1),
    "large": jpeg(size=(300, 200), quality=95),
}
OTHERS = {
    "turned": turned(),
    "for printers": jpeg(mode="CMYK"),
    "a profile": jpeg(icc_profile=b"x" * 200),
    "cut": jpeg()[:-2],
    "more behind its end": jpeg() + b"more",
    "a header longer than what is read": jpeg(comment=b"x" * 40_000),
}


def usual(content: bytes) -> tuple[int, int, int] | None:
    return usual_header(content[:STAMPED], content[-2:])


@pytest.mark.parametrize("name", JPEGS)
def test_the_header_of_a_usual_jpeg_is_read_as_pil_reads_it(name: str, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(JPEGS[name])
    assert usual(JPEGS[name]) == read_header(tmp_path / "x.jpg")


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_jpeg_is_left_to_pil(name: str) -> None:
    assert usual(OTHERS[name]) is None


def test_no_damaged_header_is_sound_that_is_not_so_to_pil(tmp_path: Path) -> None:
    random, path, sound = np.random.default_rng(0), tmp_path / "x.jpg", 0
    for content in (JPEGS["usual"], JPEGS["progressive"], JPEGS["with a comment"]):
        end = content.index(b"\xff\xda") + 4
        for _ in range(400):
            changed = bytearray(content)
            changed[random.integers(2, end)] = random.integers(0, 256)
            seen = usual(bytes(changed))
            if seen is None:
                continue
            path.write_bytes(changed)
            sound += 1
            assert read_header(path) == seen
    assert sound > 300


def test_a_bomb_is_left_to_pil_which_names_it() -> None:
    content = bytearray(JPEGS["usual"])
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = b"\xff\xdc\xff\xdc"
    assert usual(bytes(content)) is None


# --- splits


@pytest.mark.parametrize("fraction", [0, 0.05, 0.1, 0.25, 1 / 3, 0.5])
def test_a_split_takes_of_each_class_the_first_of_one_shuffled_order(fraction: float) -> None:
    for seed in range(40):
        labels = torch.randint(0, 7, (160,), generator=generator(seed, "labels"))
        shuffled = torch.randperm(160, generator=generator(seed, "dataset.val_fraction"))
        expected = torch.zeros(160, dtype=torch.bool)
        for label in range(7):
            members = shuffled[labels[shuffled] == label]
            expected[members[: int(len(members) * fraction + 0.5)]] = True
        kept, taken = stratified_split(labels, fraction, seed, key="dataset.val_fraction")
        assert torch.equal(taken, expected.nonzero().flatten())
        assert torch.equal(kept, (~expected).nonzero().flatten())


@pytest.mark.parametrize("count", [1, 4, 1000])
def test_so_many_of_each_class_are_the_first_of_one_shuffled_order(count: int) -> None:
    for seed in range(40):
        labels = torch.randint(0, 7, (60,), generator=generator(seed, "labels"))
        shuffled = torch.randperm(60, generator=generator(seed, "dataset.images_per_class"))
        expected = [shuffled[labels[shuffled] == label][:count] for label in range(7)]
        assert torch.equal(draw_per_class(labels, count, seed), torch.cat(expected).sort().values)


# --- the benchmark


def test_the_benchmark_makes_a_tree_of_files_that_differ_and_measures_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    million_files.main(["make", str(tmp_path / "tree"), "--classes", "3", "--per-class", "20"])
    million_files.main(["look", str(tmp_path / "tree")])
    assert '"images": [' in capsys.readouterr().out
    assert len({path.read_bytes() for path in tmp_path.rglob("*.JPEG")}) == 60
    assert "very bytes" not in caplog.text
