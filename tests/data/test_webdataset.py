"""Images in tar files: the same images as a tree, found by key, never extracted; hostile ones are named."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import pickle
import shutil
import tarfile
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from kd_cli.data import webdataset as shards
from kd_cli.data.base import check_dataset, load_dataset
from kd_cli.data.shards import expand
from kd_cli.errors import ConfigError, DataError
from kd_cli.storage.cache import cache_folder
from kd_cli.storage.tensors import digest_tensor
from tests.support.images import make_tree
from tests.support.reading import labels_of, pixels_of, refused

Entry = tuple[str, bytes]


def options(root: Path, **others: Any) -> dict[str, Any]:
    return {"name": "webdataset", "root": str(root), "workers": 0, "val_fraction": 0, **others}


def write(path: Path, entries: Iterable[Entry | tuple[tarfile.TarInfo, bytes]], **kind: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **kind) as archive:
        for name, content in entries:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(content))
    return path


def png(color: int = 0, size: tuple[int, int] = (8, 6)) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, (color, 2 * color, 3)).save(content, "png")
    return content.getvalue()


def samples(count: int = 6, first: int = 0) -> list[Entry]:
    every = []
    for number in range(first, first + count):
        every += [(f"s{number:04}.png", png(number)), (f"s{number:04}.cls", b"%d\n" % (number % 2))]
    return every


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two shards of training images and one of test images."""
    write(tmp_path / "a-train-00.tar", samples(6))
    write(tmp_path / "a-train-01.tar", samples(6, 6))
    write(tmp_path / "a-test-00.tar", samples(4, 12))
    return tmp_path


def as_shards(tree: Path, root: Path) -> Path:
    """The files of a tree, a shard for each part, in the tree's order."""
    for part in ("train", "test"):
        files = sorted((tree / part).rglob("*.png"))
        write(
            root / f"{part}-0.tar",
            [
                entry
                for number, path in enumerate(files)
                for entry in ((f"{number:05}.png", path.read_bytes()), (f"{number:05}.cls", path.parent.name.encode()))
            ],
        )
    return root


@pytest.mark.parametrize("in_memory", [True, False])
def test_shards_give_the_images_labels_and_splits_of_a_tree(tmp_path: Path, in_memory: bool) -> None:
    tree, root = (
        make_tree(tmp_path / "tree", per_class=10),
        as_shards(make_tree(tmp_path / "other", per_class=10), tmp_path),
    )
    how = {"in_memory": in_memory, "val_fraction": 0.2, "workers": 2}
    data = load_dataset(options(root, test="test-0.tar", **how))
    expected = load_dataset({"name": "image_folder", "root": str(tree), **how})
    assert data.spec == expected.spec
    for part in ("train", "val", "test"):
        assert torch.equal(pixels_of(data, part), pixels_of(expected, part))
        assert labels_of(data, part) == labels_of(expected, part)


def test_a_second_look_reads_no_tar_file(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="kd"):
        first = load_dataset(options(root, test="*test*.tar"))
        assert "reading what is in 3 tar files" in caplog.text
        caplog.clear()
        again = load_dataset(options(root, test="*test*.tar"))
        assert "once" not in caplog.text
        assert again.fingerprint == first.fingerprint
        write(root / "a-train-01.tar", samples(5, 6))
        assert load_dataset(options(root, test="*test*.tar")).fingerprint != first.fingerprint
        assert "reading what is in 3" in caplog.text


def test_a_shard_of_another_name_makes_it_another_data_set_whatever_is_kept(root: Path) -> None:
    wanted = options(root, train="a-train-*.tar", test="a-test-*.tar", image_size=96, in_memory=False)
    before = load_dataset(wanted).fingerprint
    (root / "a-train-01.tar").rename(root / "a-train-02.tar")
    after = load_dataset(wanted).fingerprint
    shutil.rmtree(cache_folder())
    assert load_dataset(wanted).fingerprint == after != before


def test_parts_are_patterns_and_what_belongs_to_none_is_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = load_dataset(options(root, train="a-train-{00..01}.tar", test="a-test-00.tar"))
    assert [data.size(part) for part in ("train", "val", "test")] == [12, 0, 4]
    assert not caplog.records
    data = load_dataset(
        options(root, train="a-train-00.tar", val="a-train-01.tar", test_fraction=0.5, val_fraction=0.1)
    )
    assert [data.size(part) for part in ("train", "val", "test")] == [2, 6, 4]
    assert "in no part: a-test-00.tar" in caplog.text
    data = load_dataset(options(root, train="a-train-00.tar::a-test-00.tar", test_fraction=1))
    assert [data.size(part) for part in ("train", "val", "test")] == [0, 0, 10]


