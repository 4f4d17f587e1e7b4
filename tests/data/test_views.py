"""Views of training images: repeated in a batch, cycled, cut out where images are decoded, and mixed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from kd_cli.data.base import Data, load_dataset
from kd_cli.errors import ConfigError
from kd_cli.types import Batch
from tests.support.images import make_photographs, make_pixels
from tests.support.small import CPU

SYNTHETIC: dict[str, Any] = {"name": "synthetic", "num_train": 206, "num_test": 20, "image_size": 8}


def make(**options: Any) -> Data:
    return load_dataset({**SYNTHETIC, **options})


def epoch_of(data: Data, epoch: int, batch_size: int = 32, **options: Any) -> list[Batch]:
    given = {"seed": 0, "batch_size": batch_size, "device": CPU, **options}
    return list(data.train_batches(epoch=epoch, **given))


def tree(root: Path, **options: Any) -> Data:
    given = {"name": "image_folder", "root": str(root), "image_size": 72, "val_fraction": 0.2, "workers": 0}
    return load_dataset({**given, **options})


def shown(batches: Sequence[Batch]) -> dict[tuple[int, int], Tensor]:
    """(id, which of the epoch's views) → image."""
    found = {}
    for batch in batches:
        repeat = torch.zeros_like(batch.ids) if batch.repeat is None else batch.repeat
        for number, place, image in zip(batch.ids.tolist(), repeat.tolist(), batch.images, strict=True):
            assert (number, place) not in found
            found[number, place] = image
    return found


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("augment", ["crop_flip", ["random_resized_crop", "flip"]])
def test_repeats_show_in_r_epochs_the_views_that_r_epochs_show_without_them(augment: Any, in_memory: bool) -> None:
    plain, repeated = make(augment=augment), make(augment=augment, repeats=3, in_memory=in_memory, workers=0)
    size = plain.size("train")
    one_by_one = [shown(epoch_of(plain, epoch)) for epoch in (3, 4, 5)]
    together = [shown(epoch_of(repeated, epoch, batch_size=30)) for epoch in (3, 4, 5)]
    assert repeated.views_in(4) == (3, 4, 5)
    assert all(len(each) == size // 3 * 3 for each in together)
    merged = {key: image for each in together for key, image in each.items()}
    assert len(merged) == size // 3 * 9  # no image twice
    for (number, place), image in merged.items():
        assert torch.equal(image, one_by_one[place][number, 0])


@pytest.mark.parametrize("options", [{}, {"views": 4}, {"in_memory": False, "workers": 0}])
def test_a_batch_of_weak_and_strong_views_has_the_pixels_of_crop_flip_and_of_strong(options: dict[str, Any]) -> None:
    both = epoch_of(make(augment="weak_strong", repeats=2, **options), epoch=3)
    for place, augment in enumerate(("crop_flip", "strong")):
        alone = epoch_of(make(augment=augment, repeats=2, **options), epoch=3)
        for batch, expected in zip(both, alone, strict=True):
            assert torch.equal(batch.images[place::2], expected.images[place::2])
            assert batch.repeat is not None
            assert set(batch.repeat[place::2].tolist()) == {place}


def test_without_repeats_weak_and_strong_views_take_turns() -> None:
    turns = [epoch_of(make(augment="weak_strong"), epoch) for epoch in (4, 5)]
    for batches, epoch, augment in ((turns[0], 4, "crop_flip"), (turns[1], 5, "strong")):
        alone = epoch_of(make(augment=augment), epoch)
        assert all(torch.equal(one.images, other.images) for one, other in zip(batches, alone, strict=True))


def test_a_cycle_of_views_shows_the_same_views_again() -> None:
    data = make(augment="strong", views=2)
    first, second, third = (shown(epoch_of(data, epoch)) for epoch in range(3))
    assert [data.views_in(epoch) for epoch in range(3)] == [(0,), (1,), (0,)]
    assert all(torch.equal(third[key], image) for key, image in first.items())
    assert not all(torch.equal(second[key], image) for key, image in first.items())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"repeats": 0}, "type dataset.repeats=4"),
        ({"views": 0}, "type dataset.views=4"),
        ({"views": 3, "repeats": 2}, "type dataset.views=4"),
    ],
)
def test_repeats_and_views_that_cannot_be_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make(**options)


def test_a_batch_that_is_no_multiple_of_the_repeats_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"type trainer\.batch_size=33"):
        epoch_of(make(repeats=3), 0)


# --- files


