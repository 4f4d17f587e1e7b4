"""On a GPU our own networks learn with operations that add in one order, and decide nothing on the host."""

from __future__ import annotations

import pytest
import torch

from kd_cli.training.task import Supervised
from kd_cli.types import Batch
from tests.support.networks import CIFAR, OURS, build, options
from tests.support.operations import UNORDERED, operations


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_every_operation_of_our_own_networks_adds_in_one_order_on_cuda(name: str) -> None:
    batch = Batch(torch.zeros(2, *CIFAR), torch.zeros(2, dtype=torch.int64), torch.arange(2))
    assert not operations(Supervised(build(options(name))), batch) & UNORDERED
