"""Augmentation: what each operation does to pixels, and that an image's view depends on nothing but its row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kd_cli.data.augment import AUGMENTATIONS, Augment, Spec
from kd_cli.data.augmentations import crop_flip, operations, steps, strong
from kd_cli.data.sampling import generator
from kd_cli.training.host_reads import host_reads
from tests.support.images import make_pixels


def slow_crop_and_flip(image: Tensor, down: int, right: int, flip: bool) -> Tensor:
    """One image, pixel by pixel: pad with black, cut the window, mirror it."""
    height, width, channels = image.shape
    result = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            from_y, from_x = y + down, (width - 1 - x if flip else x) + right
            if 0 <= from_y < height and 0 <= from_x < width:
                for c in range(channels):
                    result[y, x, c] = image[from_y, from_x, c]
    return result


def at_strength(name: str, strength: float, pixels: Tensor) -> Tensor:
    return steps.operate(pixels, rows_of(name, strength, len(pixels)))


def rows_of(name: str, strength: float, size: int) -> Tensor:
    magnitude = torch.full((size,), strong.LARGEST[name] * strength)
    return operations.parameters(name, magnitude, torch.full((size, 2), 0.5))


def drawn(spec: Spec, size: int, channels: int = 3, *, seed: int = 0, view: int = 0) -> tuple[Augment, Tensor]:
    """The augmentations of 9×11 images, and their table."""
    made = Augment(spec, (9, 11, channels))
    return made, made.draw(size, seed, view)


NAMES = tuple(name for name in AUGMENTATIONS.names() if name not in ("mixup", "cutmix"))
LIST: Spec = ["random_resized_crop", "flip", {"name": "randaugment", "n": 1}, "erasing"]
SPECS = [pytest.param(each, id=str(each)) for each in ("none", *NAMES, LIST)]


@pytest.mark.parametrize("channels", [1, 3])
def test_crop_flip_equals_a_slow_reference_for_every_image(channels: int) -> None:
    pixels = make_pixels(size=200, channels=channels)
    made, table = drawn("crop_flip", len(pixels), channels, seed=3)
    expected = [
        slow_crop_and_flip(image, int(row[crop_flip.DOWN]), int(row[crop_flip.RIGHT]), bool(row[crop_flip.FLIP]))
        for image, row in zip(pixels, table, strict=True)
    ]
    assert torch.equal(made.apply(pixels, table), torch.stack(expected))


def test_crop_offsets_cover_every_shift_and_half_of_the_images_are_flipped() -> None:
    _, table = drawn("crop_flip", 20_000)
    for column in (crop_flip.DOWN, crop_flip.RIGHT):
        values, counts = table[:, column].unique(return_counts=True)
        assert values.tolist() == list(range(-4, 5))
        assert counts.min() > 0.9 * 20_000 / 9
    assert table[:, crop_flip.FLIP].mean().item() == pytest.approx(0.5, abs=0.02)


def test_flip_mirrors_about_half_and_leaves_the_others() -> None:
    pixels = make_pixels(size=100)
    made, table = drawn("flip", 100)
    result = made.apply(pixels, table)
    mirrored = (result == pixels.flip(2)).flatten(1).all(dim=1)
    kept = (result == pixels).flatten(1).all(dim=1)
    assert (mirrored ^ kept).all()
    assert 30 < mirrored.sum() < 70


def test_none_changes_nothing() -> None:
    pixels = make_pixels()
    made, table = drawn("none", 12)
    assert table.shape == (12, 0)
    assert torch.equal(made.apply(pixels, table), pixels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("spec", SPECS)
def test_an_image_looks_the_same_in_any_batch(spec: Spec, channels: int) -> None:
    pixels = make_pixels(size=60, channels=channels)
    made, table = drawn(spec, 60, channels)
    together = made.apply(pixels, table)
    alone = torch.cat([made.apply(pixels[i : i + 1], table[i : i + 1]) for i in range(60)])
    order = torch.randperm(60, generator=generator(1, "test"))
    shuffled = torch.cat([made.apply(pixels[rows], table[rows]) for rows in order.split(7)])
    assert torch.equal(alone, together)
    assert torch.equal(shuffled, together[order])


@pytest.mark.parametrize("spec", SPECS[1:])
def test_the_table_is_a_pure_function_of_seed_and_view(spec: Spec) -> None:
    made, first = drawn(spec, 50, view=1)
    torch.rand(7)
    assert torch.equal(made.draw(50, 0, 1), first)
    for seed, view in ((1, 1), (0, 2)):
        assert not torch.equal(made.draw(50, seed, view), first)


@pytest.mark.parametrize("spec", SPECS)
def test_augmentation_keeps_type_and_shape_and_takes_an_empty_batch(spec: Spec) -> None:
    made, table = drawn(spec, 12)
    for pixels, rows in ((make_pixels(), table), (make_pixels()[:0], table[:0])):
        result = made.apply(pixels, rows)
        assert result.shape == pixels.shape
        assert result.dtype == torch.uint8
        assert result.is_contiguous()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", strong.LARGEST)
def test_strength_zero_leaves_the_image_unchanged(name: str, channels: int) -> None:
    pixels = make_pixels(channels=channels)
    for step, _ in steps.STEPS:  # each by itself: `operate` would pass over images that it need not change
        assert torch.equal(step(pixels, rows_of(name, 0.0, len(pixels))), pixels)
    assert torch.equal(at_strength(name, 0.0, pixels), pixels)


@pytest.mark.parametrize("strength", [-1.0, 0.8])
@pytest.mark.parametrize("name", strong.LARGEST)
def test_every_operation_changes_a_colour_image(name: str, strength: float) -> None:
    pixels = make_pixels()
    assert (at_strength(name, strength, pixels) != pixels).flatten(1).any(dim=1).all()


def test_brightness_scales_pixels_and_saturates() -> None:
    pixels = make_pixels()
    for strength in (-0.5, 0.5):
        expected = (pixels.double() * (1 + 0.9 * strength)).clamp(0, 255)
        assert (at_strength("brightness", strength, pixels).double() - expected).abs().max() <= 0.5 + 1e-4


def test_contrast_and_saturation_blend_with_the_greys_of_pil() -> None:
    image_module = pytest.importorskip("PIL.Image")
    pixels = make_pixels()
    grey = torch.stack(
        [torch.tensor(list(image_module.fromarray(image.numpy()).convert("L").tobytes())) for image in pixels]
    ).view(12, 9, 11, 1)
    mean = (grey.double().mean(dim=(1, 2, 3)) + 0.5).floor().view(12, 1, 1, 1)
    for name, origin in (("contrast", mean), ("saturation", grey.double())):
        expected = (origin + (pixels - origin) * (1 + 0.9 * 0.5)).clamp(0, 255)
        assert (at_strength(name, 0.5, pixels).double() - expected).abs().max() <= 0.5 + 1e-3


def test_translations_move_by_their_share_of_the_size_and_uncover_black() -> None:
    pixels = make_pixels(height=10, width=20)
    down = at_strength("translate_y", -1.0, pixels)  # reads from 3 rows above
    assert torch.equal(down[:, 3:], pixels[:, :-3])
    assert not down[:, :3].any()
    left = at_strength("translate_x", 0.5, pixels)  # reads from 3 columns to the right
    assert torch.equal(left[:, :, :-3], pixels[:, :, 3:])
    assert not left[:, :, -3:].any()


def test_shear_keeps_the_middle_line_and_moves_the_outer_ones_apart() -> None:
    pixels = make_pixels(height=21, width=21)
    sheared = at_strength("shear_x", 1.0, pixels)
    assert torch.equal(sheared[:, 10], pixels[:, 10])
    assert torch.equal(sheared[:, 0, 3:], pixels[:, 0, :-3])  # 0.3 · 10 rows above the middle
    assert torch.equal(sheared[:, 20, :-3], pixels[:, 20, 3:])


def test_rotation_keeps_the_centre_and_turns_a_line_to_its_angle() -> None:
    pixels = torch.zeros(1, 41, 41, 1, dtype=torch.uint8)
    pixels[0, 20, :] = 200  # a horizontal line
    rotated = at_strength("rotate", 1.0, pixels)[0, :, :, 0]
    ys, xs = rotated.nonzero(as_tuple=True)
    assert rotated[20, 20] == 200
    slope = (((xs - 20) * (ys - 20)).sum() / ((xs - 20) ** 2).sum()).item()
    assert abs(slope) == pytest.approx(0.577, abs=0.03)  # tan 30°


def test_cutout_blackens_a_square_of_half_the_size_around_its_centre() -> None:
    pixels = make_pixels(size=1, height=32, width=32)
    for strength, side in ((1.0, 16), (-0.5, 8)):
        black = (at_strength("cutout", strength, pixels)[0] == 0).all(dim=-1)
        first = 16 - side // 2
        assert black.sum() == side * side
        assert black[first : first + side, first : first + side].all()


def test_strong_uses_every_operation_and_saturation_only_in_colour() -> None:
    width = len(operations.IDENTITY)
    for channels in (1, 3):
        _, table = drawn("strong", 5000, channels)
        assert table.shape[1] == strong.FIRST + strong.NUM_OPERATIONS * width
        rows = table[:, strong.FIRST : strong.FIRST + width]
        changed = (rows != torch.tensor(operations.IDENTITY)).float().mean(dim=0)
        assert (changed[operations.COLOUR] > 0) == (channels == 3)
        others = ("BRIGHT", "CONTRAST", "XX", "X1", "Y1", "XY", "HALF")
        assert changed[[getattr(operations, name) for name in others]].min() > 0.08


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("spec", ["strong", "randaugment", "autoaugment", "trivialaugment", "color_jitter"])
def test_a_step_that_sees_all_images_gives_the_bits_of_one_that_sees_those_it_changes(
    spec: str, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = make_pixels(size=300, channels=channels)
    made, table = drawn(spec if spec != "color_jitter" else [{"name": spec, "hue": 0.2}], len(pixels), channels)
    some = made.apply(pixels, table)
    monkeypatch.setattr(steps, "operate_on_some", steps.operate_on_all)
    monkeypatch.setattr(steps, "_counts_upto", lambda planes: sorted_counts(planes))
    assert torch.equal(made.apply(pixels, table), some)


def sorted_counts(planes: Tensor) -> Tensor:
    """As a GPU counts."""
    levels = torch.arange(256, dtype=torch.uint8).expand(len(planes), 256).contiguous()
    return torch.searchsorted(planes.sort(dim=1).values, levels, right=True)


@pytest.mark.parametrize("spec", SPECS)
def test_on_a_gpu_the_host_waits_for_no_augmentation(spec: Spec) -> None:
    pixels = make_pixels(size=8)
    made, table = drawn(spec, 8)
    with host_reads() as found:
        seen = made.apply(pixels.to("meta"), table.to("meta"))
    assert seen.shape == pixels.shape
    assert set(found) <= {"aten._to_copy"}
