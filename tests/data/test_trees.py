"""Trees of images as people have them: which folders are parts and classes, what is left out, what cannot be read."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kd_cli.data.base import Data, Raw, load_dataset
from kd_cli.data.common import Common
from kd_cli.data.decode import read_header, read_image
from kd_cli.data.resize import square_size
from kd_cli.errors import DataError
from kd_cli.evaluation.predict import find_images
from tests.support.images import make_tree
from tests.support.reading import labels_of, pixels_of, refused


def options(root: Path, **others: Any) -> dict[str, Any]:
    return {"name": "image_folder", "root": str(root), "workers": 0, **others}


def sizes(data: Data) -> list[int]:
    return [data.size(part) for part in ("train", "val", "test")]


def said(caplog: pytest.LogCaptureFixture, words: str) -> str:
    """The only notice with these words."""
    (found,) = {record.getMessage() for record in caplog.records if words in record.getMessage()}
    return found


def quiet(caplog: pytest.LogCaptureFixture) -> bool:
    return not [record for record in caplog.records if record.levelno >= logging.WARNING]


def renamed(root: Path, **parts: str) -> Path:
    for old, new in parts.items():
        (root / old).rename(root / "moving")
        (root / "moving").rename(root / new)
    return root


# --- parts and classes


@pytest.mark.parametrize(
    ("train", "test", "typed"),
    [
        ("Train", "Test", "dataset.train_folder=Train dataset.test_folder=Test"),
        ("training", "validation", "dataset.train_folder=training dataset.test_folder=validation"),
        ("TRAIN", "dev", "dataset.train_folder=TRAIN dataset.test_folder=dev"),
        ("train", "testing", "dataset.test_folder=testing"),
    ],
)
def test_parts_by_other_names_are_no_classes_and_the_message_says_what_to_type(
    train: str, test: str, typed: str, tmp_path: Path
) -> None:
    root = renamed(make_tree(tmp_path / "tree"), train=train, test=test)
    message = refused(options(root))
    assert message.endswith(f"type {typed}")
    named = {key.removeprefix("dataset."): value for key, value in (word.split("=") for word in typed.split())}
    data = load_dataset(options(root, **named))
    assert data.spec.class_names == ("cat", "dog", "eel")
    assert data.size("test") == 15


def test_a_root_that_is_too_high_is_refused_with_the_one_to_type(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree")
    assert f"type dataset.root={root}" in refused(options(tmp_path))
    shutil.move(root / "train", root / "both")
    shutil.rmtree(root / "test")
    (root / "notes").mkdir()
    assert "both/ hold folders and no image of their own" in refused(options(root))
    shutil.copytree(root / "both" / "cat", root / "both" / "dog" / "more")  # beside images of its own: a part of it
    shutil.rmtree(root / "notes")
    assert load_dataset(options(root / "both")).spec.class_names == ("cat", "dog", "eel")


def test_folders_called_like_parts_are_classes_where_they_hold_images_beside_another_class(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree", parts=("",))
    renamed(root, cat="valid", dog="invalid", eel="test")
    assert load_dataset(options(root, val_fraction=0)).spec.class_names == ("invalid", "test", "valid")
    shutil.rmtree(root / "invalid")
    assert "hold no folder for each class" in refused(options(root))


def test_val_validates_and_is_never_trained_or_tested_on(tmp_path: Path) -> None:
    for name in ("val", "valid", "validation", "dev"):
        root = renamed(make_tree(tmp_path / name, parts=("train", "val", "test")), val=name)
        for in_memory in (True, False):
            data = load_dataset(options(root, in_memory=in_memory))
            assert sizes(data) == [15, 15, 15]
            expected = [read_image(path, "rgb") for path in sorted((root / name).rglob("*.png"))]
            assert torch.equal(pixels_of(data, "val"), torch.stack(expected))
            assert labels_of(data, "val") == [0] * 5 + [1] * 5 + [2] * 5
    two = shutil.copytree(root / "dev", root / "valid")
    assert "dev/ and valid/; type dataset.val_folder=dev, or" in refused(options(root))
    assert sizes(load_dataset(options(root, val_folder=two.name))) == [15, 15, 15]


def test_without_validation_val_is_not_read_and_that_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = make_tree(tmp_path / "tree", parts=("train", "val", "test"))
    assert sizes(load_dataset(options(root, val_fraction=0))) == [15, 0, 15]
    assert "val_fraction is 0" in said(caplog, "val/ is not read")


def test_without_test_val_is_tested_and_never_selected_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = make_tree(tmp_path / "tree", parts=("train", "val"), per_class=10)
    data = load_dataset(options(root))
    assert sizes(data) == [27, 3, 30]
    notice = said(caplog, "has no test/: val/ is tested")
    caplog.clear()
    for typed, expected in (("dataset.test_folder=val", [27, 3, 30]), ("dataset.val_folder=val", [24, 30, 6])):
        assert typed in notice
        key, _, value = typed.removeprefix("dataset.").partition("=")
        assert sizes(load_dataset(options(root, **{key: value}))) == expected
    assert quiet(caplog)


def test_a_named_folder_must_be_there(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree")
    message = refused(options(root, test_folder="Tests"))
    assert "dataset.test_folder=Tests" in message
    assert "Folders there: test, train" in message


def test_a_tree_that_is_only_to_be_tested_is_tested_whole(tmp_path: Path) -> None:
    flat = make_tree(tmp_path / "flat", parts=("",))
    assert sizes(load_dataset(options(flat, test_fraction=1))) == [0, 0, 15]
    parted = make_tree(tmp_path / "parted")
    assert sizes(load_dataset(options(parted, test_fraction=1, in_memory=False))) == [0, 0, 15]
    shutil.rmtree(parted / "train")
    assert sizes(load_dataset(options(parted, test_fraction=1))) == [0, 0, 15]


def test_classes_without_validation_or_test_images_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = make_tree(tmp_path / "tree", parts=("",), per_class=20)
    for path in sorted((root / "dog").iterdir())[2:]:
        path.unlink()
    load_dataset(options(root))
    assert said(caplog, "no validation image").endswith("shows dog (2 for training)")
    assert said(caplog, "no test image").endswith("shows dog (2 for training)")


# --- what is left out


def litter(root: Path, folders: Iterable[str]) -> None:
    """Copies as systems and programs leave them beside people's images."""
    for name in folders:
        folder = root / name
        picture = next(folder.glob("*.png"))
        for hidden in (".ipynb_checkpoints", "__MACOSX", "@eaDir"):
            (folder / hidden).mkdir()
            shutil.copy(picture, folder / hidden / "copy.png")
        (folder / f"._{picture.name}").write_bytes(b"\0\5\26\7" + bytes(60))
        shutil.copy(picture, folder / "Thumbs.db")


