"""On a GPU every loss adds in one order, and decides nothing on the host: it can be captured in a CUDA graph."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kd_cli.losses.adapters import area_mean, means_by_products
from kd_cli.losses.base import LOSSES, build_loss
from kd_cli.training.host_reads import host_reads
from kd_cli.training.task import Distillation
from tests.support.operations import UNORDERED, operations, recorded
from tests.support.small import SPEC, loss_options, make_batch, make_student, make_teacher

# The host waits for these, and they train eagerly. Why:
WAITS = {"kdsvd": {"aten._linalg_eigh"}}  # the solver reports whether it converged


def distillation(name: str, teacher: torch.nn.Module) -> Distillation:
    method, mix = build_loss(loss_options(name))
    return Distillation(make_student(), teacher, method, mix, SPEC, name=name)


@pytest.mark.parametrize("name", LOSSES.names())
def test_every_operation_of_a_loss_adds_in_one_order_on_cuda(name: str) -> None:
    teacher = make_teacher()
    found = operations(distillation(name, teacher), make_batch(), teacher)
    assert not found & UNORDERED
    # The gradient of a gather is added up by a sort there, in some versions behind a wait for the device.
    assert "aten.scatter_add" not in found or name in WAITS


@pytest.mark.parametrize("name", LOSSES.names())
def test_the_host_waits_for_no_loss_but_those_that_are_named(name: str) -> None:
    task = distillation(name, make_teacher())
    with host_reads() as found:
        task.train()(make_batch()).loss.backward()
    assert set(found) == WAITS.get(name, set())


SIZES = [((8, 8), (4, 4)), ((6, 6), (2, 2)), ((7, 5), (3, 2)), ((2, 2), (4, 4)), ((3, 4), (4, 3)), ((5, 5), (1, 1))]


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_means_over_areas_are_those_of_adaptive_pooling(old: tuple[int, int], new: tuple[int, int]) -> None:
    maps = torch.randn(3, 2, *old, dtype=torch.float64, requires_grad=True)
    wanted, made = F.adaptive_avg_pool2d(maps, new), means_by_products(maps, new)
    assert torch.allclose(made, wanted, rtol=1e-14, atol=1e-14)
    weights = torch.randn_like(wanted)
    slopes = [torch.autograd.grad((each * weights).sum(), maps)[0] for each in (made, wanted)]
    assert torch.allclose(*slopes, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(("old", "new"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_the_cpu_they_are_its_bits_and_elsewhere_none_of_its_kernels(
    old: tuple[int, int], new: tuple[int, int], dtype: torch.dtype
) -> None:
    maps = torch.randn(3, 2, *old, dtype=dtype)
    assert torch.equal(area_mean(maps, new), F.adaptive_avg_pool2d(maps, new))
    with recorded() as found:
        elsewhere = area_mean(maps.to("meta").requires_grad_(), new)
        elsewhere.sum().backward()
    assert (elsewhere.shape, elsewhere.dtype) == ((3, 2, *new), dtype)
    assert not found & UNORDERED
