"""What tests of data sets read them with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kd_cli.data.base import Data, load_dataset
from kd_cli.errors import DataError
from tests.support.small import CPU


def pixels_of(data: Data, part: Any) -> Tensor:
    """A part's images as uint8 [n, H, W, C]; the data set must not be normalised."""
    batches = list(data.eval_batches(part, batch_size=1000, device=CPU))
    return (torch.cat([batch.images for batch in batches]) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def labels_of(data: Data, part: Any) -> list[int]:
    return torch.cat([batch.labels for batch in data.eval_batches(part, batch_size=1000, device=CPU)]).tolist()


def refused(options: dict[str, Any]) -> str:
    with pytest.raises(DataError) as caught:
        load_dataset(options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
