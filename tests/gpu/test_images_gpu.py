"""A GPU sees the images that the processor sees."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kd_cli.data.base import Data, load_dataset
from tests.support.small import CPU

pytestmark = pytest.mark.gpu


def images_of(data: Data, device: torch.device) -> Tensor:
    """Those of one epoch, by their ids."""
    batches = list(data.train_batches(seed=0, epoch=0, batch_size=50, device=device))
    assert all(batch.images.device.type == device.type for batch in batches)
    order = torch.cat([batch.ids for batch in batches]).argsort()
    return torch.cat([batch.images for batch in batches])[order].cpu()


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("name", ["none", "flip", "crop_flip", "strong", "randaugment", "random_resized_crop"])
def test_a_gpu_gets_the_same_images(device: str, name: str, in_memory: bool) -> None:
    options = {"num_train": 203, "image_size": 8, "augment": name, "in_memory": in_memory}
    data = load_dataset({"name": "synthetic", "num_test": 50, **options})
    difference = images_of(data, torch.device(device)) - images_of(data, CPU)
    # A GPU may round a pixel on the edge to the neighbouring value or place.
    assert (difference.abs() > 1.5 / 255).float().mean() < 0.002
