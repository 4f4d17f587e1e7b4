"""Photographs: how fast images reach a step, kd beside a plain script and timm's loader, in turns on one machine.

    python -m benchmarks.photographs --images FOLDER [ROW …]

FOLDER is a tree of real images; of each 25 one JPEG of 400 to 500 pixels is made, quality 90. The plain script is an
`ImageFolder` with torchvision's v2 transforms in a `DataLoader`; every side has two workers and batches of 64, shows
each of the training images once, and has listed them before the clock starts.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import run

SIDE, BATCH, WORKERS = 224, 64, 2
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_TILES, _TILE = 5, 120  # real images of a photograph, and pixels of each

# row → (side → its name in `SIDES`), the first being what the others are compared with
ROWS: dict[str, dict[str, str]] = {
    "random_resized_crop": {"script": "script train", "timm": "timm train", "kd": "kd train"},
    "repeats": {"script": "script train", "kd": "kd repeats"},
    "evaluation": {"script": "script test", "timm": "timm test", "kd": "kd test"},
    "randaugment": {"script": "script randaugment", "kd": "kd randaugment"},
    "teacher": {"script": "script teacher", "kd": "kd teacher"},
}


def make_photographs(source: Path, folder: Path, count: int) -> None:
    """Ten classes of JPEGs, most for training and a tenth for tests."""
    from PIL import Image

    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    drawn = random.Random(0)
    for number in range(count):
        canvas = Image.new("RGB", (_TILES * _TILE,) * 2)
        for place in range(_TILES**2):
            with Image.open(drawn.choice(paths)) as image:
                tile = image.convert("RGB").resize((_TILE, _TILE), Image.Resampling.BICUBIC)
            canvas.paste(tile, (place // _TILES * _TILE, place % _TILES * _TILE))
        width, height = drawn.randint(400, 500), drawn.randint(400, 500)
        path = folder / ("test" if number % 10 == 9 else "train") / f"class {number // 10 % 10}" / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        canvas.crop((20, 20, 20 + width, 20 + height)).save(path, quality=90)


def script_loader(folder: Path, *, train: bool, strong: bool = False) -> Iterable[Any]:
    """What a user of torchvision writes, augmented or as for a test."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    cut = [v2.RandomResizedCrop(SIDE), v2.RandomHorizontalFlip()] if train else [v2.Resize(256), v2.CenterCrop(SIDE)]
    varied = [v2.RandAugment()] if strong else []
    last = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    data = ImageFolder(str(folder / "train"), v2.Compose([*cut, *varied, *last]))
    return DataLoader(data, BATCH, shuffle=train, num_workers=WORKERS)


def timm_loader(folder: Path, *, train: bool) -> Iterable[Any]:
    """timm's, with the same augmentation or as for a test."""
    import torch
    from timm.data import create_loader
    from timm.data.dataset import ImageDataset

    data = ImageDataset(str(folder / "train"))
    same: Any = {"color_jitter": None, "interpolation": "bilinear", "crop_pct": 0.875, "mean": MEAN, "std": STD}
    on_cpu = {"num_workers": WORKERS, "device": torch.device("cpu"), "persistent_workers": False}
    return create_loader(data, (3, SIDE, SIDE), BATCH, is_training=train, **same, **on_cpu)  # type: ignore[no-any-return]


def kd_data(folder: Path, **options: Any) -> Any:
    """kd's data of the same tree."""
    from kd_cli.data.base import load_dataset

    own = {"image_size": SIDE, "resize": 256, "mean": tuple(MEAN), "std": tuple(STD), "workers": WORKERS}
    return load_dataset({"name": "image_folder", "root": str(folder), "val_fraction": 0.0, **own, **options})


def kd_batches(folder: Path, *names: Any, **options: Any) -> Iterable[Any]:
    """kd's training batches."""
    import torch

    data = kd_data(folder, augment=("random_resized_crop", "flip", *names), **options)
    return data.train_batches(seed=0, epoch=0, batch_size=BATCH, device=torch.device("cpu"))  # type: ignore[no-any-return]


def kd_test(folder: Path) -> Iterable[Any]:
    """The same images as kd evaluates them."""
    import torch

    data = kd_data(folder, in_memory=False)
    return data.eval_batches("train", batch_size=BATCH, device=torch.device("cpu"))  # type: ignore[no-any-return]


SIDES: dict[str, Callable[[Path], Iterable[Any]]] = {
    "script train": lambda folder: script_loader(folder, train=True),
    "script randaugment": lambda folder: script_loader(folder, train=True, strong=True),
    "script test": lambda folder: script_loader(folder, train=False),
    "timm train": lambda folder: timm_loader(folder, train=True),
    "timm test": lambda folder: timm_loader(folder, train=False),
    "kd train": lambda folder: kd_batches(folder),
    "kd repeats": lambda folder: kd_batches(folder, repeats=4),
    "kd randaugment": lambda folder: kd_batches(folder, {"name": "randaugment", "n": 2, "m": 3}),
    "kd test": kd_test,
}


def count_images(batches: Iterable[Any]) -> int:
    """All batches of an epoch, each looked at."""
    images = 0
    for batch in batches:
        pixels = batch.images if hasattr(batch, "images") else batch[0]
        images += len(pixels)
        float(pixels[0, 0, 0, 0])
    return images


