"""A tree of images: read, split, stretched, streamed, and decoded once."""

from __future__ import annotations

import io
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from kd_cli.data.base import load_dataset
from kd_cli.errors import DataError
from kd_cli.storage.cache import cache_folder
from tests.support.images import make_tree
from tests.support.reading import labels_of, pixels_of, refused
from tests.support.sample import ALL
from tests.support.small import CPU

# --- a tree of images


def tree_options(root: Path, **options: Any) -> dict[str, Any]:
    return {"name": "image_folder", "root": str(root), "val_fraction": 0, "workers": 1, **options}


def read_tree(root: Path, part: str) -> Tensor:
    return torch.stack([torch.from_numpy(read_rgb(path)) for path in sorted((root / part).rglob("*.png"))])


def read_rgb(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_tree_gives_its_pixels_and_sorted_classes(tmp_path: Path, in_memory: bool, workers: int) -> None:
    root = make_tree(tmp_path / "tree")
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    data = load_dataset(tree_options(root, in_memory=in_memory, workers=workers))
    assert data.spec.class_names == ("cat", "dog", "eel")
    assert data.spec.image_shape == (3, 6, 8)
    for part in ("train", "test"):
        assert torch.equal(pixels_of(data, part), read_tree(root, part))
        assert labels_of(data, part) == [0] * 5 + [1] * 5 + [2] * 5


def test_a_streamed_tree_gives_the_same_bits_as_a_held_one(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree")
    options = tree_options(root, augment="strong", image_size=12, val_fraction=0.2)
    held, streamed = load_dataset(options), load_dataset({**options, "in_memory": False, "workers": 2})
    for seed in (0, 1):
        call: Any = {"seed": seed, "epoch": 3, "batch_size": 4, "device": CPU}
        for one, other in zip(held.train_batches(**call), streamed.train_batches(**call), strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)
    assert torch.equal(pixels_of(held, "val"), pixels_of(streamed, "val"))


def test_one_tree_is_split_by_class_and_split_seed(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree", parts=("",), per_class=10)
    data = load_dataset(tree_options(root, test_fraction=0.3))
    assert np.bincount(labels_of(data, "test")).tolist() == [3, 3, 3]
    assert np.bincount(labels_of(data, "train")).tolist() == [7, 7, 7]
    parts = torch.cat([pixels_of(data, "train"), pixels_of(data, "test")]).flatten(1)
    assert torch.equal(parts.unique(dim=0), read_tree(root, "").flatten(1).unique(dim=0))
    again, other = (load_dataset(tree_options(root, test_fraction=0.3, split_seed=seed)) for seed in (0, 1))
    assert again.fingerprint == data.fingerprint != other.fingerprint
    assert torch.equal(pixels_of(again, "test"), pixels_of(data, "test"))
    assert not torch.equal(pixels_of(other, "test"), pixels_of(data, "test"))
    streamed = load_dataset(tree_options(root, test_fraction=0.3, in_memory=False))
    assert torch.equal(pixels_of(streamed, "test"), pixels_of(data, "test"))


def test_images_of_other_sizes_are_stretched_to_image_size(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree")
    path = root / "train" / "cat" / "0.png"
    Image.fromarray(read_rgb(path)).resize((20, 30)).save(path)
    data = load_dataset(tree_options(root, image_size=16))
    assert data.spec.image_shape == (3, 16, 16)
    expected = np.array(Image.fromarray(read_rgb(path)).resize((16, 16), Image.Resampling.BILINEAR))
    assert np.array_equal(pixels_of(data, "train")[0].numpy(), expected)


@pytest.mark.parametrize("in_memory", [True, False])
def test_images_of_different_sizes_need_image_size(tmp_path: Path, in_memory: bool) -> None:
    root = make_tree(tmp_path / "tree")
    Image.new("RGB", (20, 30)).save(root / "train" / "dog" / "2.png")
    with pytest.raises(DataError, match=r"dog/2\.png has 20×30 pixels, .*0\.png 8×6; type dataset\.image_size=6 "):
        pixels_of(load_dataset(tree_options(root, in_memory=in_memory)), "train")


def test_grey_mode_has_one_channel_as_pil_makes_it(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree")
    data = load_dataset(tree_options(root, mode="gray"))
    assert data.spec.image_shape == (1, 6, 8)
    expected = np.array(Image.fromarray(read_rgb(root / "test" / "cat" / "0.png")).convert("L"))
    assert np.array_equal(pixels_of(data, "test")[0, :, :, 0].numpy(), expected)


@pytest.mark.parametrize("suffix", ["jpg", "bmp", "webp", "gif", "tif"])
def test_other_formats_are_read_too(tmp_path: Path, suffix: str) -> None:
    root = make_tree(tmp_path / "tree", suffix=suffix)
    data = load_dataset(tree_options(root))
    expected = read_rgb(root / "train" / "cat" / f"0.{suffix}")
    assert np.array_equal(pixels_of(data, "train")[0].numpy(), expected)


def test_grey_and_palette_files_become_colour(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree")
    Image.new("L", (8, 6), 77).save(root / "train" / "cat" / "0.png")
    palette = Image.new("RGBA", (8, 6), (10, 20, 30, 40)).convert("P")
    palette.save(root / "train" / "cat" / "1.png", transparency=bytes(range(256)))
    data = load_dataset(tree_options(root))
    assert (pixels_of(data, "train")[0] == 77).all()


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(tmp_path: Path, in_memory: bool, damage: str, workers: int) -> None:
    root = make_tree(tmp_path / "tree", suffix="jpg")
    path = root / "test" / "eel" / "3.jpg"
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:-150], "empty": b"", "text": b"hello" * 50}[damage])
    with pytest.raises(DataError, match=r"test/eel/3\.jpg cannot be read as an image") as caught:
        pixels_of(load_dataset(tree_options(root, in_memory=in_memory, workers=workers)), "test")
    assert "Traceback" not in str(caught.value)


def test_a_missing_tree_says_what_was_looked_for(tmp_path: Path) -> None:
    message = refused(tree_options(tmp_path / "nowhere"))
    for words in (str(tmp_path / "nowhere"), "train/CLASS/", "dataset.root=DIR"):
        assert words in message


def test_a_tree_without_classes_or_with_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (8, 6)).save(tmp_path / "flat" / "0.png")
    assert "0 class folders" in refused(tree_options(tmp_path / "flat"))
    (tmp_path / "flat" / "cat").mkdir()
    assert "1 class folders" in refused(tree_options(tmp_path / "flat"))


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree")
    for path in (root / "test" / "dog").iterdir():
        path.unlink()
    assert f"{root / 'test' / 'dog'} has no image" in refused(tree_options(root))


def test_different_classes_in_train_and_test_are_named(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree")
    (root / "test" / "dog").rename(root / "test" / "fox")
    message = refused(tree_options(root))
    assert "only in train/: dog" in message
    assert "only in test/: fox" in message


@pytest.mark.parametrize(("part", "absent"), [("train", "test"), ("test", "train")])
def test_half_a_pair_is_not_taken_for_a_class(part: str, absent: str, tmp_path: Path) -> None:
    assert f"no {absent}/" in refused(tree_options(make_tree(tmp_path / "tree", parts=(part,))))


# --- the cache of decoded images


def cache_files() -> list[Path]:
    return sorted((cache_folder() / "data").glob("*"))


def decodes(root: Path, caplog: pytest.LogCaptureFixture, **options: Any) -> bool:
    """Whether loading decodes the files; the pixels must be right either way."""
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="kd"):
        data = load_dataset(tree_options(root, **options))
    if not options:
        assert torch.equal(pixels_of(data, "train"), read_tree(root, "train"))
    return "decoding" in caplog.text


def test_a_second_load_decodes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = make_tree(tmp_path / "tree")
    assert decodes(root, caplog)
    assert len(cache_files()) == 1
    assert not decodes(root, caplog)
    first, second = load_dataset(tree_options(root)), load_dataset(tree_options(root))
    assert first.fingerprint == second.fingerprint
    assert not decodes(root, caplog, val_fraction=0.2, augment="flip", workers=0)


def test_what_changes_the_pixels_is_decoded_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = make_tree(tmp_path / "tree")
    before = load_dataset(tree_options(root)).fingerprint
    assert decodes(root, caplog, image_size=8)
    assert decodes(root, caplog, mode="gray")
    path = root / "train" / "cat" / "0.png"
    Image.fromarray(255 - read_rgb(path)).save(path)
    assert decodes(root, caplog)
    assert load_dataset(tree_options(root)).fingerprint != before
    path.rename(path.with_name("00.png"))
    assert decodes(root, caplog)
    status = path.with_name("00.png").stat()
    os.utime(path.with_name("00.png"), ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert decodes(root, caplog)
    assert decodes(make_tree(tmp_path / "other"), caplog)


def test_stretched_images_from_the_cache_do_not_hide_a_wrong_size(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree")
    for path in root.rglob("*.png"):
        Image.fromarray(read_rgb(path)[:, :6]).save(path)
    Image.new("RGB", (20, 30)).save(root / "train" / "dog" / "2.png")
    load_dataset(tree_options(root, image_size=6))
    assert "20×30 pixels" in refused(tree_options(root))


def flip_last_byte(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))


@pytest.mark.parametrize(
    "damage",
    [flip_last_byte, lambda path: path.write_bytes(path.read_bytes()[:-1]), lambda path: path.write_bytes(b"")],
    ids=["flipped bit", "cut", "empty"],
)
def test_a_damaged_cache_file_is_made_again_with_one_notice(
    damage: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_tree(tmp_path / "tree")
    load_dataset(tree_options(root))
    damage(cache_files()[0])
    assert decodes(root, caplog)
    notices = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(notices) == 1
    assert "is damaged" in notices[0]
    assert "\n" not in notices[0]
    assert not decodes(root, caplog)


def test_an_unwritable_cache_is_a_notice_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_tree(tmp_path / "tree")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "file"))
    assert decodes(root, caplog)
    assert [record.levelno for record in caplog.records].count(logging.WARNING) == 1
    assert "cannot be written" in caplog.text


def test_a_full_disk_leaves_no_half_written_cache_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    root = make_tree(tmp_path / "tree")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # a write past 1,000 bytes fails, as on a full disk
    try:
        data = load_dataset(tree_options(root, workers=0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert torch.equal(pixels_of(data, "train"), read_tree(root, "train"))
    assert "cannot be written" in caplog.text
    assert cache_files() == []


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "cache"  # KD_CACHE, which every test has
    monkeypatch.delenv("KD_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "kd"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "kd"


def test_streamed_trees_are_told_apart_by_names_and_sizes(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree")
    options = tree_options(root, in_memory=False)
    first = load_dataset(options).fingerprint
    assert load_dataset(options).fingerprint == first
    assert len(cache_files()) == 1  # what the headers said
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6)).save(buffer, "png")
    (root / "test" / "eel" / "4.png").write_bytes(buffer.getvalue())
    assert load_dataset(options).fingerprint != first


def first_of(root: Path, copy: Path, count: int) -> Path:
    """A copy of so many images of each class of each part."""
    for folder in (path for path in root.glob("*/*") if path.is_dir()):
        (copy / folder.relative_to(root)).mkdir(parents=True)
        for path in sorted(folder.iterdir())[:count]:
            shutil.copy(path, copy / path.relative_to(root))
    return copy


@pytest.mark.data
@pytest.mark.slow
def test_the_real_jpeg_tree_is_read_and_kept(real_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By default a copy of the first images of each class."""
    root, sizes = real_data / "cifar10_jpeg", [45000, 5000, 10000]
    if not ALL:
        root, sizes = first_of(root, tmp_path / "few", 200), [1800, 200, 2000]
    options = tree_options(root, workers=2, val_fraction=0.1)
    data = load_dataset(options)
    assert [data.size(part) for part in ("train", "val", "test")] == sizes
    assert data.spec.image_shape == (3, 32, 32)
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="kd"):
        assert load_dataset(options).fingerprint == data.fingerprint
    assert "decoding" not in caplog.text
