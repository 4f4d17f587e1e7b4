"""What makes the host wait for the device is found, in forward and backward passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_cli.training.host_reads import host_reads

READS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "item": (lambda x: x.sum().item(), "aten._local_scalar_dense"),
    "a decision": (lambda x: 1 if x.sum() > 0 else 0, "aten._local_scalar_dense"),
    "a mask": (lambda x: x[x > 0], "aten.index"),
    "nonzero": (lambda x: x.nonzero(), "aten.nonzero"),
    "equal": (lambda x: torch.equal(x, x), "aten.equal"),
    "allclose": (lambda x: torch.allclose(x, x), "aten.allclose"),
    "unique": (lambda x: x.unique(), "aten._unique2"),
    "a size": (lambda x: torch.arange(3).repeat_interleave(torch.arange(3)), "aten.repeat_interleave"),
    "svd": (lambda x: torch.linalg.svd(x), "aten._linalg_svd"),
    "inverse": (lambda x: torch.linalg.inv(x.mT @ x + torch.eye(3)), "aten._linalg_check_errors"),
    "to the device": (lambda x: torch.ones(3).to("meta"), "aten._to_copy"),
}


@pytest.mark.parametrize("name", READS)
def test_an_operation_that_waits_for_the_device_is_found(name: str) -> None:
    read, found_as = READS[name]
    with host_reads() as found:
        read(torch.randn(4, 3))
    assert found_as in found


def test_one_in_a_backward_pass_is_found_too() -> None:
    class Reads(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Tensor:
            return gradient * gradient.sum().item()

    with host_reads() as found:
        Reads.apply(torch.ones(2, requires_grad=True)).sum().backward()
    assert found == ["aten._local_scalar_dense"]


def test_what_stays_on_the_device_is_not() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    with host_reads() as found:
        rows = x[torch.tensor([2, 0])]
        (rows.masked_fill(rows > 0, 0) @ x.mT).logsumexp(dim=1).sum().backward()
    assert found == []


def test_the_step_does_what_it_does_without_being_watched() -> None:
    torch.manual_seed(0)
    alone = torch.randn(3).sum()
    torch.manual_seed(0)
    with host_reads():
        watched = torch.randn(3).sum()
    assert torch.equal(alone, watched)
