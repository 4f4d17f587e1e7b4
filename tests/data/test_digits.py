"""UCI's digits and images of other sizes: what is read, split and stretched."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from kd_cli.data.base import load_dataset
from kd_cli.data.resize import fitted, resized
from kd_cli.errors import ConfigError
from tests.support.images import make_pixels
from tests.support.reading import labels_of, pixels_of


def test_digits_are_scikit_learns_with_a_fixed_balanced_test_split() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    whole = datasets.load_digits()
    data = load_dataset({"name": "digits", "val_fraction": 0.0})
    assert (data.size("train"), data.size("test")) == (1438, 359)
    assert data.spec.image_shape == (1, 8, 8)
    both = torch.cat([pixels_of(data, part) for part in ("train", "test")])
    known = np.round(whole.images * 255 / 16).astype(np.uint8)
    labels = labels_of(data, "train") + labels_of(data, "test")
    found = sorted((label, image.numpy().tobytes()) for label, image in zip(labels, both, strict=True))
    assert found == sorted((label, image.tobytes()) for label, image in zip(whole.target.tolist(), known, strict=True))
    assert set(np.bincount(labels_of(data, "test"))) == {35, 36, 37}
    assert load_dataset({"name": "digits"}).spec.num_train == 1438 - 145
    again = load_dataset({"name": "digits", "val_fraction": 0.0})
    assert again.fingerprint == data.fingerprint
    assert load_dataset({"name": "digits", "split_seed": 1}).fingerprint != data.fingerprint


def test_digits_are_stretched_inside_their_margin() -> None:
    pytest.importorskip("sklearn")
    small = pixels_of(load_dataset({"name": "digits"}), "test")
    framed = pixels_of(load_dataset({"name": "digits", "image_size": 20, "margin": 2, "resize": "nearest"}), "test")
    assert torch.equal(framed[:, 2:18, 2:18], small.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2))
    assert framed.sum() == framed[:, 2:18, 2:18].sum()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"image_size": 3}, "image_size=3 leaves 3 pixels"),
        ({"image_size": 28, "margin": 13}, "leaves 2 pixels between margins of 13"),
        ({"margin": -1}, "margin=-1 pixels must be 0 or more"),
        ({"test_fraction": 0.0}, "test_fraction=0.0 is outside"),
        ({"resize": "cubic"}, "'cubic' is not possible"),
    ],
)
def test_impossible_options_are_refused(options: dict, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_dataset({"name": "digits", **options})


def test_without_scikit_learn_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'kd-cli\[digits\]'"):
        load_dataset({"name": "digits"})


def test_a_flat_image_stays_flat_at_any_size_and_a_ramp_a_ramp() -> None:
    flat = torch.full((2, 8, 8, 3), 77, dtype=torch.uint8)
    for size in (3, 8, 13, 28):
        assert (resized(flat, size, size, "bilinear") == 77).all()
    ramp = torch.arange(0, 256, 8, dtype=torch.uint8).expand(1, 32, 32).unsqueeze(-1)
    shrunk = resized(ramp, 8, 8, "bilinear")[0, 0, :, 0].float()
    assert shrunk.diff().min() > 0
    # With antialiasing a pixel is a weighted mean of those that it covers: that of a ramp is its middle.
    assert torch.allclose(shrunk[2:-2], torch.arange(0, 256, 8).float().view(8, 4).mean(dim=1)[2:-2], atol=1)


def test_thin_lines_are_not_lost_where_images_get_smaller() -> None:
    lines = torch.tensor([0, 0, 0, 240], dtype=torch.uint8).repeat(8).expand(1, 32, 32).unsqueeze(-1)
    assert (resized(lines, 8, 8, "bilinear")[0, :, 1:-1].float() - 60).abs().max() < 10


def test_colour_becomes_luma_and_grey_is_repeated() -> None:
    pixels = make_pixels(channels=3)
    red, green, blue = pixels.double().unbind(dim=-1)
    luma = fitted(pixels, (1, 9, 11))
    assert (luma[..., 0].double() - (0.299 * red + 0.587 * green + 0.114 * blue)).abs().max() <= 0.51
    assert torch.equal(fitted(luma, (3, 9, 11)), luma.repeat(1, 1, 1, 3))
    assert fitted(pixels, (3, 9, 11)) is pixels
    assert fitted(pixels, (1, 4, 6)).shape == (12, 4, 6, 1)
    with pytest.raises(ValueError, match="images of 2 channels cannot become images of 3"):
        fitted(make_pixels(channels=2), (3, 9, 11))
