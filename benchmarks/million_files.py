"""A tree of 1,000 classes × 1,281 files: how long kd takes until it knows it, and in how much memory."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from benchmarks.measure import run
from kd_cli.data.base import load_dataset
from kd_cli.data.mnist_mini import mnist_mini

DATA = ("dataset=image_folder", "dataset.image_size=224", "dataset.in_memory=false")  # as ImageNet is: too much to hold
PLAN = ("teacher=torchvision", "teacher.model=resnet18", "student=torchvision", "student.model=mobilenet_v3_small")


def make(root: Path, classes: int, per_class: int) -> None:
    """Real digits as JPEG files; no two have the same bytes, for each carries its number as a comment."""
    pictures = list(_encoded())
    for label in range(classes):
        folder = root / f"n{label:08}"
        folder.mkdir(parents=True)
        for number in range(label * per_class, (label + 1) * per_class):
            comment = b"\xff\xfe\x00\x0a" + number.to_bytes(8, "big")
            picture = pictures[number % len(pictures)]
            (folder / f"{number:08}.JPEG").write_bytes(picture[:2] + comment + picture[2:])


def _encoded() -> Iterator[bytes]:
    for digit in mnist_mini().train_images:
        file = io.BytesIO()
        Image.fromarray(digit.squeeze(-1).numpy()).convert("RGB").save(file, "JPEG")
        yield file.getvalue()


def look(root: Path) -> dict[str, object]:
    """Seconds until the tree is read, checked, divided and ready to give batches; in this process."""
    options = dict(word.removeprefix("dataset.").split("=") for word in DATA[1:])
    start = time.perf_counter()
    size, held = int(options["image_size"]), options["in_memory"] == "true"
    data = load_dataset({"name": "image_folder", "root": str(root), "image_size": size, "in_memory": held})
    return {"seconds": time.perf_counter() - start, "images": [data.size(part) for part in ("train", "val", "test")]}


def measure(root: Path) -> dict[str, object]:
    """Of a first look, a second one, and a dry run after them: seconds, and those of processors; 10⁶ bytes at most."""
    look = [sys.executable, "-m", "benchmarks.million_files", "look", str(root)]
    plan = [sys.executable, "-m", "kd_cli", "run", *DATA, f"dataset.root={root}", *PLAN, "--dry-run", "--json"]
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, command in (("first look", look), ("second look", look), ("dry run", plan)):
            before = os.times()
            done = run(command, cache=Path(folder, "cache"), watch=command is look)
            after = os.times()
            spent = sum(after[2:4]) - sum(before[2:4])
            seconds = done.report.get("seconds", done.seconds) if command is look else done.seconds
            measured[name] = {"seconds": seconds, "processor_seconds": spent, "peak_mb": done.peak_mb}
    return measured


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.million_files", description=__doc__)
    parser.add_argument("what", choices=("make", "look", "measure"), help="make the tree, look at it once, or all")
    parser.add_argument("root", type=Path, help="of the tree; 1.3 million files of 4 kB on most disks")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--per-class", type=int, default=1281)
    args = parser.parse_args(arguments)
    if args.what == "make":
        make(args.root, args.classes, args.per_class)
    else:
        print(json.dumps({"look": look, "measure": measure}[args.what](args.root.absolute()), indent=2))


if __name__ == "__main__":
    main()
