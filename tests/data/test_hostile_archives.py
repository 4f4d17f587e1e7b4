"""Archives, data files and images that somebody else made: refused or named, and nothing is written outside."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import struct
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kd_cli.data import decode
from kd_cli.data.base import load_dataset
from kd_cli.data.decode import Unreadable, is_image, read_header, read_image
from kd_cli.data.walk import LeftOut, walk_images
from kd_cli.errors import DataError
from kd_cli.evaluation.predict import find_images
from tests.support.reading import refused

CIFAR = "cifar-10-python.tar.gz"


class Touches:
    """Makes a file `ran` when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("ran",))


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be downloaded."""
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")


# --- archives


def member(name: str, kind: bytes = tarfile.REGTYPE, **facts: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in facts.items():
        setattr(info, key, value)
    return info


ARCHIVES: dict[str, list[tarfile.TarInfo]] = {
    "a path upwards": [member("../../../written", size=4)],
    "a path inside that leads upwards": [member("cifar-10-batches-py/../../../written", size=4)],
    "an absolute path": [member("{outside}/written", size=4)],
    "a link upwards": [member("link", tarfile.SYMTYPE, linkname="../../.."), member("link/written", size=4)],
    "an absolute link": [member("link", tarfile.SYMTYPE, linkname="{outside}"), member("link/written", size=4)],
    "a hard link": [member("link", tarfile.LNKTYPE, linkname="../../../secret"), member("link", size=4)],
    "a device": [member("cifar-10-batches-py/data_batch_1", tarfile.CHRTYPE, devmajor=1, devminor=5)],
    "a pipe": [member("cifar-10-batches-py/data_batch_1", tarfile.FIFOTYPE)],
}


def write_archive(path: Path, name: str, outside: Path) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for info in ARCHIVES[name]:
            info = info.replace(
                name=info.name.format(outside=outside), linkname=info.linkname.format(outside=outside), deep=True
            )
            archive.addfile(info, io.BytesIO(b"evil") if info.size else None)


@pytest.mark.parametrize("checked", [False, True])
@pytest.mark.parametrize("name", ARCHIVES)
def test_nothing_of_an_archive_is_written_outside(
    name: str, checked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it had the checksum of the real one."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets import utils as torchvision_utils

    root, outside = tmp_path / "a" / "root", tmp_path / "outside"
    root.mkdir(parents=True)
    outside.mkdir()
    (tmp_path / "secret").write_text("kept")
    write_archive(root / CIFAR, name, outside)
    opened: list[Any] = []
    real = torchvision_utils.extract_archive
    monkeypatch.setattr(torchvision_utils, "extract_archive", lambda *words: opened.append(words) or real(*words))
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/")
    if checked:
        monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5((root / CIFAR).read_bytes()).hexdigest())
    before = sorted(tmp_path.rglob("*"))
    message = refused({"name": "cifar10", "root": str(root), "download": True})
    assert "the download failed" in message
    assert bool(opened) == checked
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "secret").read_text() == "kept"
    assert len(ARCHIVES) == 8


def test_a_download_does_not_go_through_a_link_that_is_called_like_an_archive(tmp_path: Path) -> None:
    root, mine = tmp_path / "root", tmp_path / "mine"
    root.mkdir()
    mine.write_text("kept")
    (root / CIFAR).symlink_to(mine)
    from kd_cli.data.download import Source, open_parts

    def downloads(folder: Path, *, train: bool, download: bool = False) -> str:
        if download:
            (folder / CIFAR).write_text("downloaded")
        raise RuntimeError(f"no more than that, train={train}")

    with pytest.raises(DataError, match="no more than that"):
        open_parts(Source("Mine", downloads, ["file"], {CIFAR: "0" * 32}, "nowhere"), str(root), download=True)
    assert mine.read_text() == "kept"


@pytest.mark.parametrize("file", ["data_batch_1", "test_batch", "batches.meta"])
def test_no_pickle_of_cifar_is_opened_but_the_authors_own(file: str, tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("batches.meta", *(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(pickle.dumps(Touches() if name == file else {}))
    assert "is damaged" in refused({"name": "cifar10", "root": str(tmp_path), "download": False})
    assert not Path("ran").exists()


# --- IDX


def idx(kind: int, *sizes: int, data: bytes = b"") -> bytes:
    return bytes([0, 0, kind, len(sizes)]) + b"".join(size.to_bytes(4, "big") for size in sizes) + data


IMAGES, LABELS = idx(8, 30, 28, 28, data=bytes(30 * 784)), idx(8, 30, data=bytes(i % 10 for i in range(30)))
HEADERS: dict[str, tuple[str, bytes]] = {
    "images without end": ("images", idx(8, 2**31, 2**15, 2**15)),
    "a product that overflows": ("images", idx(8, 2**31, 2**31, 4)),
    "more than there are": ("images", idx(8, 60_000, 28, 28, data=bytes(784))),
    "fewer than labels": ("images", idx(8, 10, 28, 28, data=bytes(7840))),
    "no images": ("images", idx(8, 0, 28, 28)),
    "another kind of numbers": ("images", idx(13, 30, 28, 28, data=bytes(4 * 30 * 784))),
    "no such kind": ("images", idx(99, 30, 28, 28)),
    "flat images": ("images", idx(8, 30, 784, data=bytes(30 * 784))),
    "nothing": ("images", b""),
    "a header and no more": ("images", idx(8, 30, 28, 28)),
    "labels that are no classes": ("labels", idx(8, 30, data=bytes([255] * 30))),
    "labels without end": ("labels", idx(8, 2**32 - 1)),
    "labels in a square": ("labels", idx(8, 5, 6, data=bytes(30))),
}


def write_mnist(root: Path) -> Path:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(IMAGES)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(LABELS)
    return folder


@pytest.mark.parametrize("name", HEADERS)
def test_idx_files_whose_headers_lie_are_refused_without_their_memory(name: str, tmp_path: Path) -> None:
    folder = write_mnist(tmp_path)
    options = {"name": "mnist", "root": str(tmp_path), "download": False, "val_fraction": 0}
    assert load_dataset(options).size("train") == 30
    what, content = HEADERS[name]
    for part in ("train", "t10k"):
        (folder / f"{part}-{what}-idx{3 if what == 'images' else 1}-ubyte").write_bytes(content)
    tracemalloc.start()
    assert str(tmp_path) in refused(options) or "mnist" in refused(options)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 5_000_000
    assert len(HEADERS) == 13


def test_a_file_that_fills_the_memory_is_not_read(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path)
    with (folder / "train-images-idx3-ubyte").open("wb") as file:
        file.truncate(200_000_000_000)
    assert "200,000,000,000 bytes" in refused({"name": "mnist", "root": str(tmp_path), "download": False})


def test_old_pickles_beside_mnist_run_nothing(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / "MNIST" / "processed").mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save(Touches(), tmp_path / "MNIST" / "processed" / name)
    refused({"name": "mnist", "root": str(tmp_path), "download": False})
    for name in ("training.pt", "test.pt"):
        torch.save(({"a": 1}, [2]), tmp_path / "MNIST" / "processed" / name)
    assert "grey images" in refused({"name": "mnist", "root": str(tmp_path), "download": False})
    assert not Path("ran").exists()


# --- images


def encoded(kind: str, size: tuple[int, int] = (64, 64), mode: str = "RGB", **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def header(width: int, height: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(ran) (w) file closefile\n%%EOF\n"
SQUEEZED = b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 50_000_000)
BAD: dict[str, bytes] = {
    "half a JPEG": encoded("JPEG")[:-900],
    "the start of a JPEG": encoded("JPEG")[:200],
    "half a PNG": encoded("PNG")[:5000],
    "half a GIF": encoded("GIF")[:1000],
    "half a WEBP": encoded("WEBP")[:500],
    "half a TIFF": encoded("TIFF")[:3000],
    "half a BMP": encoded("BMP")[:3000],
    "half a PPM": encoded("PPM")[:3000],
    "nothing": b"",
    "text": b"no image at all",
    "zeros": bytes(10_000),
    "a page": b"<html><script>1</script></html>",
    "a drawing": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "PostScript": POSTSCRIPT,
    "an icon": encoded("ICO"),
    "JPEG 2000": encoded("JPEG2000"),
    "a PDF": encoded("PDF"),
    "a TGA": encoded("TGA"),
    "a bomb in a PNG": png(header(60_000, 60_000), (b"IDAT", zlib.compress(bytes(60_000))), (b"IEND", b"")),
    "a bomb just above the limit": png(header(10_000, 9_000), (b"IDAT", zlib.compress(bytes(9_000))), (b"IEND", b"")),
    "a bomb in a GIF": b"GIF89a" + struct.pack("<HHBBB", 65_000, 65_000, 0, 0, 0) + b";",
    "a bomb in a BMP": b"BM"
    + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 65_000, 65_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "a bomb in a PPM": b"P6 65000 65000 255\n",
    "a comment that grows": png(header(4, 4), SQUEEZED, (b"IDAT", zlib.compress(bytes(52))), (b"IEND", b"")),
    "numbers without a white": encoded("TIFF", mode="F"),
    "a pickle": pickle.dumps(Touches()),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_named_and_not_unpacked(name: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(BAD[name])
    tracemalloc.start()
    with pytest.raises(DataError, match=r"picture\.png cannot be read as an image"):
        read_image(path, "rgb")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 20_000_000
    assert not Path("ran").exists()
    assert len(BAD) == 26


@pytest.mark.parametrize("name", BAD)
def test_neither_a_header_nor_a_look_at_the_content_unpacks_a_bad_image(name: str, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(BAD[name])
    tracemalloc.start()
    seems = is_image(str(path))
    with suppress(Unreadable):  # damage behind a header and before a sound end is found when it is decoded
        read_header(path)
        assert seems
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 20_000_000
    assert not Path("ran").exists()


def test_a_bomb_is_named_with_its_size(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(BAD["a bomb just above the limit"])
    with pytest.raises(DataError, match=r"bomb\.png .*10000×9000 pixels, more than 89,000,000"):
        read_image(path, "rgb")


GOOD: dict[str, bytes] = {
    "a JPEG called PNG": encoded("JPEG"),
    "a grey JPEG": encoded("JPEG", mode="L"),
    "a JPEG for printers": encoded("JPEG", mode="CMYK"),
    "a PNG": encoded("PNG"),
    "a PNG with transparency": encoded("PNG", mode="RGBA"),
    "a PNG with a palette": encoded("PNG", mode="P"),
    "a black and white PNG": encoded("PNG", mode="1"),
    "a PNG of 16 bits": encoded("PNG", mode="I;16"),
    "an animation": encoded("GIF", save_all=True, append_images=[Image.new("RGB", (64, 64), "red")] * 3),
    "a WEBP": encoded("WEBP"),
    "a TIFF": encoded("TIFF"),
    "a long comment": png(
        header(64, 64),
        (b"tEXt", b"Comment\0" + b"x" * 2_000_000),
        (b"IDAT", zlib.compress(bytes(64 * (64 * 3 + 1)))),
        (b"IEND", b""),
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_an_unusual_image_is_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(GOOD[name])
    assert read_image(path, "rgb").shape == (64, 64, 3)


def test_only_formats_that_need_no_other_program_are_tried() -> None:
    assert set(decode.FORMATS) == {"JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP"}


# --- trees


def write_tree(root: Path) -> Path:
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for number in range(3):
                (root / part / name / f"{number}.png").write_bytes(encoded("PNG", (4, 4)))
    return root / "train" / "cat"


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "x.png")


def link(to: str, name: str = "x.png") -> Callable[[Path], None]:
    return lambda folder: (folder / name).symlink_to(to)


TREES: dict[str, Callable[[Path], None]] = {
    "a pipe": pipe,
    "a link to a device without end": link("/dev/zero"),
    "a link to a terminal": link("/dev/tty"),
    "a link to nothing": link("nowhere.png"),
    "a link to itself": link("x.png"),
    "a link to a folder": link("/proc/self/fd"),
    "a link to a text": link("/etc/passwd"),
    "a name of control characters": lambda folder: (folder / "\x1b[2J.png").write_bytes(b"") and None,
}


@pytest.mark.parametrize("name", TREES)
def test_what_is_no_image_in_a_tree_is_named_or_passed_over(name: str, tmp_path: Path) -> None:
    TREES[name](write_tree(tmp_path))
    options = {"name": "image_folder", "root": str(tmp_path), "val_fraction": 0, "workers": 0}
    if name == "a link to a folder":  # holds no images
        assert load_dataset(options).size("train") == 6
    else:
        assert str(tmp_path / "train" / "cat") in refused(options)
    assert len(TREES) == 8


def test_links_inside_a_tree_are_followed_once(tmp_path: Path) -> None:
    cat = write_tree(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "far.png").write_bytes(encoded("PNG", (4, 4)))
    (cat / "near").symlink_to(elsewhere)  # people keep their images on another disk
    (cat / "far.png").symlink_to(elsewhere / "far.png")
    for name in "abcdefgh":  # each of eight links leads to all eight: 8 to the power of 40 paths
        (cat / name).symlink_to(".")
    assert len(list(walk_images(cat, LeftOut(cat)))) == len(find_images([str(cat)])) == 5


@pytest.mark.slow  # trains a network
def test_kd_predict_names_what_it_cannot_read(kd: Callable[..., Any], trained: Path, tmp_path: Path) -> None:
    cat = write_tree(tmp_path / "tree")
    for place, name in enumerate(BAD):
        (cat / f"bad{place}.png").write_bytes(BAD[name])
    os.mkfifo(cat / "pipe.png")
    (cat / "zero.png").symlink_to("/dev/zero")
    said = kd("predict", str(trained), str(cat), "--json", code=3)
    assert len(said.json["images"]) == 3
    assert len(said.json["unreadable"]) == len(BAD) + 2