def train_students(folder: Path, *, cached: bool) -> tuple[int, float]:
    """mobilenet_v3_small learns from resnet50 for an epoch; images, and seconds of the epoch.

    Args:
        cached: by kd, whose cache has the answers of an earlier point; otherwise by a script that asks at each step.
    """
    import torch
    from torch.nn import functional
    from torchvision import models

    torch.manual_seed(0)
    student, teacher = models.mobilenet_v3_small(num_classes=10), models.resnet50(num_classes=10).eval()
    student, teacher = (network.to(memory_format=torch.channels_last) for network in (student, teacher))
    optimizer = torch.optim.SGD(student.parameters(), 0.01)
    if cached:
        return _train_with_cache(folder, student, teacher.requires_grad_(False), optimizer)
    start, images = time.perf_counter(), 0
    for pixels, labels in script_loader(folder, train=True):
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            wanted = teacher(pixels).softmax(dim=1)
        logits = student(pixels)
        loss = functional.cross_entropy(logits, labels) + functional.cross_entropy(logits, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        images += len(labels)
    return images, time.perf_counter() - start


def _train_with_cache(folder: Path, student: Any, teacher: Any, optimizer: Any) -> tuple[int, float]:
    """Two points of a sweep; the second one counts."""
    import torch
    from torch.nn import functional

    from kd_cli.teachers.cache import CachedTeacher, make_entry, network_digest
    from kd_cli.types import Outputs

    data, device = kd_data(folder, augment=("random_resized_crop", "flip")), torch.device("cpu")
    model = {"name": "torchvision", "model": "resnet50"}
    entry = make_entry(network_digest(teacher), model, data, limit=10**9, batch_size=BATCH, device=device)
    seconds = 0.0
    for _ in range(2):
        cache = CachedTeacher(
            lambda images: Outputs(teacher(images)), data, entry, seed=0, batch_size=BATCH, device=device
        )
        start, images = time.perf_counter(), 0
        cache.begin(0)
        for batch in data.train_batches(seed=0, epoch=0, batch_size=BATCH, device=device):
            logits = student(batch.images)
            wanted = cache(batch).logits.softmax(dim=1)
            loss = functional.cross_entropy(logits, batch.labels) + functional.cross_entropy(logits, wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            images += len(batch.labels)
        seconds = time.perf_counter() - start
    return images, seconds


def measure_here(side: str, folder: Path) -> dict[str, float]:
    """What one side does, in this process: images a second."""
    if side.startswith("kd"):
        from kd_cli.machine import keep_freed_memory

        keep_freed_memory()  # as the command line does
    if side in ("script teacher", "kd teacher"):
        images, seconds = train_students(folder, cached=side.startswith("kd"))
    else:
        batches = SIDES[side](folder)
        start = time.perf_counter()
        images = count_images(batches)
        seconds = time.perf_counter() - start
    return {"images": images, "images_per_second": images / seconds}


def measure_row(row: str, folder: Path, repeats: int) -> Iterator[str]:
    """Lines of the table, one for each side."""
    rates: dict[str, list[float]] = {side: [] for side in ROWS[row]}
    peaks: dict[str, float] = {}
    for turn in range(repeats + 1):
        for side, name in ROWS[row].items():
            here = [sys.executable, "-m", "benchmarks.photographs", "--here", name, "--folder", str(folder)]
            done = run(here, cache=folder.parent / "cache", watch=turn == 0)
            if turn:
                rates[side].append(done.report["images_per_second"])
            else:
                peaks[side] = done.peak_mb or 0.0
    against = rates["script"]
    for side, found in rates.items():
        ratios = [one / other for one, other in zip(found, against, strict=True)]
        low, high = min(ratios), max(ratios)
        ratio = f"{median(ratios):.2f} [{low:.2f} – {high:.2f}]"
        yield f"| {row} | {side} | {median(found):,.0f} | {ratio} | {peaks[side]:,.0f} |"


def main() -> None:
    """Makes the photographs and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.photographs", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"{', '.join(ROWS)}; all unless some are given")
    parser.add_argument("--images", type=Path, help="a tree of real images")
    parser.add_argument("--count", type=int, default=3000, help="photographs that are made of them (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of every row (%(default)s)")
    parser.add_argument("--folder", type=Path, help="where they are or are made; none: a folder that is removed")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        with redirect_stdout(sys.stderr):  # kd says when it asks the teacher
            measured = measure_here(args.here, args.folder)
        print(json.dumps(measured))
        return
    with tempfile.TemporaryDirectory(prefix="kd-photographs-") as scratch:
        folder = args.folder or Path(scratch, "photographs")
        if not (folder / "train").is_dir():
            if args.images is None:
                parser.error("--images FOLDER: name a tree of real images, of which photographs are made")
            make_photographs(args.images, folder, args.count)
        (folder.parent / "cache").mkdir(exist_ok=True)
        print_table(args.rows or list(ROWS), folder, args.repeats)


def print_table(rows: Sequence[str], folder: Path, repeats: int) -> None:
    """Markdown, line by line as it is measured."""
    print("| row | side | images/s | beside the script | peak MB |\n| --- | --- | --: | --: | --: |")
    for row in rows:
        for line in measure_row(row, folder, repeats):
            print(line, flush=True)


if __name__ == "__main__":
    main()