def test_windows_of_files_are_a_function_of_seed_view_and_id(tmp_path: Path) -> None:
    root = make_photographs(tmp_path)
    augment = ["random_resized_crop", "flip"]
    plain = tree(root, augment=augment)
    assert plain.spec.image_shape == (3, 72, 72)
    first = shown(epoch_of(plain, 2, batch_size=4))
    for workers, in_memory in ((2, "auto"), (0, False), (0, True)):
        again = shown(epoch_of(tree(root, augment=augment, workers=workers, in_memory=in_memory), 2, batch_size=5))
        assert all(torch.equal(again[key], image) for key, image in first.items())
    ids = torch.tensor([5, 0, 3])
    (batch,) = plain.views([ids], seed=0, view=2, device=CPU)
    assert all(torch.equal(image, first[number, 0]) for number, image in zip(ids.tolist(), batch.images, strict=True))
    repeated = tree(root, augment=augment, repeats=2)
    together = shown(epoch_of(repeated, 2, batch_size=4))
    following = shown(epoch_of(plain, 3, batch_size=4))
    for (number, place), image in together.items():
        assert torch.equal(image, (first, following)[place][number, 0])


def test_evaluation_sees_the_middle_of_whole_photographs_however_they_are_held(tmp_path: Path) -> None:
    from torchvision.transforms.v2 import functional as v2

    root = make_photographs(tmp_path, suffix="png")
    kinds = [{}, {"in_memory": False}, {"augment": ["random_resized_crop"]}]
    kinds += [{"augment": ["random_resized_crop"], "memory_limit_gb": 3 * 72 * 72 * 3 / 1e9}]  # three images
    for options in kinds:
        data = tree(root, **options)
        for _ in range(2):  # what was kept the first time is as what is read
            seen = torch.cat([each.images for each in data.eval_batches("test", batch_size=5, device=CPU)])
            paths = sorted((root / "test").rglob("*.png"))
            for image, path in zip(seen, paths, strict=True):
                wanted = v2.center_crop(v2.resize(v2.pil_to_tensor(Image.open(path)), [82]), [72, 72])
                normalised = (wanted / 255 - torch.tensor(data.preprocessing["mean"])[:, None, None]) / torch.tensor(
                    data.preprocessing["std"]
                )[:, None, None]
                assert torch.allclose(image, normalised, atol=1e-5)
    assert data.preprocessing["resize"] == 82


def test_photographs_are_the_same_data_however_they_are_held_and_augmented(tmp_path: Path) -> None:
    root = make_photographs(tmp_path)
    kinds = ({}, {"in_memory": False}, {"augment": ["random_resized_crop"]})
    assert len({tree(root, **options).fingerprint for options in kinds}) == 1
    assert tree(root, resize=90).fingerprint != tree(root).fingerprint


def test_small_images_are_stretched_as_ever_and_nothing_is_on_record_of_it(tmp_path: Path) -> None:
    data = tree(make_photographs(tmp_path), image_size=32)
    assert "resize" not in data.preprocessing
    assert tree(tmp_path, image_size=32, resize=40).preprocessing["resize"] == 40


def test_a_large_photograph_is_decoded_small_and_looks_the_same(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for label in ("cat", "dog"):
            (tmp_path / part / label).mkdir(parents=True)
            small = Image.fromarray(make_pixels(1, 8, 10)[0].numpy())
            small.resize((1000, 800), Image.Resampling.BICUBIC).save(tmp_path / part / label / "a.jpg", quality=95)
            small.resize((1000, 800), Image.Resampling.BICUBIC).save(tmp_path / part / label / "b.png")
    data = tree(tmp_path, val_fraction=0.0, mean=(0.0,), std=(1.0,))
    seen = torch.cat([each.images for each in data.eval_batches("test", batch_size=4, device=CPU)])
    assert (seen[0] - seen[1]).abs().mean() < 2 / 255  # the PNG is decoded whole
    assert (seen[0] - seen[1]).abs().max() < 16 / 255


# --- mixed


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_images_are_mixed_with_those_half_a_batch_further(mixing: str) -> None:
    plain, mixed = make(augment="flip"), make(augment=["flip", {"name": mixing, "alpha": 1.0}])
    for own, both in zip(epoch_of(plain, 1), epoch_of(mixed, 1), strict=True):
        assert both.mixed is not None
        half = len(own.labels) // 2
        assert torch.equal(both.labels, own.labels)
        assert torch.equal(both.mixed.labels, own.labels.roll(-half))
        partners, share = own.images.roll(-half, 0), both.mixed.share
        if mixing == "mixup":
            weight = share[:, None, None, None]
            assert torch.allclose(both.images, weight * own.images + (1 - weight) * partners, atol=1e-6)
        else:
            of_own = (both.images == own.images).all(dim=1)
            assert bool((of_own | (both.images == partners).all(dim=1)).all())


def test_a_mixed_image_is_found_again_by_its_id() -> None:
    data = make(augment=["crop_flip", "mixup", "cutmix"])
    found = shown(epoch_of(data, 2))
    ids = torch.arange(data.size("train")).flip(0)
    for batch in data.views(ids.split(50), seed=0, view=2, device=CPU, batch_size=32):
        for number, image in zip(batch.ids.tolist(), batch.images, strict=True):
            if (number, 0) in found:
                assert torch.equal(image, found[number, 0])


def test_mixed_images_cannot_be_divided_among_processes() -> None:
    with pytest.raises(ValueError, match="one process"):
        epoch_of(make(augment=["mixup"]), 0, shard=(0, 2))
