"""Each source of images: what it reads, keeps, downloads and refuses."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import inspect
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kd_cli.data import mnist_mini as mini
from kd_cli.data.base import COMMON, DATASETS, load_dataset
from kd_cli.data.download import Source, open_parts
from tests.support.images import make_cifar
from tests.support.reading import labels_of, pixels_of, refused
from tests.support.small import CONF, read_yaml

MNIST_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
NOWHERE = "http://127.0.0.1:9/"  # the discard port: connections are refused


# --- configuration


def test_every_data_set_has_a_yaml_and_every_yaml_a_data_set() -> None:
    names = {read_yaml("dataset", path.stem)["name"] for path in (CONF / "dataset").glob("*.yaml")}
    assert names == set(DATASETS.names())


@pytest.mark.parametrize("name", DATASETS.names())
def test_a_yaml_lists_the_component_s_options_and_the_common_ones(name: str) -> None:
    text = (CONF / "dataset" / f"{name}.yaml").read_text()
    own = set(inspect.signature(DATASETS.component(name)).parameters)
    assert set(read_yaml("dataset", name)) == {"name"} | own | COMMON
    assert text.startswith("# ")
    assert " · " in text.splitlines()[0]


# --- mnist_mini


def test_mnist_mini_is_balanced_real_digits_from_any_folder() -> None:  # every test runs in a folder of its own
    data = load_dataset({"name": "mnist_mini"})
    assert data.spec.image_shape == (1, 28, 28)
    assert data.spec.class_names == tuple("0123456789")
    assert np.bincount(labels_of(data, "train")).tolist() == [450] * 10
    assert np.bincount(labels_of(data, "val")).tolist() == [50] * 10
    assert np.bincount(labels_of(data, "test")).tolist() == [100] * 10
    assert 25 < pixels_of(data, "test").float().mean() < 40  # MNIST's mean is 33.3


def test_mnist_mini_is_small_and_has_its_licence_beside_it() -> None:
    assert mini.FILE.stat().st_size < 2_000_000
    assert "CC BY-SA 3.0" in mini.FILE.with_name("mnist_mini.LICENSE.txt").read_text()


def test_a_damaged_mnist_mini_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = tmp_path / "mnist_mini.npz"
    data = bytearray(mini.FILE.read_bytes())
    data[len(data) // 2] ^= 0xFF
    damaged.write_bytes(data)
    for file in (damaged, tmp_path / "absent.npz"):
        monkeypatch.setattr(mini, "FILE", file)
        assert "install kd again" in refused({"name": "mnist_mini"})


@pytest.mark.data
def test_the_shipped_digits_are_what_the_draw_gives(real_data: Path) -> None:
    drawn = mini.draw(str(real_data))
    with np.load(mini.FILE, allow_pickle=False) as shipped:
        assert set(shipped.files) == set(drawn)
        assert all(np.array_equal(shipped[name], drawn[name].numpy()) for name in drawn)


# --- MNIST and Fashion-MNIST


def idx(array: np.ndarray[Any, Any]) -> bytes:
    """An array of bytes in the IDX format."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


def make_mnist(root: Path, title: str = "MNIST") -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    arrays = {
        name: random.integers(0, 256, (size, 28, 28)) if "images" in name else np.arange(size) % 10
        for name, size in zip(MNIST_FILES, (40, 40, 20, 20), strict=True)
    }
    folder = root / title / "raw"
    folder.mkdir(parents=True)
    for name, array in arrays.items():
        (folder / name).write_bytes(idx(array))
    return arrays


def mnist_options(root: Path, **options: Any) -> dict[str, Any]:
    return {"name": "mnist", "root": str(root), "download": False, "val_fraction": 0, **options}


