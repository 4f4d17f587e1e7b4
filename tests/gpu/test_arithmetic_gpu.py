"""What PyTorch's switches do on a real card: the precision that is asked for, the same bits, and what has none."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_cli.arithmetic import arithmetic, check_card, exact, refusing
from kd_cli.data.augment import AUGMENTATIONS, Augment
from kd_cli.errors import ConfigError
from kd_cli.losses.adapters import area_mean
from kd_cli.losses.base import LOSSES, build_loss
from kd_cli.machine import pick_device
from kd_cli.metrics.evaluate import evaluating
from kd_cli.training.host_reads import host_reads
from kd_cli.training.task import Distillation
from kd_cli.types import Batch
from tests.losses.test_operations import SIZES, WAITS
from tests.support.images import make_pixels
from tests.support.small import SPEC, loss_options, make_batch, make_student, make_teacher

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

every_loss = pytest.mark.parametrize("name", LOSSES.names())


@pytest.fixture(scope="module")
def cuda() -> torch.device:
    return pick_device("cuda")


def needs_tf32(device: torch.device) -> None:
    if torch.cuda.get_device_capability(device) < (8, 0):
        pytest.skip("a card without TF32")


def distillation(name: str, device: torch.device) -> Distillation:
    method, mix = build_loss(loss_options(name))
    student, teacher = make_student().to(device), make_teacher().to(device)
    torch.manual_seed(0)  # of the layers that the method makes
    return Distillation(student, teacher, method, mix, SPEC, name=name)


def batch_on(device: torch.device) -> Batch:
    batch = make_batch(32)
    return Batch(batch.images.to(device), batch.labels.to(device), batch.ids.to(device))


def learn(task: Distillation, batch: Batch) -> None:
    torch.manual_seed(3)  # of dropout
    task.train()(batch).loss.backward()


def error_of(device: torch.device, network: nn.Module, images: Tensor) -> float:
    """The largest relative error of what a network says on the device, of its largest answer in float64."""
    wanted = network.double()(images.double())
    said = network.float().to(device)(images.to(device)).double().cpu()
    network.cpu()
    return float((said - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("kind", ["convolution", "product"])
def test_fp32_is_exact_and_tf32_is_not(cuda: torch.device, kind: str) -> None:
    needs_tf32(cuda)
    torch.manual_seed(0)
    network = nn.Conv2d(64, 64, 3, padding=1) if kind == "convolution" else nn.Linear(512, 512)
    images = torch.randn(8, 64, 32, 32) if kind == "convolution" else torch.randn(256, 512)
    with torch.no_grad(), arithmetic("fp32", True, cuda):
        assert error_of(cuda, network, images) < 5e-5
    with torch.no_grad(), arithmetic("tf32", True, cuda):
        assert 5e-5 < error_of(cuda, network, images) < 1e-2
        with exact(cuda):
            assert error_of(cuda, network, images) < 5e-5
    with torch.no_grad():  # what is no training
        assert error_of(cuda, network, images) < 5e-5


def test_an_evaluation_inside_of_a_training_in_tf32_has_the_bits_of_one_outside(cuda: torch.device) -> None:
    network, images = make_student().to(cuda), make_batch(64).images.to(cuda)
    with evaluating(network):
        outside = network(images)
    with arithmetic("tf32", True, cuda), evaluating(network):
        assert torch.equal(network(images), outside)


@every_loss
def test_a_step_has_the_same_gradients_every_time(cuda: torch.device, name: str) -> None:
    batch = batch_on(cuda)
    with arithmetic("fp32", True, cuda):
        tasks = [distillation(name, cuda) for _ in range(3)]
        for task in tasks:
            learn(task, batch)
    first, *others = ([each.grad for each in task.parameters()] for task in tasks)
    for other in others:
        assert all(
            (one is None) == (two is None) and (one is None or torch.equal(one, two))
            for one, two in zip(first, other, strict=True)
        )


@contextmanager
def waiting_raises() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it does not find all that waits
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_loss
def test_no_step_makes_the_host_wait_but_those_that_are_named(cuda: torch.device, name: str) -> None:
    batch = batch_on(cuda)
    with arithmetic("fp32", True, cuda):
        task = distillation(name, cuda)
        learn(task, batch)  # kernels are loaded, memory is had
        with host_reads() as found:
            learn(task, batch)
        assert set(found) == WAITS.get(name, set())
        if name not in WAITS:
            torch.manual_seed(3)
            with waiting_raises():
                task.train()(batch).loss.backward()


def test_what_reads_the_host_in_a_backward_pass_is_found_in_its_thread(cuda: torch.device) -> None:
    class Reads(torch.autograd.Function):
        @staticmethod
        def forward(context: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(context: object, gradient: Tensor) -> Tensor:
            return gradient * gradient.sum().item()

    with host_reads() as found:
        Reads.apply(torch.ones(2, device=cuda, requires_grad=True)).sum().backward()
    assert found == ["aten._local_scalar_dense"]


COPIES = {
    "to a list": lambda x: x.tolist(),
    "to the host": lambda x: x.cpu(),
    "a constant": lambda x: torch.tensor(1.0, device=x.device),
}


@pytest.mark.parametrize("read", COPIES.values(), ids=COPIES)
def test_copies_between_host_and_device_are_found(cuda: torch.device, read) -> None:
    x = torch.ones(3, device=cuda)
    with host_reads() as found:
        read(x)
    assert found


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_means_over_areas_and_their_gradients_are_those_of_the_cpu(
    cuda: torch.device, old: tuple[int, int], new: tuple[int, int]
) -> None:
    maps, weights = torch.randn(3, 2, *old), torch.randn(3, 2, *new)
    made = []
    with arithmetic("fp32", True, cuda):
        for place in (torch.device("cpu"), cuda):
            here = maps.to(place).requires_grad_()
            means = area_mean(here, new)
            (slopes,) = torch.autograd.grad((means * weights.to(place)).sum(), here)
            made.append((means.detach().cpu(), slopes.cpu()))
    for one, other in zip(*made, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def test_an_operation_without_a_deterministic_kernel_is_named_and_can_be_allowed(cuda: torch.device) -> None:
    def learns(deterministic: bool) -> None:
        maps = torch.randn(2, 3, 8, 8, device=cuda, requires_grad=True)
        with arithmetic("fp32", deterministic, cuda), refusing("this test", "trainer"):
            F.adaptive_avg_pool2d(maps, 3).sum().backward()

    with pytest.raises(ConfigError, match=r"adaptive_avg_pool2d_backward.*type trainer\.deterministic=false"):
        learns(True)
    learns(False)


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS.names() if name not in ("mixup", "cutmix")])
def test_an_augmentation_has_the_bits_of_the_cpu_and_does_not_wait(cuda: torch.device, name: str) -> None:
    pixels, made = make_pixels(size=100), Augment(name, (9, 11, 3))
    table = made.draw(100, 0, 0)
    there = pixels.to(cuda), table.to(cuda)
    made.apply(*there)
    with waiting_raises():
        seen = made.apply(*there)
    assert torch.equal(seen.cpu(), made.apply(pixels, table))


def test_a_card_with_tf32_is_told_of_once_and_only_under_fp32(
    cuda: torch.device, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_tf32(cuda)
    monkeypatch.setattr("kd_cli.console._noticed", {})
    for precision in ("tf32", "bf16", "fp32", "fp32"):
        check_card(precision, cuda)
    assert capsys.readouterr().err.count("trainer.precision=tf32") == 1


def test_a_card_without_tf32_refuses_it(cuda: torch.device) -> None:
    if torch.cuda.get_device_capability(cuda) >= (8, 0):
        pytest.skip("a card with TF32")
    with pytest.raises(ConfigError, match=r"trainer\.precision: tf32 needs a card of compute capability 8\.0"):
        check_card("tf32", cuda)
