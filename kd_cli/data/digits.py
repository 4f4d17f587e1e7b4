"""UCI's handwritten digits (Alpaydin and Kaynak 1998) as scikit-learn ships them, 8×8 grey."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from kd_cli.data.base import DATASETS, Raw, checked_by
from kd_cli.data.resize import Mode, resized
from kd_cli.data.sampling import stratified_split
from kd_cli.errors import ConfigError


def _check(*, image_size: int, margin: int, test_fraction: float, **_: Any) -> None:
    if margin < 0:
        raise ValueError(f"margin={margin} pixels must be 0 or more; type dataset.margin=0")
    if image_size - 2 * margin < 4:
        raise ValueError(
            f"image_size={image_size} leaves {image_size - 2 * margin} pixels between margins of {margin}, fewer "
            "than 4; type dataset.image_size=28 dataset.margin=4"
        )
    if not 0 < test_fraction <= 0.9:
        raise ValueError(f"test_fraction={test_fraction} is outside 0 … 0.9; type dataset.test_fraction=0.2")


@DATASETS.register("digits")
@checked_by(_check)
def digits(
    image_size: int = 8,
    margin: int = 0,
    resize: Mode = "bilinear",
    test_fraction: float = 0.2,
    split_seed: int = 0,
) -> Raw:
    """1,797 digits of 13 writers, counts of ink from 0 to 16; with kd's own test split, since there is none.

    (scikit-learn has UCI's test set only. Every writer is in all parts, so that it is no test of unknown hands.)

    Args:
        image_size: H = W, pixels, with the margins.
        margin: black pixels on each side; 28 with 4 is how MNIST's digits stand.
        resize: how the 8×8 pixels are stretched to what the margins leave.
        test_fraction: share of each class that becomes the test part; above 0, at most 0.9.
        split_seed: fixes that share.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError("dataset=digits needs scikit-learn; type: pip install 'kd-cli[digits]'") from error
    whole = load_digits()
    ink = torch.from_numpy(whole.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(-1)
    inner = image_size - 2 * margin
    images = functional.pad(resized(ink, inner, inner, resize), (0, 0, margin, margin, margin, margin))
    labels = torch.from_numpy(whole.target).long()
    train, test = stratified_split(labels, test_fraction, split_seed, key="dataset.test_fraction")
    return Raw(images[train], labels[train], images[test], labels[test], tuple("0123456789"))