@pytest.mark.parametrize(("name", "title"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_mnist_reads_the_idx_files(name: str, title: str, tmp_path: Path) -> None:
    arrays = make_mnist(tmp_path, title)
    data = load_dataset(mnist_options(tmp_path, name=name))
    assert data.spec.image_shape == (1, 28, 28)
    assert data.spec.num_classes == 10
    assert np.array_equal(pixels_of(data, "train").numpy()[..., 0], arrays[MNIST_FILES[0]])
    assert labels_of(data, "test") == arrays[MNIST_FILES[3]].tolist()


def test_an_absent_set_is_described_with_what_to_type(tmp_path: Path) -> None:
    message = refused(mnist_options(tmp_path / "empty"))
    for words in ("MNIST/raw/train-images-idx3-ubyte", "dataset.download=true", "dataset.root=DIR", "KD_DATA=DIR"):
        assert words in message
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize("file", MNIST_FILES)
def test_a_truncated_idx_file_is_reported(file: str, tmp_path: Path) -> None:
    make_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / file
    path.write_bytes(path.read_bytes()[:-3])
    assert "is damaged" in refused(mnist_options(tmp_path))


def test_images_without_their_labels_are_reported(tmp_path: Path) -> None:
    arrays = make_mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / MNIST_FILES[1]).write_bytes(idx(arrays[MNIST_FILES[1]][:-1]))
    assert "40 images and 39 labels" in refused(mnist_options(tmp_path))


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.mark.usefixtures("no_proxy")
def test_a_failed_download_says_where_to_put_the_files_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torchvision.datasets import CIFAR10, MNIST

    monkeypatch.setattr(MNIST, "mirrors", [NOWHERE])
    monkeypatch.setattr(CIFAR10, "url", NOWHERE)
    for name, archive in (("mnist", "MNIST/raw/t10k-labels-idx1-ubyte.gz"), ("cifar10", "cifar-10-python.tar.gz")):
        message = refused(mnist_options(tmp_path / "new" / "root", name=name, download=True))
        assert "download failed" in message
        assert archive in message
        assert "dataset.root=DIR" in message
    assert not (tmp_path / "new").exists()
    make_mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / MNIST_FILES[0]).unlink()
    refused(mnist_options(tmp_path, download=True))
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(MNIST_FILES[1:])
    assert [path.name for path in tmp_path.iterdir()] == ["MNIST"]
    assert capsys.readouterr().out == ""