def test_hidden_names_and_companions_are_left_out_at_every_depth_with_one_notice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_tree(tmp_path / "tree", parts=("",))
    whole = load_dataset(options(root, val_fraction=0)).fingerprint
    assert quiet(caplog)
    litter(root, ("cat", "dog"))
    (root / ".git").mkdir()
    assert load_dataset(options(root, val_fraction=0)).fingerprint == whole
    counts = said(caplog, "left out").partition("companions: ")[2]
    assert "2 .ipynb_checkpoints/" in counts
    assert "2 ._*" in counts
    assert "2 Thumbs.db" in counts
    assert len(find_images([str(root)])) == 15


def test_what_is_no_image_is_passed_over_and_counted_by_suffix(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_tree(tmp_path / "tree", parts=("",))
    for number in range(3):
        (root / "cat" / f"{number}.txt").write_text("0 0.5 0.5 1 1")
    (root / "eel" / "README").write_text("of eels")
    (root / "loose.png").write_bytes((root / "cat" / "0.png").read_bytes())
    assert sum(sizes(load_dataset(options(root, val_fraction=0)))) == 15
    assert (
        said(caplog, "passed over").partition(" (")[0].endswith(": 3 .txt, 1 .png beside the classes, 1 without suffix")
    )


@pytest.mark.parametrize("name", ["0.jfif", "0.JPE", "0.pjpeg", "0", "0.jpg.download"])
def test_images_are_read_by_their_content_whatever_their_suffix(name: str, tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree", parts=("",))
    for label in ("cat", "dog", "eel"):
        Image.new("RGB", (8, 6)).save(root / label / name, format="JPEG")
    assert sum(sizes(load_dataset(options(root)))) == 18
    assert len(find_images([str(root)])) == 18


@pytest.mark.parametrize("in_memory", [True, False])
def test_equal_files_on_two_sides_of_the_split_are_told(
    tmp_path: Path, in_memory: bool, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_tree(tmp_path / "tree", suffix="bmp")  # all of one size
    load_dataset(options(root, in_memory=in_memory))
    assert quiet(caplog)
    for number in (1, 3):
        shutil.copy(root / "train" / "cat" / f"{number}.bmp", root / "test" / "eel" / f"{number}.bmp")
    shutil.copy(root / "train" / "cat" / "0.bmp", root / "train" / "cat" / "copy.bmp")  # on one side
    load_dataset(options(root, in_memory=in_memory, val_fraction=0))
    notice = said(caplog, "very bytes")
    assert " 2 validation or test images" in notice
    assert "test/eel/1.bmp = train/cat/1.bmp" in notice


def test_files_that_only_begin_alike_are_no_twins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = make_tree(tmp_path / "tree")
    for number, part in enumerate(("train", "test")):
        pixels = np.zeros((120, 120, 3), dtype=np.uint8)
        pixels[0] = number * 9  # the first row is the last of the file
        Image.fromarray(pixels).save(root / part / "cat" / "0.bmp")
    load_dataset(options(root, in_memory=False, image_size=8))
    assert quiet(caplog)


# --- what cannot be read


def damage(root: Path, *names: str) -> None:
    for name in names:
        (root / name).write_bytes((root / name).read_bytes()[:-60])


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "webp", "tif"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_all_unreadable_files_stand_in_one_list_before_anything_runs(
    tmp_path: Path, in_memory: bool, suffix: str
) -> None:
    root = make_tree(tmp_path / "tree", suffix=suffix)
    names = [f"train/cat/0.{suffix}", f"train/dog/1.{suffix}", f"test/eel/2.{suffix}"]
    damage(root, *names[:2])
    (root / names[2]).write_text("no image")
    with pytest.raises(DataError) as caught:
        load_dataset(options(root, in_memory=in_memory))
    lines = str(caught.value).splitlines()
    assert lines[0] == "3 of 30 files cannot be read; type dataset.unreadable=skip to leave them out:"
    assert len(lines) == 4
    assert all(line.count("cannot be read as an image") == 1 for line in lines[1:])
    assert all(name in line for name, line in zip(sorted(names[:2]) + names[2:], lines[1:], strict=True))


@pytest.mark.parametrize("in_memory", [True, False])
def test_unreadable_files_are_skipped_where_that_is_typed_and_counted(
    tmp_path: Path, in_memory: bool, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_tree(tmp_path / "tree")
    damage(root, "train/cat/0.png", "test/eel/2.png")
    for _ in range(2):  # the second time from what is kept
        caplog.clear()
        data = load_dataset(options(root, in_memory=in_memory, unreadable="skip", val_fraction=0))
        assert sizes(data) == [14, 0, 14]
        assert data.unreadable == 2
        assert labels_of(data, "train") == [0] * 4 + [1] * 5 + [2] * 5
        assert torch.equal(pixels_of(data, "train")[0], read_image(root / "train" / "cat" / "1.png", "rgb"))
        assert "2 of 30 files" in said(caplog, "left out (dataset.unreadable=skip)")
    with pytest.raises(DataError, match="2 of 30 files"):
        load_dataset(options(root, in_memory=in_memory))


def test_what_headers_say_is_kept_and_asked_again_when_a_file_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_tree(tmp_path / "tree")
    with caplog.at_level(logging.INFO, logger="kd"):
        load_dataset(options(root, in_memory=False, workers=2))
        assert "checking" in caplog.text
        caplog.clear()
        load_dataset(options(root, in_memory=False))
        assert "checking" not in caplog.text
    damage(root, "test/eel/2.png")
    assert "eel/2.png" in refused(options(root, in_memory=False))


def test_a_header_tells_what_decoding_would(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix in ("jpg", "png", "gif", "bmp", "webp", "tif", "ppm"):
        path = tmp_path / f"a.{suffix}"
        Image.new("RGB", (8, 6)).save(path, **({"exif": exif} if suffix in ("jpg", "png", "webp", "tif") else {}))
        assert read_header(path)[:2] == tuple(read_image(path, "rgb").shape[:2])
    path.write_bytes(path.read_bytes() + b"more")  # behind its end
    assert read_header(path)[:2] == (6, 8)


@pytest.mark.parametrize(
    ("size", "square"), [((168, 192), 160), ((32, 48), 32), ((28, 30), 28), ((375, 500), 224), ((6, 8), 6)]
)
def test_the_size_to_type_is_one_that_suits_the_images(size: tuple[int, int], square: int) -> None:
    assert square_size(*size) == square


# --- labels


@pytest.mark.parametrize(
    "labels", [torch.zeros(6, 3, dtype=torch.int64), torch.rand(6), torch.zeros(6, 2), torch.zeros(6, dtype=torch.bool)]
)
def test_other_tasks_than_single_label_classification_are_refused_in_one_sentence(labels: torch.Tensor) -> None:
    pixels = torch.zeros(6, 4, 4, 3, dtype=torch.uint8)
    with pytest.raises(DataError, match="kd is for single-label classification"):
        Data("mine", Raw(pixels, labels, pixels, labels, ("a", "b")), Common())
