"""Any tree of images with a folder for each class: `train/` and `test/`, or one tree that is split. Your own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from kd_cli.data.augment import Spec, source_crop
from kd_cli.data.base import DATASETS, Raw, checked_by
from kd_cli.data.common import InMemory
from kd_cli.data.decode import Mode
from kd_cli.data.encoded import Listing, Reading, check_reading, read_listing
from kd_cli.data.files import Files
from kd_cli.data.geometry import Geometry, Interpolation, Resize
from kd_cli.data.sources import FolderSource
from kd_cli.data.tree import Tree
from kd_cli.data.tree_index import find_tree


@DATASETS.register("image_folder")
@checked_by(check_reading)
def image_folder(
    root: str,
    image_size: int | None = None,
    resize: Resize | int = "auto",
    crop_pct: float = 0.875,
    interpolation: Interpolation = "bilinear",
    mode: Mode = "rgb",
    train_folder: str | None = None,
    val_folder: str | None = None,
    test_folder: str | None = None,
    test_fraction: float = 0.2,
    unreadable: Literal["refuse", "skip"] = "refuse",
    val_fraction: float = 0.1,
    split_seed: int = 0,
    in_memory: InMemory = "auto",
    memory_limit_gb: float = 4.0,
    workers: int = 2,
    augment: Spec = "none",
) -> Raw:
    """The images of a tree; files that are not images are passed over with a notice, and links are followed.

    Args:
        root: holds `train/`, `test/` and, maybe, `val/`, each with a folder for each class, or the class folders
            themselves.
        image_size: H = W, pixels; none: they must all have one size.
        resize, crop_pct, interpolation: how others are brought to it, as of `Geometry`.
        mode: colour or grey.
        train_folder: what is `train/`, where it is not called so.
        val_folder: what is `val/`, `valid/`, `validation/` or `dev/`; its images validate, whatever `val_fraction`
            above 0.
        test_folder: what is `test/`.
        test_fraction: share of each class that becomes the test part, where there is no `test/`; above 0, at most 0.9,
            or 1: nothing but test images, to evaluate on.
        unreadable: what becomes of files that cannot be read.
        val_fraction, split_seed: fix which other images validate, and `split_seed` which are tested.

    Raises:
        DataError: no such tree, an unclear one, an empty or unmatched class folder, or images that cannot be read.
    """
    named: Any = {"train": train_folder, "val": val_folder, "test": test_folder}
    folder = Path(root).expanduser().resolve()
    reading = Reading(
        Geometry(image_size, resize, crop_pct, interpolation),
        *(mode, test_fraction, unreadable, val_fraction, split_seed, in_memory, memory_limit_gb, workers),
        windows=source_crop(augment) is not None,
    )

    def files_of(tree: Tree) -> Files:
        return Files(FolderSource(folder, tree.names, tree.sizes), reading.geometry, mode)

    wanted = {"validated": val_fraction > 0, "only_test": test_fraction == 1}
    # What is held is not read again, so that nothing else would notice a file that was written anew in its place.
    tree = find_tree(folder, named, **wanted, trusts=lambda tree: not reading.holds(files_of(tree)))
    files = files_of(tree)
    listing = Listing(str(folder), files.source, tree.class_names, tree.parts, tree.labels, tree.stamp)
    return read_listing(listing, files, reading)