def serve_mnist(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs the files under `root` and tells torchvision their checksums."""
    from torchvision.datasets import MNIST

    resources = []
    for path in (root / "MNIST" / "raw").iterdir():
        archive = root / f"{path.name}.gz"
        archive.write_bytes(gzip.compress(path.read_bytes()))
        resources.append((archive.name, hashlib.md5(archive.read_bytes()).hexdigest()))
    monkeypatch.setattr(MNIST, "resources", resources)


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder and the address at which it is served."""
    folder = tmp_path_factory.mktemp("served")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            """Nothing: standard error is read by the tests."""

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    ) as http_server:
        thread = threading.Thread(target=http_server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{http_server.server_port}/"
        http_server.shutdown()
        thread.join()


@pytest.mark.usefixtures("no_proxy")
def test_a_download_fetches_checks_and_unpacks_without_touching_standard_output(
    tmp_path: Path, server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torchvision.datasets import MNIST

    served, address = server
    arrays = make_mnist(served)
    serve_mnist(served, monkeypatch)
    monkeypatch.setattr(MNIST, "mirrors", [address])
    data = load_dataset(mnist_options(tmp_path, download=True))
    assert np.array_equal(pixels_of(data, "test").numpy()[..., 0], arrays[MNIST_FILES[2]])
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(MNIST_FILES)
    assert capsys.readouterr().out == ""


def test_what_torchvision_prints_goes_to_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def talkative(root: Path, train: bool, download: bool = False) -> str:
        if download:
            print("Downloading …")
            (root / "file").write_text("content")
        return (root / "file").read_text()

    source = Source("Talk", talkative, files=["file"], archives={"file.gz": ""}, url=NOWHERE)
    assert open_parts(source, str(tmp_path), download=True) == ("content", "content")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Downloading" in printed.err


@pytest.mark.usefixtures("no_proxy")
def test_a_download_with_a_wrong_checksum_is_refused(
    tmp_path: Path, server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import MNIST

    served, address = server
    make_mnist(served)
    serve_mnist(served, monkeypatch)
    (served / f"{MNIST_FILES[0]}.gz").write_bytes(gzip.compress(b"something else"))
    monkeypatch.setattr(MNIST, "mirrors", [address])
    assert "corrupted" in refused(mnist_options(tmp_path / "root", download=True))
    assert not (tmp_path / "root").exists()


@pytest.mark.usefixtures("no_proxy")
def test_archives_put_there_by_hand_are_unpacked_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import MNIST

    arrays = make_mnist(tmp_path / "source")
    serve_mnist(tmp_path / "source", monkeypatch)
    monkeypatch.setattr(MNIST, "mirrors", [NOWHERE])
    raw = tmp_path / "root" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for archive in (tmp_path / "source").glob("*.gz"):
        shutil.copy(archive, raw)
    data = load_dataset(mnist_options(tmp_path / "root", download=True))
    assert labels_of(data, "train") == arrays[MNIST_FILES[1]].tolist()


@pytest.mark.data
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_real_sets_have_their_known_statistics(name: str, real_data: Path) -> None:
    data = load_dataset(mnist_options(real_data, name=name, val_fraction=0.1))
    assert [data.size(part) for part in ("train", "val", "test")] in ([54000, 6000, 10000], [53999, 6001, 10000])
    whole = torch.cat([pixels_of(data, "train"), pixels_of(data, "val")]).float() / 255
    known = {"mnist": (0.1307, 0.3081), "fashion_mnist": (0.2860, 0.3530)}[name]
    assert whole.mean().item() == pytest.approx(known[0], abs=1e-4)
    assert whole.std().item() == pytest.approx(known[1], abs=1e-4)


# --- CIFAR


def cifar_options(root: Path, name: str, **options: Any) -> dict[str, Any]:
    return {"name": name, "root": str(root), "download": False, "val_fraction": 0, **options}


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_reads_torchvision_s_layout_with_fine_labels(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = make_cifar(tmp_path, monkeypatch, name)
    data = load_dataset(cifar_options(tmp_path, name))
    first = content["data_batch_1" if name == "cifar10" else "train"]
    planes = torch.from_numpy(first["data"]).view(-1, 3, 32, 32)  # the file holds red, green and blue planes
    assert torch.equal(pixels_of(data, "train")[: len(planes)], planes.permute(0, 2, 3, 1))
    assert data.spec.image_shape == (3, 32, 32)
    assert data.spec.class_names == ("class 0", "class 1", "class 2", "class 3")
    assert labels_of(data, "test") == [i % 4 for i in range(20)]
    assert data.size("train") == 40


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_flipped_bit_in_cifar_is_reported(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = make_cifar(tmp_path, monkeypatch, name)
    for file in content:
        path = next(tmp_path.rglob(file))
        whole = path.read_bytes()
        path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        assert "is damaged" in refused(cifar_options(tmp_path, name))
        path.write_bytes(whole)
    load_dataset(cifar_options(tmp_path, name))


def test_absent_cifar_names_its_folder(tmp_path: Path) -> None:
    assert "cifar-10-batches-py/data_batch_1" in refused(cifar_options(tmp_path, "cifar10"))
    assert "cifar-100-python/train" in refused(cifar_options(tmp_path, "cifar100"))


@pytest.mark.usefixtures("no_proxy")
def test_cifar_is_downloaded_again_where_it_is_damaged(
    tmp_path: Path, server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import CIFAR10

    served, address = server
    content = make_cifar(served, monkeypatch, "cifar10")
    with tarfile.open(served / CIFAR10.filename, "w:gz") as archive:
        archive.add(served / CIFAR10.base_folder, CIFAR10.base_folder)
    monkeypatch.setattr(CIFAR10, "url", address + CIFAR10.filename)
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5((served / CIFAR10.filename).read_bytes()).hexdigest())
    load_dataset(cifar_options(tmp_path, "cifar10", download=True))
    (tmp_path / CIFAR10.base_folder / "data_batch_3").write_bytes(b"damaged")
    assert "is damaged" in refused(cifar_options(tmp_path, "cifar10"))
    data = load_dataset(cifar_options(tmp_path, "cifar10", download=True))
    assert data.size("train") == 40
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(content)
