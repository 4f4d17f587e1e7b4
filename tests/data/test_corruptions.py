"""Corruptions: each against a reference, and an image's view depends on nothing but its seed, id and severity."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from torch import Tensor

from kd_cli.data import corruptions as corrupt
from kd_cli.data.preprocess import Prepare
from tests.support.images import make_pixels
from tests.support.small import CPU, make_data

IDS = torch.arange(12)


def corrupted(name: str, severity: int, pixels: Tensor, ids: Tensor = IDS, seed: int = 0) -> Tensor:
    return corrupt.corruption(name, severity, seed)(pixels, ids)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", corrupt.NAMES)
def test_an_image_looks_the_same_in_any_batch(name: str, channels: int) -> None:
    pixels = make_pixels(channels=channels)
    for severity in corrupt.SEVERITIES:
        together = corrupted(name, severity, pixels)
        alone = [corrupted(name, severity, pixels[i : i + 1], IDS[i : i + 1]) for i in range(12)]
        assert torch.equal(torch.cat(alone), together)
        assert torch.equal(corrupted(name, severity, pixels.flip(0), IDS.flip(0)), together.flip(0))


@pytest.mark.parametrize("name", corrupt.NAMES)
def test_pixels_stay_bytes_of_the_same_shape_and_severities_differ(name: str) -> None:
    pixels = make_pixels()
    views = [corrupted(name, severity, pixels) for severity in corrupt.SEVERITIES]
    assert all(view.dtype == torch.uint8 and view.shape == pixels.shape for view in views)
    changes = [(view.float() - pixels.float()).abs().mean().item() for view in views]
    assert changes == sorted(changes)
    assert changes[0] > 0
    assert len(set(changes)) == 5
    assert len(corrupted(name, 1, pixels[:0], IDS[:0])) == 0


def test_noise_depends_on_seed_id_and_severity_and_on_nothing_drawn_before() -> None:
    pixels = make_pixels()[:1].repeat(12, 1, 1, 1)
    first = corrupted("gaussian_noise", 3, pixels)
    torch.rand(7)
    assert torch.equal(corrupted("gaussian_noise", 3, pixels), first)
    assert len(first.flatten(1).unique(dim=0)) == 12
    for other in (corrupted("gaussian_noise", 3, pixels, seed=1), corrupted("gaussian_noise", 3, pixels, IDS + 12)):
        assert not (other == first).flatten(1).all(dim=1).any()
    louder = corrupted("gaussian_noise", 5, pixels).float() - pixels
    quieter = corrupted("gaussian_noise", 1, pixels).float() - pixels
    assert abs(np.corrcoef(louder.flatten(), quieter.flatten())[0, 1]) < 0.1  # not the same noise, only stronger


@pytest.mark.parametrize("severity", corrupt.SEVERITIES)
def test_noise_is_normal_with_the_strength_of_its_severity(severity: int) -> None:
    grey = torch.full((20, 32, 32, 3), 128, dtype=torch.uint8)
    change = corrupted("gaussian_noise", severity, grey, torch.arange(20)).float() - 128
    deviation = 255 * corrupt.STRENGTHS["gaussian_noise"][severity - 1]
    assert change.std().item() == pytest.approx(deviation, rel=0.01)
    assert change.mean().item() == pytest.approx(0, abs=0.02 * deviation)
    assert (change.abs() < deviation).float().mean().item() == pytest.approx(0.683, abs=0.02)


@pytest.mark.parametrize("severity", corrupt.SEVERITIES)
def test_blur_is_scipys_gaussian_filter(severity: int) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    pixels = make_pixels(height=5)  # smaller than the widest filter
    deviation = corrupt.STRENGTHS["gaussian_blur"][severity - 1]
    expected = ndimage.gaussian_filter(pixels.numpy().astype(float), (0, deviation, deviation, 0), mode="nearest")
    found = corrupted("gaussian_blur", severity, pixels).numpy()
    assert np.abs(found - expected).max() <= 0.5 + 1e-3


def test_contrast_draws_each_channel_towards_its_mean() -> None:
    pixels = make_pixels()
    for severity, kept in zip(corrupt.SEVERITIES, (0.75, 0.5, 0.4, 0.3, 0.15), strict=True):
        means = pixels.double().mean(dim=(1, 2), keepdim=True)
        expected = means + kept * (pixels.double() - means)
        assert (corrupted("contrast", severity, pixels).double() - expected).abs().max() <= 0.5 + 1e-3


@pytest.mark.parametrize("channels", [1, 3])
def test_brightness_raises_the_value_of_hsv(channels: int) -> None:
    pixels = make_pixels(size=2, channels=channels)
    pixels[0, 0, 0] = 0  # black has no hue
    found = corrupted("brightness", 4, pixels, IDS[:2]).reshape(-1, channels)
    for before, after in zip(pixels.reshape(-1, channels).tolist(), found.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(each / 255 for each in (before * 3)[:3]))
        expected = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.2, 1))
        assert after == pytest.approx([255 * each for each in expected[:channels]], abs=0.5 + 1e-3)


def test_a_view_changes_what_is_evaluated_and_nothing_else() -> None:
    data = make_data(mean=[0.5], std=[0.25])
    brighter = data.seen_through(corrupt.corruption("brightness", 5, 0))
    options = {"batch_size": 50, "device": CPU}
    (plain,), (seen,) = list(data.eval_batches("test", **options)), list(brighter.eval_batches("test", **options))
    assert (seen.images - plain.images).min() >= 0
    assert (seen.images - plain.images).max() == pytest.approx(0.3 * 255 / 255 / 0.25, abs=0.02)
    assert torch.equal(seen.labels, plain.labels)
    training = {"seed": 0, "epoch": 0, **options}
    for one, other in zip(data.train_batches(**training), brighter.train_batches(**training), strict=True):
        assert torch.equal(one.images, other.images)


def test_views_follow_each_other_and_may_change_shape_and_normalisation() -> None:
    data = make_data()
    shape = Prepare("none", [0.0], [1.0], (8, 8, 1))
    small = data.seen_through(lambda pixels, ids: pixels[:, ::2, ::2, :1], shape)
    both = small.seen_through(lambda pixels, ids: 255 - pixels)
    (batch,) = both.eval_batches("test", batch_size=50, device=CPU)
    (plain,) = small.eval_batches("test", batch_size=50, device=CPU)
    assert both.spec.image_shape == (1, 8, 8) == tuple(batch.images.shape[1:])
    assert torch.allclose(batch.images, 1 - plain.images, atol=1e-6)
    assert data.spec.image_shape == (3, 16, 16)
