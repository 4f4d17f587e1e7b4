"""Folders of the datasets package: the same images as a tree, splits by name, nothing asked of the network."""

from __future__ import annotations

import builtins
import io
import pickle
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from kd_cli.data.base import load_dataset
from kd_cli.errors import ConfigError, DataError
from tests.support.images import make_tree
from tests.support.reading import labels_of, pixels_of, refused

pytestmark = pytest.mark.filterwarnings("ignore:Cannot (locate|pickle)")  # dill's, when a data set is written
NAMES = ["cat", "dog", "eel"]


def options(root: Path, **others: Any) -> dict[str, Any]:
    return {"name": "hf_dataset", "root": str(root), "workers": 0, "val_fraction": 0, **others}


def test_without_the_package_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__

    def missing(name: str, *others: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return plain(name, *others)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match=r"pip install 'kd-cli\[datasets\]'"):
        load_dataset(options(tmp_path))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package, whose cache is in the test's folder; whoever asks the network fails."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")

    def nobody(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    return datasets


def split(package: Any, files: Sequence[Path], labels: Sequence[Any], feature: Any = None) -> Any:
    features = package.Features({"picture": package.Image(), "kind": feature or package.ClassLabel(names=NAMES)})
    pictures = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
    return package.Dataset.from_dict({"picture": pictures, "kind": list(labels)}, features=features)


def parts_of(package: Any, tree: Path, feature: Any = None) -> dict[str, Any]:
    found = {}
    for part in ("train", "test"):
        files = sorted((tree / part).rglob("*.png"))
        words = [path.parent.name for path in files]
        labels = words if feature else [NAMES.index(word) for word in words]
        found[part] = split(package, files, labels, feature)
    return found


def save(package: Any, parts: dict[str, Any], root: Path, kind: str) -> Path:
    if kind == "saved":
        package.DatasetDict(parts).save_to_disk(str(root))
        return root
    (root / "data").mkdir(parents=True)
    for name, part in parts.items():
        part.to_parquet(str(root / "data" / f"{name}-00000-of-00001.parquet"))
    return root


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("kind", ["saved", "parquet"])
def test_a_folder_gives_the_images_labels_and_splits_of_a_tree(
    tmp_path: Path, package: Any, kind: str, in_memory: bool
) -> None:
    tree = make_tree(tmp_path / "tree", per_class=10)
    root = save(package, parts_of(package, tree), tmp_path / "root", kind)
    how = {"in_memory": in_memory, "val_fraction": 0.2, "workers": 2}
    expected = load_dataset({"name": "image_folder", "root": str(tree), **how})
    data = load_dataset(options(root, **how))
    assert data.spec == expected.spec
    for part in ("train", "val", "test"):
        assert torch.equal(pixels_of(data, part), pixels_of(expected, part))
        assert labels_of(data, part) == labels_of(expected, part)
    assert load_dataset(options(root, **how)).fingerprint == data.fingerprint


def test_one_split_is_divided_and_names_are_sorted(tmp_path: Path, package: Any) -> None:
    tree = make_tree(tmp_path / "tree")
    files = sorted((tree / "train").rglob("*.png"))
    words = [path.parent.name for path in files]
    split(package, files, words, package.Value("string")).save_to_disk(str(tmp_path / "root"))
    data = load_dataset(options(tmp_path / "root", label="kind"))
    assert data.spec.class_names == tuple(NAMES)
    assert [data.size(part) for part in ("train", "val", "test")] == [12, 0, 3]
    assert load_dataset(options(tmp_path / "root", label="kind", test_fraction=1)).size("test") == 15


def test_splits_go_by_name_and_those_that_are_not_read_are_told(
    tmp_path: Path, package: Any, caplog: pytest.LogCaptureFixture
) -> None:
    parts = parts_of(package, make_tree(tmp_path / "tree"))
    root = save(package, {"train": parts["train"], "validation": parts["test"]}, tmp_path / "a", "saved")
    data = load_dataset(options(root, val_fraction=0.2))
    assert [data.size(part) for part in ("train", "val", "test")] == [12, 3, 15]
    assert "has no split test: validation is tested" in caplog.text
    data = load_dataset(options(root, val_fraction=0.2, val_split="validation"))
    assert [data.size(part) for part in ("train", "val", "test")] == [12, 15, 3]
    root = save(package, {"one": parts["train"], "two": parts["test"]}, tmp_path / "b", "saved")
    assert "type dataset.train_split=one" in refused(options(root))
    assert "no such split in" in refused(options(root, train_split="three"))
    assert load_dataset(options(root, train_split="one")).size("test") == 3
    assert "not read: two" in caplog.text


def test_workers_that_were_not_forked_get_the_images_too(tmp_path: Path, package: Any) -> None:
    root = save(package, parts_of(package, make_tree(tmp_path / "tree")), tmp_path / "root", "saved")
    images = load_dataset(options(root, in_memory=False))._parts["train"].store.images
    assert torch.equal(pickle.loads(pickle.dumps(images))[3], images[3])


# --- mistakes


def test_rows_without_bytes_are_listed_and_their_paths_are_not_opened(tmp_path: Path, package: Any) -> None:
    tree = make_tree(tmp_path / "tree")
    whole = parts_of(package, tree)["train"].cast_column("picture", package.Image(decode=False))
    rows = whole.to_list()
    rows[3]["picture"] = {"bytes": None, "path": str(tree / "train" / "cat" / "3.png")}
    rows[4]["picture"] = None
    rows[5]["picture"] = {"bytes": b"", "path": "5.png"}
    rows[6]["picture"] = {"bytes": b"x" * 100, "path": None}
    features = package.Features({"picture": package.Image(), "kind": package.ClassLabel(names=NAMES)})
    table = package.Dataset.from_list(rows, features=features)
    (tmp_path / "root").mkdir()
    import pyarrow.parquet

    pyarrow.parquet.write_table(table.data.table, tmp_path / "root" / "train.parquet")
    for in_memory in (True, False):
        with pytest.raises(DataError, match="4 of 15 files cannot be read") as caught:
            load_dataset(options(tmp_path / "root", in_memory=in_memory))
        assert "/train/3 has no bytes of an image, only the path" in str(caught.value)
        assert "save_to_disk" in str(caught.value)
        data = load_dataset(options(tmp_path / "root", in_memory=in_memory, unreadable="skip"))
        assert data.unreadable == 4


def test_what_is_no_such_folder_or_column_says_what_to_type(tmp_path: Path, package: Any) -> None:
    root = save(package, parts_of(package, make_tree(tmp_path / "tree")), tmp_path / "root", "saved")
    assert "type dataset.root=DIR" in refused(options(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    assert "cannot be read as a folder of save_to_disk or of Parquet files" in refused(options(tmp_path / "empty"))
    message = refused(options(root, image="kind"))
    assert "no column kind of images; type dataset.image=COLUMN. There: picture (Image), kind (ClassLabel)" in message
    assert "no column x of labels; type dataset.label=COLUMN" in refused(options(root, label="x"))


@pytest.mark.parametrize("kind", ["numbers with fractions", "several", "none", "unknown", "missing"])
def test_other_labels_than_one_class_for_an_image_are_refused(kind: str, tmp_path: Path, package: Any) -> None:
    tree = make_tree(tmp_path / "tree")
    files = sorted((tree / "train").rglob("*.png"))
    value = package.Value
    labels, feature = {
        "numbers with fractions": ([0.5] * 15, value("float32")),
        "several": ([[0, 1]] * 15, package.Sequence(value("int64"))),
        "none": ([-1] * 15, None),
        "unknown": ([0] * 14 + [None], None),
        "missing": ([""] * 15, value("string")),
    }[kind]
    split(package, files, labels, feature).save_to_disk(str(tmp_path / "root"))
    message = refused(options(tmp_path / "root", label="kind"))
    words = {"none": "images without a class", "unknown": "images without a class"}
    assert words.get(kind, "single-label classification") in message


@pytest.mark.parametrize("label", [-5, 3, 2**40])
def test_a_number_that_has_no_name_is_no_class(label: int, tmp_path: Path, package: Any) -> None:
    tree = make_tree(tmp_path / "tree")
    files = sorted((tree / "train").rglob("*.png"))
    part = split(package, files, [0] * 14 + [label], package.Value("int64"))
    part.info.features["kind"] = package.ClassLabel(names=NAMES)  # casting would refuse it
    part.save_to_disk(str(tmp_path / "root"))
    assert f"has class {label}, of which 0 … 2 have a name" in refused(options(tmp_path / "root"))


def test_a_single_class_is_refused_but_for_a_test(tmp_path: Path, package: Any) -> None:
    files = sorted((make_tree(tmp_path / "tree") / "train").rglob("*.png"))
    split(package, files, [0] * 15, package.ClassLabel(names=["cat"])).save_to_disk(str(tmp_path / "root"))
    assert f"{tmp_path / 'root'} has 1 class (cat), two are needed" in refused(options(tmp_path / "root"))
    assert load_dataset(options(tmp_path / "root", test_fraction=1)).size("test") == 15


def test_parquet_files_of_other_classes_are_named(tmp_path: Path, package: Any) -> None:
    parts = parts_of(package, make_tree(tmp_path / "tree"))
    fewer = package.ClassLabel(names=NAMES[1:])  # what a folder without cats gives
    rows = [row for row in parts["test"].cast_column("picture", package.Image(decode=False)).to_list() if row["kind"]]
    pictures = [row["picture"] for row in rows]
    features = package.Features({"picture": package.Image(), "kind": fewer})
    columns = {"picture": pictures, "kind": [row["kind"] - 1 for row in rows]}
    parts["test"] = package.Dataset.from_dict(columns, features=features)
    root = save(package, parts, tmp_path / "root", "parquet")
    message = refused(options(root))
    assert (
        f"{root / 'data' / 'test-00000-of-00001.parquet'}: kind has the classes dog, eel, in other files cat" in message
    )


def test_what_arrow_would_read_outside_of_a_damaged_file_is_refused(tmp_path: Path, package: Any) -> None:
    root = save(package, parts_of(package, make_tree(tmp_path / "tree")), tmp_path / "root", "saved")
    file = next((root / "train").glob("*.arrow"))
    content = file.read_bytes()
    sizes = [path.stat().st_size for path in sorted((tmp_path / "tree" / "train").rglob("*.png"))]
    offsets = torch.tensor([0, *sizes]).cumsum(0).int().numpy()
    place = content.index(offsets.tobytes())
    file.write_bytes(content[: place + 8] + b"\xff\xff\xff\x7f" + content[place + 12 :])
    assert f"{root} cannot be read" in refused(options(root))


@pytest.mark.parametrize("damage", ["cut", "text", "gone"])
def test_a_damaged_folder_is_named(damage: str, tmp_path: Path, package: Any) -> None:
    root = save(package, parts_of(package, make_tree(tmp_path / "tree")), tmp_path / "root", "saved")
    file = next((root / "train").glob("*.arrow"))
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:500] if damage == "cut" else b"hello" * 100)
    assert f"{root} cannot be read" in refused(options(root))


def test_hostile_images_are_named(tmp_path: Path, package: Any) -> None:
    content = io.BytesIO()
    Image.new("RGB", (4, 4)).save(content, "png")
    bomb = bytearray(content.getvalue())
    bomb[16:24] = b"\0\0\xff\xff\0\0\xff\xff"
    tree = make_tree(tmp_path / "tree", parts=("train",))
    (tree / "train" / "cat" / "0.png").write_bytes(bomb)
    files = sorted((tree / "train").rglob("*.png"))
    split(package, files, [number // 5 for number in range(15)]).save_to_disk(str(tmp_path / "root"))
    shutil.rmtree(tree)
    for in_memory in (True, False):
        assert "train/0 cannot be read as an image" in refused(options(tmp_path / "root", in_memory=in_memory))