def test_braces_mean_what_they_mean_in_a_shell() -> None:
    assert expand("x") == ["x"]
    assert expand("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert expand("{a,b}{1..3}") == ["a1", "a2", "a3", "b1", "b2", "b3"]
    assert expand("{3..1}") == ["3", "2", "1"]
    assert expand("{000..002}") == ["000", "001", "002"]
    assert expand("\\{x}") == ["\\x"]
    with pytest.raises(DataError, match="more than 100,000 files"):
        expand("{0..999999999}")


@pytest.mark.parametrize("label", ["json:label", "txt"])
def test_the_class_may_stand_elsewhere(label: str, tmp_path: Path) -> None:
    entries = []
    for number, name in enumerate(("eel", "cat", "eel", "cat")):
        entries += [
            (f"d/{number}.x.y.json", b"{}"),  # of another key: `d/0` and its extension x.y.json
            (f"d/{number}.JPG", png(number)),
            (f"d/{number}.json", json.dumps({"label": name}).encode()),
            (f"d/{number}.txt", name.encode()),
        ]
    write(tmp_path / "train.tar", entries)
    data = load_dataset(options(tmp_path, label=label, test_fraction=0.5))
    assert data.spec.class_names == ("cat", "eel")
    assert sorted(labels_of(data, "train")) == [0, 1]


def test_numbers_are_classes_in_their_order_and_a_file_names_them(tmp_path: Path) -> None:
    entries = [
        entry
        for number in range(22)
        for entry in ((f"{number}.png", png(number)), (f"{number}.cls", b"%d" % (number % 11)))
    ]
    write(tmp_path / "train.tar", entries)
    assert load_dataset(options(tmp_path, test_fraction=0.5)).spec.class_names == tuple(map(str, range(11)))
    names = tmp_path / "names.txt"
    names.write_text("".join(f"class {number}\n" for number in range(12)))
    data = load_dataset(options(tmp_path, test_fraction=0.5, class_names=str(names)))
    assert data.spec.class_names == tuple(f"class {number}" for number in range(12))
    assert sorted(labels_of(data, "train")) == list(range(11))
    names.write_text("a\nb\n")
    assert "none of the 2 classes" in refused(options(tmp_path, class_names=str(names)))
    names.write_text("a\na\n")
    assert "no two alike" in refused(options(tmp_path, class_names=str(names)))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves the tar files open
def test_what_the_package_itself_writes_is_read(tmp_path: Path) -> None:
    package = pytest.importorskip("webdataset")
    tree = make_tree(tmp_path / "tree", per_class=4)
    files = sorted((tree / "train").rglob("*.png"))
    with package.ShardWriter(str(tmp_path / "train-%02d.tar"), maxcount=5, verbose=0) as writer:
        for number, path in enumerate(files):
            writer.write({"__key__": f"{number:03}", "png": path.read_bytes(), "cls": number % 3, "json": {"a": 1}})
    data = load_dataset(options(tmp_path, train="train-{00..02}.tar", test_fraction=0.25))
    assert data.size("train") + data.size("test") == 12
    theirs = (
        package.WebDataset(str(tmp_path / "train-{00..02}.tar"), shardshuffle=False)
        .decode("rgb8")
        .to_tuple("png", "cls")
    )
    expected = {pixels.tobytes(): label for pixels, label in theirs}
    ours = {
        pixels.numpy().tobytes(): label
        for part in ("train", "test")
        for pixels, label in zip(pixels_of(data, part), labels_of(data, part), strict=True)
    }
    assert ours == expected


def test_workers_that_were_not_forked_get_the_images_too(root: Path) -> None:
    data = load_dataset(options(root, in_memory=False))
    images = data._parts["train"].store.images
    assert torch.equal(pickle.loads(pickle.dumps(images))[3], images[3])


# --- mistakes


def test_options_that_mean_nothing_are_refused_before_any_file_is_read() -> None:
    for wrong, typed in (
        ({"train": ""}, "dataset.train="),
        ({"label": "json"}, "json:label"),
        ({"label": "a:b"}, "json:label"),
    ):
        with pytest.raises(ConfigError, match=typed):
            check_dataset(options(Path("x"), **wrong))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"train": "none-*.tar"}, r"dataset\.train=none-\*\.tar: .*Tar files there: a-test-00.tar, a-train-00.tar"),
        ({"train": "a-train-{00..02}.tar"}, "no file a-train-02.tar in"),
        ({"test": "a-train-01.tar"}, "a-train-01.tar would be read twice"),
        ({"root": "nowhere"}, "dataset.root=DIR, the folder of the tar files"),
        ({"label": "txt"}, "has an image and no .txt; type dataset.label=EXTENSION"),
        ({"label": "json:x"}, "has an image and no .json"),
        ({"label": "png"}, "has no class"),
        ({"image": "jpg"}, "have no image"),
        ({"class_names": "nowhere"}, "dataset.class_names=.*cannot be read"),
    ],
)
def test_mistakes_say_what_to_type(root: Path, wrong: dict[str, str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        load_dataset({**options(root), **wrong})


def test_two_classes_of_one_key_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.tar", [*samples(4), ("z.png", png()), ("z.cls", b"0"), ("z.cls", b"1")])
    assert "train.tar: the sample z has two members .cls" in refused(options(tmp_path))


def test_two_images_of_one_key_and_a_class_that_is_never_trained_are_refused(root: Path) -> None:
    write(root / "b.tar", [("0.png", png()), ("0.jpg", png()), ("0.cls", b"0")])
    assert "two images, 0.png and 0.jpg; type dataset.image=jpg" in refused(options(root, train="b.tar"))
    assert load_dataset(options(root, train="a-train-00.tar::b.tar", image="png")).size("test")
    write(root / "c.tar", [("0.png", png()), ("0.cls", b"7")])
    assert "classes only in test, none of them in train: 7" in refused(options(root, test="c.tar"))


@pytest.mark.parametrize("content", [b"", b"-1", b"\xff\xfe", b"x" * 300, b"a\nb", b"\x1b[2J"])
def test_what_is_no_class_is_refused(content: bytes, tmp_path: Path) -> None:
    write(tmp_path / "train.tar", [("0.png", png()), ("0.cls", content), *samples(4, 1)])
    assert "train.tar/0.cls has no class" in refused(options(tmp_path))


@pytest.mark.parametrize("text", ["[]", "[" * 100_000, '{"a": 1}', '{"label": {"x": [1]}}', '{"label": true}', "{"])
def test_json_without_a_class_is_refused(text: str, tmp_path: Path) -> None:
    write(tmp_path / "train.tar", [("0.png", png()), ("0.json", text.encode())])
    message = refused(options(tmp_path, label="json:label"))
    assert "train.tar/0.json" in message


def test_unreadable_images_are_listed_or_skipped(root: Path) -> None:
    write(root / "a-train-01.tar", [("x.png", png()[:-40]), ("x.cls", b"0"), ("y.png", b""), ("y.cls", b"1")])
    for in_memory in (True, False):
        with pytest.raises(DataError, match="2 of 8 files cannot be read") as caught:
            load_dataset(options(root, in_memory=in_memory))
        assert "a-train-01.tar/x.png cannot be read as an image" in str(caught.value)
        data = load_dataset(options(root, in_memory=in_memory, unreadable="skip", test="*test*.tar"))
        assert (data.size("train"), data.unreadable) == (6, 2)


def test_equal_images_on_two_sides_are_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(root / "a-test-00.tar", samples(2))
    load_dataset(options(root, test="a-test-00.tar", in_memory=False))
    assert "2 validation or test images are the very bytes" in caplog.text
    assert "a-test-00.tar/s0000.png = a-train-00.tar/s0000.png" in caplog.text


def test_a_shard_that_is_written_anew_while_it_is_read_is_named(root: Path) -> None:
    data = load_dataset(options(root, in_memory=False))
    os.utime(root / "a-train-01.tar", ns=(1, 1))
    with pytest.raises(DataError, match=r"a-train-01\.tar was written anew while kd read it"):
        pixels_of(data, "train")


# --- hostile files


def info(name: str, kind: bytes = tarfile.REGTYPE, **facts: Any) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type = kind
    for key, value in facts.items():
        setattr(made, key, value)
    return made


PASSED: dict[str, tarfile.TarInfo] = {
    "a link": info("z.png", tarfile.SYMTYPE, linkname="/etc/passwd"),
    "a hard link": info("z.png", tarfile.LNKTYPE, linkname="s0000.png"),
    "a device": info("z.png", tarfile.CHRTYPE, devmajor=1, devminor=5),
    "a pipe": info("z.png", tarfile.FIFOTYPE),
    "a folder": info("z.png", tarfile.DIRTYPE),
}


@pytest.mark.parametrize("name", PASSED)
def test_what_is_no_regular_file_is_passed_over(name: str, tmp_path: Path) -> None:
    write(tmp_path / "train.tar", [*samples(4), (PASSED[name], b"")])
    assert load_dataset(options(tmp_path, test_fraction=0.5)).size("train") == 2


@pytest.mark.parametrize(
    "name", ["../../../written", "/tmp/written", "a/../../written", "\x1b[2J", "é\udcff", "x" * 5000]
)
def test_members_are_never_written_whatever_they_are_called(name: str, tmp_path: Path) -> None:
    entries = [(f"{name}{number}.png", png(number)) for number in range(4)]
    classes = [(f"{name}{number}.cls", b"%d" % (number % 2)) for number in range(4)]
    folder = tmp_path / "in" / "it"
    write(folder / "train.tar", [entry for pair in zip(entries, classes, strict=True) for entry in pair])
    there = sorted(path for path in tmp_path.rglob("*") if cache_folder() not in (path, *path.parents))
    data = load_dataset(options(folder, test_fraction=0.5, in_memory=False))
    assert pixels_of(data, "train").shape == (2, 6, 8, 3)
    assert sorted(path for path in tmp_path.rglob("*") if cache_folder() not in (path, *path.parents)) == there


def header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    """A tar header of 512 bytes, its size as given."""
    block = bytearray(info(name, kind).tobuf(tarfile.GNU_FORMAT))
    block[124:136] = size.ljust(12, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


EXABYTES = b"\x80" + b"\x7f" * 11


def negative(number: int) -> bytes:
    return b"\xff" + (256**11 + number).to_bytes(11, "big")


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda _: b"",
    "a text": lambda _: b"hello" * 1000,
    "a zip file": lambda _: b"PK\x03\x04" + bytes(2000),
    "cut in a member": lambda whole: whole[: 512 + 60],
    "a size beyond the end": lambda whole: whole[:-1024] + header("z.png", b"77777777777") + bytes(1024),
    "a size of exabytes": lambda whole: whole[:-1024] + header("z.png", EXABYTES) + bytes(1024),
    "a size below zero": lambda whole: whole[:-1024] + header("z.png", negative(-1024)) + bytes(1024),
    "a long name of exabytes": lambda whole: whole[:-1024] + header("z.png", EXABYTES, b"L") + bytes(1024),
    "facts of a size below zero": lambda whole: whole[:-1024] + header("z.png", negative(-512), b"x") + bytes(1024),
    "a bit of a header": lambda whole: whole[:2100] + bytes([whole[2100] ^ 1]) + whole[2101:],
    "cut in a header": lambda whole: whole[:2148],
    "cut between two members": lambda whole: whole[:2048],
    "another tar file behind it": lambda whole: whole + whole,
    "a text behind it": lambda whole: whole + b"hello",
    "a pickle": lambda _: pickle.dumps({"a": 1}),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_tar_file_is_named_in_little_memory(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "train.tar", samples(4), format=tarfile.GNU_FORMAT)
    with tarfile.open(path) as archive:
        end = max(member.offset_data + 512 * -(-member.size // 512) for member in archive)
    path.write_bytes(DAMAGED[name](path.read_bytes()[: end + 1024]))
    tracemalloc.start()
    message = refused(options(tmp_path))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "train.tar cannot be read as a tar file" in message
    assert most < 20_000_000


def test_a_single_image_is_one(tmp_path: Path) -> None:
    write(tmp_path / "train.tar", samples(1))
    assert load_dataset(options(tmp_path, test_fraction=1)).size("test") == 1
    assert digest_tensor(torch.arange(12).view(3, 4)[:1, 3]) == digest_tensor(torch.tensor([3]))


def test_a_compressed_tar_file_says_that_it_is_one(root: Path) -> None:
    whole = (root / "a-train-00.tar").read_bytes()
    (root / "a-train-00.tar").write_bytes(gzip.compress(whole))
    assert "unpack it once to a plain .tar" in refused(options(root))


@pytest.mark.parametrize("what", ["pipe", "device", "folder"])
def test_a_shard_that_is_no_file_is_not_waited_for(what: str, root: Path) -> None:
    path = root / "a-train-01.tar"
    path.unlink()
    {"pipe": lambda: os.mkfifo(path), "device": lambda: path.symlink_to("/dev/zero"), "folder": path.mkdir}[what]()
    assert "no file a-train-01.tar in" in refused(options(root))


def test_an_enormous_class_is_not_read(tmp_path: Path) -> None:
    write(tmp_path / "train.tar", [("0.png", png()), ("0.cls", bytes(shards._LARGEST_LABEL + 1))])
    assert "which is no class" in refused(options(tmp_path))
