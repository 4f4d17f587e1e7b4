"""Batches, splits and normalisation: what every data set has in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_cli.data.base import COMMON, DATASETS, Data, Raw, check_dataset, load_dataset
from kd_cli.data.common import Common
from kd_cli.errors import ConfigError, DataError
from kd_cli.types import Batch
from tests.support.small import CPU

SYNTHETIC: dict[str, Any] = {"name": "synthetic", "num_train": 203, "num_test": 50, "image_size": 8}


def make(**options: Any) -> Data:
    return load_dataset({**SYNTHETIC, **options})


def epoch_of(data: Data, **options: Any) -> list[Batch]:
    return list(data.train_batches(**{"seed": 0, "epoch": 0, "batch_size": 16, "device": CPU, **options}))


def by_id(batches: list[Batch]) -> Tensor:
    """The images of an epoch in the order of their ids."""
    ids = torch.cat([batch.ids for batch in batches])
    return torch.cat([batch.images for batch in batches])[ids.argsort()]


def ids_of(batches: list[Batch]) -> list[int]:
    return torch.cat([batch.ids for batch in batches]).tolist()


def same(one: list[Batch], other: list[Batch]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(
        torch.equal(getattr(a, name), getattr(b, name)) for a, b in pairs for name in ("images", "labels", "ids")
    )


# --- order


def test_an_epoch_shows_every_training_image_once_with_its_label() -> None:
    data = make()
    batches = epoch_of(data)
    assert sorted(ids_of(batches)) == list(range(data.size("train")))
    evaluated = list(data.eval_batches("train", batch_size=64, device=CPU))
    assert torch.equal(by_id(batches), torch.cat([batch.images for batch in evaluated]))
    labels = torch.cat([batch.labels for batch in evaluated])
    assert all(torch.equal(batch.labels, labels[batch.ids]) for batch in batches)


def test_the_order_is_a_pure_function_of_seed_and_epoch() -> None:
    data = make()
    first = ids_of(epoch_of(data, seed=3, epoch=5))
    epoch_of(data, seed=1)
    torch.rand(5)
    assert ids_of(epoch_of(data, seed=3, epoch=5)) == first
    assert ids_of(epoch_of(make(augment="strong"), seed=3, epoch=5, batch_size=7)) == first[:182]
    assert ids_of(epoch_of(data, seed=3, epoch=6)) != first
    assert ids_of(epoch_of(data, seed=4, epoch=5)) != first


@pytest.mark.parametrize("name", ["none", "flip", "crop_flip", "strong"])
def test_an_image_looks_the_same_whatever_the_batch_size_and_the_limit(name: str) -> None:
    data = make(augment=name)
    large, small = epoch_of(data, batch_size=50), epoch_of(data, batch_size=3)
    assert torch.equal(by_id(large), by_id(small))
    assert same(epoch_of(data, batch_size=50, limit=2), large[:2])


@pytest.mark.parametrize("name", ["flip", "crop_flip", "strong"])
def test_augmentation_depends_on_seed_and_epoch(name: str) -> None:
    data = make(augment=name)
    first = by_id(epoch_of(data))
    assert torch.equal(by_id(epoch_of(data)), first)
    assert not torch.equal(by_id(epoch_of(data, seed=1)), first)
    assert not torch.equal(by_id(epoch_of(data, epoch=1)), first)


def test_batches_draw_nothing_from_the_global_generator() -> None:
    for data in (make(augment="strong"), make(in_memory=False)):
        before = torch.get_rng_state()
        epoch_of(data)
        list(data.eval_batches("test", batch_size=10, device=CPU))
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(61, [61, 61, 61]), (60, [60, 60, 60, 3]), (91, [91, 91]), (500, [183])]
)
def test_a_smaller_last_batch_counts_but_not_one_of_a_single_image(batch_size: int, sizes: list[int]) -> None:
    data = make()  # 183 for training
    assert [len(batch.ids) for batch in epoch_of(data, batch_size=batch_size)] == sizes
    assert data.steps(batch_size) == len(sizes)


def test_a_single_image_is_kept_where_it_is_the_only_batch() -> None:
    data = make(num_classes=2, num_train=2, num_test=2, val_fraction=0)
    assert [len(batch.ids) for batch in epoch_of(data, batch_size=1)] == [1, 1]
    raw = Raw(torch.zeros(1, 4, 4, 3, dtype=torch.uint8), torch.tensor([0]), *synthetic_test_part(), ("a", "b"))
    alone = Data("one", raw, Common(val_fraction=0))
    assert alone.steps(16) == len(epoch_of(alone)) == 1


def synthetic_test_part() -> tuple[Tensor, Tensor]:
    return torch.zeros(2, 4, 4, 3, dtype=torch.uint8), torch.tensor([0, 1])


def test_steps_respect_the_limit() -> None:
    data = make()
    assert data.steps(10) == 19
    assert data.steps(10, limit=4) == len(epoch_of(data, batch_size=10, limit=4)) == 4
    assert data.steps(10, limit=400) == 19


@pytest.mark.parametrize("world", [2, 3, 16])
@pytest.mark.parametrize("streamed", [False, True])
def test_shards_partition_each_global_batch(world: int, streamed: bool) -> None:
    data = make(augment="crop_flip", in_memory=not streamed, workers=0)
    whole = epoch_of(data, batch_size=20)  # the last one has 3 images
    shards = [epoch_of(data, batch_size=20, shard=(rank, world)) for rank in range(world)]
    for step, batch in enumerate(whole):
        for rank in range(world):
            assert torch.equal(shards[rank][step].ids, batch.ids[rank::world])
            assert torch.equal(shards[rank][step].images, batch.images[rank::world])


# --- streaming


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_streaming_gives_the_same_bits_as_memory(workers: int) -> None:
    held, streamed = make(augment="strong"), make(augment="strong", in_memory=False, workers=workers)
    for epoch in (0, 1):
        assert same(epoch_of(held, epoch=epoch, limit=7), epoch_of(streamed, epoch=epoch, limit=7))
    for part in ("val", "test"):
        options: Any = {"batch_size": 8, "device": CPU}
        assert same(list(held.eval_batches(part, **options)), list(streamed.eval_batches(part, **options)))
    assert held.fingerprint == streamed.fingerprint


def test_streaming_may_be_left_in_the_middle_of_an_epoch() -> None:
    data = make(in_memory=False)
    batches = data.train_batches(seed=0, epoch=0, batch_size=8, device=CPU)
    first = next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert same([first], epoch_of(data, batch_size=8, limit=1))


def test_auto_streams_above_the_limit_only() -> None:
    pixels = (203 + 50) * 8 * 8 * 3
    for limit, streamed in ((pixels / 1e9, False), ((pixels - 1) / 1e9, True)):
        data = make(memory_limit_gb=limit)
        assert data._parts["train"].store.resident is not streamed
        assert data._parts["test"].store.resident is not streamed


# --- images


@pytest.mark.parametrize("options", [{}, {"augment": "strong"}, {"in_memory": False}, {"channels": 1}])
def test_images_are_float32_and_channels_last(options: dict[str, Any]) -> None:
    data = make(**options)
    for batch in [*epoch_of(data), *data.eval_batches("test", batch_size=9, device=CPU)]:
        assert batch.images.dtype == torch.float32
        assert batch.images.shape[1:] == data.spec.image_shape
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.labels.dtype == batch.ids.dtype == torch.int64


def test_normalisation_equals_torchvision() -> None:
    from torchvision.transforms.functional import normalize, to_tensor

    mean, std = [0.49, 0.48, 0.44], [0.2, 0.25, 0.3]
    pixels = torch.randint(0, 256, (20, 5, 7, 3), dtype=torch.uint8)
    raw = Raw(pixels, torch.arange(20) % 2, *(each for each in (pixels, torch.arange(20) % 2)), ("a", "b"))
    data = Data("raw", raw, Common(mean=tuple(mean), std=tuple(std)))
    (batch,) = data.eval_batches("test", batch_size=20, device=CPU)
    expected = torch.stack([normalize(to_tensor(image.numpy()), mean, std) for image in pixels])
    torch.testing.assert_close(batch.images, expected, rtol=0, atol=2e-6)


def test_training_images_are_normalised_like_the_others() -> None:
    data = make(mean=[0.2, 0.3, 0.4], std=[0.5, 0.6, 0.7])
    plain = make()
    scale = torch.tensor([0.5, 0.6, 0.7]).view(1, 3, 1, 1)
    shift = torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1)
    torch.testing.assert_close(by_id(epoch_of(data)) * scale + shift, by_id(epoch_of(plain)))


def test_one_number_normalises_all_channels() -> None:
    assert torch.equal(
        by_id(epoch_of(make(mean=[0.4], std=[0.2]))), by_id(epoch_of(make(mean=[0.4] * 3, std=[0.2] * 3)))
    )


def test_preprocessing_is_told_in_plain_values() -> None:
    data = make(mean=[0.5], std=[0.25], augment="flip")
    assert data.preprocessing == {"mean": [0.5] * 3, "std": [0.25] * 3, "augment": "flip", "image_size": [8, 8]}


# --- split


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.9])
def test_the_validation_split_takes_its_share_of_each_class(fraction: float) -> None:
    data = make(num_train=203, val_fraction=fraction)  # three classes of 21, seven of 20
    val = torch.cat([batch.labels for batch in data.eval_batches("val", batch_size=100, device=CPU)])
    counts = [21] * 3 + [20] * 7
    assert val.bincount(minlength=10).tolist() == [int(count * fraction + 0.5) for count in counts]
    assert data.size("train") + data.size("val") == 203
    assert data.spec.num_train == data.size("train")


def test_training_and_validation_images_are_disjoint_and_complete() -> None:
    data, whole = make(noise=1), make(noise=1, val_fraction=0)
    parts = [batch.images for part in ("train", "val") for batch in data.eval_batches(part, batch_size=99, device=CPU)]
    everything = torch.cat([batch.images for batch in whole.eval_batches("train", batch_size=99, device=CPU)])
    assert len(torch.cat(parts).flatten(1).unique(dim=0)) == 203
    assert torch.equal(torch.cat(parts).flatten(1).unique(dim=0), everything.flatten(1).unique(dim=0))


def test_the_split_is_fixed_by_its_own_seed_only() -> None:
    assert torch.equal(make()._parts["val"].rows, make(augment="flip")._parts["val"].rows)
    assert not torch.equal(make()._parts["val"].rows, make(split_seed=1)._parts["val"].rows)


def test_no_validation_part_where_none_is_wanted() -> None:
    data = make(val_fraction=0)
    assert data.size("val") == 0
    assert list(data.eval_batches("val", batch_size=8, device=CPU)) == []
    assert data.size("train") == 203


def test_a_split_that_would_empty_a_class_is_refused() -> None:
    with pytest.raises(DataError, match=r"dataset\.val_fraction=0\.9 would take all 2 images of class 0"):
        make(num_classes=20, num_train=39, val_fraction=0.9)


def test_a_split_that_takes_nothing_is_refused() -> None:
    with pytest.raises(DataError, match=r"takes no image.*dataset\.val_fraction=0"):
        make(num_classes=50, num_train=100, num_test=50, val_fraction=0.1)


def test_of_each_class_no_more_images_are_used_than_asked_for() -> None:
    data, whole = make(images_per_class=8, val_fraction=0.25), make(images_per_class=99)
    for part, count in (("train", 6), ("val", 2)):
        assert data.labels(part).bincount().tolist() == [count] * 10  # type: ignore[arg-type]
    used = torch.cat([data._parts[part].rows for part in ("train", "val")])  # type: ignore[index]
    assert len(used.unique()) == 80
    assert data.spec.num_train == 60
    assert data.size("test") == whole.size("test")
    assert torch.equal(whole._parts["train"].rows, make()._parts["train"].rows)
    assert not torch.equal(make(images_per_class=8)._parts["train"].rows, data._parts["train"].rows)
    other = make(images_per_class=8, val_fraction=0.25, split_seed=1)
    assert not torch.equal(other._parts["train"].rows, data._parts["train"].rows)


# --- identity


def test_the_fingerprint_says_which_images_labels_and_split() -> None:
    first = make().fingerprint
    assert make(augment="flip", mean=[0.3], workers=0).fingerprint == first
    changed = [make(seed=1), make(split_seed=1), make(val_fraction=0.2), make(num_test=60)]
    changed += [make(images_per_class=9), make(images_per_class=10), make(images_per_class=10, val_fraction=0.3)]
    assert len({first, *(data.fingerprint for data in changed)}) == 8


def raw(**changes: Any) -> Raw:
    pixels = torch.arange(2 * 4 * 4 * 4 * 3).view(-1, 4, 4, 3).to(torch.uint8)[:6]
    whole = {"train_images": pixels, "train_labels": torch.tensor([0, 1] * 3), "test_images": pixels}
    return Raw(**{**whole, "test_labels": torch.tensor([0, 1] * 3), "class_names": ("a", "b"), **changes})


def test_a_single_pixel_label_or_name_changes_the_fingerprint() -> None:
    def fingerprint(**changes: Any) -> str:
        return Data("raw", raw(**changes), Common(val_fraction=0)).fingerprint

    pixels = raw().train_images.clone()  # type: ignore[union-attr]
    pixels[3, 2, 1, 0] += 1
    labels = torch.tensor([0, 1, 0, 1, 1, 1])
    others = ({"train_images": pixels}, {"test_images": pixels}, {"train_labels": labels}, {"test_labels": labels})
    prints = {fingerprint(), fingerprint(class_names=("a", "c")), *(fingerprint(**other) for other in others)}
    assert len(prints) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": torch.tensor([0, 1])}, "train has 6 images and 2 labels"),
        ({"train_labels": torch.tensor([0, 1, 2, 1, 0, 1])}, "train labels 0 … 2 do not fit 2 classes"),
        ({"test_labels": torch.tensor([0, 1, -1, 1, 0, 1])}, "test labels -1 … 1 do not fit 2 classes"),
        ({"test_images": torch.zeros(6, 5, 4, 3, dtype=torch.uint8)}, r"training images are \(4, 4, 3\)"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Data("raw", raw(**changes), Common())


# --- options


def refused(options: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        check_dataset(options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "sinthetic"}, "did you mean 'synthetic'"),
        ({"val_fracton": 0.1}, "dataset.val_fracton"),
        ({"val_fraction": "much"}, "dataset.val_fraction"),
        ({"val_fraction": 0.95}, "val_fraction=0.95"),
        ({"images_per_class": 0}, "dataset.images_per_class"),
        ({"images_per_class": 1.5}, "dataset.images_per_class"),
        ({"val_fraction": -0.1}, "dataset.val_fraction=0.1"),
        ({"split_seed": 0.5}, "dataset.split_seed"),
        ({"augment": "crop-flip"}, "did you mean 'crop_flip'"),
        ({"mean": 0.5}, "dataset.mean"),
        ({"mean": []}, "dataset.mean=[0.5]"),
        ({"std": [0.5, 0.0, 0.5]}, "std=[0.5, 0.0, 0.5]"),
        ({"in_memory": "yes"}, "dataset.in_memory"),
        ({"memory_limit_gb": 0}, "dataset.memory_limit_gb=4"),
        ({"workers": -1}, "dataset.workers=2"),
        ({"num_classes": 1}, "num_classes: 1 is not possible; it must be ≥ 2"),
        ({"num_train": 5}, "dataset.num_train=100"),
        ({"num_test": 5}, "dataset.num_test=100"),
        ({"image_size": 2}, "image_size: 2 is not possible; it must be ≥ 4"),
        ({"channels": 2}, "dataset.channels=3"),
        ({"noise": -1}, "noise: -1 is not possible; it must be ≥ 0"),
        ({"name": "image_folder", "root": "x", "image_size": 0}, "dataset.image_size=32"),
        ({"name": "image_folder", "root": "x", "test_fraction": 0.95}, "dataset.test_fraction=0.2"),
        ({"name": "image_folder", "root": "x", "mode": "grey"}, "did you mean 'gray'"),
        ({"name": "image_folder", "root": ""}, "dataset.root=DIR"),
        ({"name": "image_folder"}, "dataset.root"),
        ({"name": "mnist", "root": "x", "download": "maybe"}, "dataset.download"),
    ],
)
def test_a_wrong_option_is_named_before_any_data_are_read(options: dict[str, Any], words: str) -> None:
    whole = options if "root" in options or "name" in options else {**SYNTHETIC, **options}
    assert words in refused(whole)


def test_options_of_a_data_set_that_is_not_there_pass_the_check() -> None:
    check_dataset({"name": "image_folder", "root": "/nowhere", "image_size": 32, "val_fraction": 0.2})


@pytest.mark.parametrize("option", ["mean", "std"])
def test_a_mean_for_other_channels_is_refused(option: str) -> None:
    with pytest.raises(ConfigError, match=rf"dataset\.{option}=\[0\.5, 0\.5\] has 2 numbers.*3 channels"):
        make(**{option: [0.5, 0.5]})


def test_a_component_is_given_the_common_options_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def own(shift: int = 0, split_seed: int = 0) -> Raw:
        seen.append((shift, split_seed))
        return raw()

    DATASETS.names()
    components: dict[str, Callable[..., Raw]] = DATASETS._components
    monkeypatch.setitem(components, "own", own)
    load_dataset({"name": "own", "shift": 3, "split_seed": 7, "val_fraction": 0})
    assert seen == [(3, 7)]
    assert "split_seed" in COMMON


def test_the_synthetic_set_is_learnable_but_not_trivial() -> None:
    data = make(num_train=1000, num_test=500, val_fraction=0)
    train, test = (next(data.eval_batches(part, batch_size=2000, device=CPU)) for part in ("train", "test"))  # type: ignore[arg-type]
    means = torch.stack([train.images[train.labels == label].mean(dim=0) for label in range(10)]).flatten(1)
    nearest = torch.cdist(test.images.flatten(1), means).argmin(dim=1)
    assert 0.8 < (nearest == test.labels).float().mean() < 1
    few = torch.cdist(test.images.flatten(1), train.images[:20].flatten(1)).argmin(dim=1) % 10
    assert (few == test.labels).float().mean() < 0.9
