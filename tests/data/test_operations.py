"""What each operation does, beside torchvision's and PIL's, and what is drawn."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms import AutoAugmentPolicy, v2

from benchmarks.augmentations import SAME, difference, resampled, results, windows
from kd_cli.data.augment import Augment
from kd_cli.data.augmentations import autoaugment, randaugment, trivialaugment
from kd_cli.data.augmentations.cutmix import CutMix
from kd_cli.data.augmentations.erasing import Erasing
from kd_cli.data.augmentations.mixup import Mixup
from kd_cli.data.augmentations.random_resized_crop import RandomResizedCrop
from kd_cli.data.sampling import generator
from kd_cli.errors import ConfigError
from tests.support.images import make_pixels

# operation → the largest and the mean difference that is allowed, grey levels: nearest samples on an edge may be others
LOOSE = {"rotate": (255, 0.1), "shear_x": (255, 2.5), "contrast": (2, 1.0)}


def photograph(height: int = 300, width: int = 340) -> Tensor:
    """[H, W, C], smooth, so that neighbours are alike."""
    small = make_pixels(size=1, height=12, width=12).permute(0, 3, 1, 2)
    return v2.functional.resize(small, [height, width], antialias=True)[0].permute(1, 2, 0).contiguous()


@pytest.mark.parametrize("name", SAME)
def test_an_operation_is_torchvision_s_and_pil_s(name: str) -> None:
    for beside, ours, theirs in results(name, photograph(224, 224)):
        largest, mean = difference(ours, theirs)
        allowed = LOOSE.get(name, (1, 0.6))
        assert largest <= allowed[0], beside
        assert mean <= allowed[1], beside


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_resizing_and_cutting_is_torchvision_s_to_the_bit_and_pil_s_to_a_level(mode: str) -> None:
    found = {beside: difference(ours, theirs) for beside, ours, theirs in resampled(photograph(), mode)}
    assert found["torchvision"] == (0, 0)
    assert found["PIL"][0] <= 2
    assert found["PIL"][1] < 0.1


def test_a_window_is_torchvision_s_resized_crop_to_the_bit() -> None:
    beside, ours, theirs = next(windows(photograph()))
    assert (beside, difference(ours, theirs)) == ("torchvision", (0, 0))


# --- what is drawn


def test_windows_are_drawn_with_torchvision_s_distribution_one_by_one_as_together() -> None:
    crop, count = RandomResizedCrop(), 4000
    table = crop.draw(count, (300, 340, 3), generator(0, "windows"))
    torch.manual_seed(0)
    theirs = torch.tensor(
        [v2.RandomResizedCrop.get_params(torch.empty(3, 300, 340), [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
        if hasattr(v2.RandomResizedCrop, "get_params")
        else [
            [each[key] for key in ("top", "left", "height", "width")]
            for each in (v2.RandomResizedCrop(224).make_params([torch.empty(3, 300, 340)]) for _ in range(count))
        ]
    ).float()
    assert (table.mean(dim=0) - theirs.mean(dim=0)).abs().max() < 6  # pixels
    assert (table.std(dim=0) - theirs.std(dim=0)).abs().max() < 6
    assert bool((table[:, 0] + table[:, 2] <= 300).all() and (table[:, 1] + table[:, 3] <= 340).all())
    for number in range(20):
        alone = crop.draw(1, (300, 340, 3), generator(number, "one"))[0].tolist()
        assert alone == list(crop.box(300, 340, generator(number, "one")))


def test_an_image_that_no_window_fits_gives_its_middle() -> None:
    crop = RandomResizedCrop(scale=(1.0, 1.0), ratio=(0.99, 1.01))
    assert crop.box(10, 100, generator(0, "x")) == (0, 45, 10, 10)
    assert crop.box(100, 10, generator(0, "x")) == (45, 0, 10, 10)
    assert crop.draw(1, (10, 100, 3), generator(0, "x"))[0].tolist() == [0, 45, 10, 10]


@pytest.mark.parametrize("policy", ["imagenet", "cifar10"])
def test_autoaugment_has_the_pairs_of_the_paper(policy: str) -> None:
    called = {"saturation": "Color", "autocontrast": "AutoContrast"}
    theirs = v2.AutoAugment(AutoAugmentPolicy(policy))._policies
    names = list({**randaugment.RANGES, "invert": (0.0, False)})
    for ours, pair in zip(autoaugment.pairs(policy).tolist(), theirs, strict=True):
        for (number, chance, strength), (name, probability, level) in zip(ours, pair, strict=True):
            own = names[int(number)]
            assert called.get(own, own.title().replace("_", "")) == name
            assert chance == pytest.approx(probability)
            assert strength == pytest.approx((level or 0) / 9)


@pytest.mark.parametrize(("module", "spec"), [(randaugment, "randaugment"), (trivialaugment, "trivialaugment")])
def test_every_operation_is_drawn_equally_often_and_signs_too(module: object, spec: str) -> None:
    ranges = module.RANGES  # type: ignore[attr-defined]
    made = Augment(spec, (32, 32, 3))
    table = made.draw(20_000, 0, 0)
    number, magnitude = table[:, 0], table[:, table.shape[1] // 2]
    counts = number.long().bincount(minlength=len(ranges))
    assert counts.min() > 0.85 * 20_000 / len(ranges)
    for index, (_, signed) in enumerate(ranges.values()):
        negative = (magnitude[number == index] < 0).float().mean()
        assert negative == pytest.approx(0.5 if signed else 0.0, abs=0.06)


def test_strength_ten_of_randaugment_is_the_whole_range() -> None:
    made = Augment([{"name": "randaugment", "n": 1, "m": 10}], (32, 32, 3))
    table = made.draw(5000, 0, 0)
    rotated = table[table[:, 0] == list(randaugment.RANGES).index("rotate"), 1].abs()
    assert rotated.unique().tolist() == pytest.approx([math.radians(30)])
    solarized = table[table[:, 0] == list(randaugment.RANGES).index("solarize"), 1]
    assert solarized.unique().tolist() == [0.0]


def test_erasing_fills_a_share_of_the_area_of_some_images() -> None:
    pixels = torch.full((400, 32, 32, 3), 255, dtype=torch.uint8)
    erasing = Erasing(p=0.5, scale=(0.1, 0.3), fill=(1, 2, 3))
    seen = erasing.apply(pixels, erasing.draw(400, (32, 32, 3), generator(0, "x")))
    erased = (seen == torch.tensor([1, 2, 3], dtype=torch.uint8)).all(dim=-1)
    share = erased.float().mean(dim=(1, 2))
    assert (share > 0).float().mean() == pytest.approx(0.5, abs=0.08)
    assert share[share > 0].min() > 0.07
    assert share.max() < 0.34
    assert bool(((seen == 255).all(dim=-1) | erased).all())


def test_mixup_and_cutmix_give_each_label_the_share_of_its_image() -> None:
    images, others = torch.zeros(300, 3, 16, 16), torch.ones(300, 3, 16, 16)
    for mixing in (Mixup(alpha=1.0, p=0.5), CutMix(alpha=1.0, p=0.5)):
        mixed, share = mixing.mix(images, others, mixing.draw(300, (16, 16, 3), generator(0, "x")))
        assert torch.allclose(1 - mixed.mean(dim=(1, 2, 3)), share, atol=1e-6)
        assert 0.35 < float((share == 1).float().mean()) < 0.7
        plain, whole = mixing.mix(images, others, torch.tensor([list(mixing.unmixed())] * 300))
        assert torch.equal(plain, images)
        assert bool((whole == 1).all())


def test_of_two_mixings_each_image_has_one() -> None:
    made = Augment([{"name": "mixup", "alpha": 1.0}, "cutmix"], (16, 16, 3))
    table = made.draw(1000, 0, 0)
    by_mixup, by_cutmix = table[:, 0] < 1, table[:, 3:].prod(dim=1) > 0
    assert not bool((by_mixup & by_cutmix).any())
    assert float(by_mixup.float().mean()) == pytest.approx(0.5, abs=0.06)


# --- what cannot be


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("crop-flip", "did you mean 'crop_flip'"),
        (["flip", "none"], "'none' stands alone"),
        (["flip", "random_resized_crop"], r"dataset.augment=\[random_resized_crop,flip\]"),
        ([{"name": "randaugment", "m": 11}], r"dataset.augment\[0\].m: 11"),
        ([{"name": "erasing", "p": 2}], r"dataset.augment\[0\].p: 2"),
        ([{"name": "random_resized_crop", "scale": [0.5, 0.1]}], "two shares of the area"),
        ([{"name": "color_jitter", "hue": 0.7}], "hue"),
        ([{"alpha": 1}], "does not say which augmentation it is"),
    ],
)
def test_what_cannot_be_done_is_refused_with_what_to_type(spec: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Augment(spec, (32, 32, 3))  # type: ignore[arg-type]
