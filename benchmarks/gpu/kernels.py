"""Milliseconds of a captured step of E1's networks: by how images lie in memory, by whether the same bits are promised,
and with the weights' gradients of convolutions as a product of unfolded images.

`python -m benchmarks.gpu.kernels` takes a minute; docs/gpu.md says why it is asked.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from benchmarks.gpu.loop import Loop
from benchmarks.loop import BATCH
from benchmarks.script import Student, Teacher

NETWORKS = {"student": Student, "teacher": Teacher}
LAYOUTS = {"channels last": torch.channels_last, "channels first": torch.contiguous_format}


class Product(torch.autograd.Function):
    """A 3×3 convolution, padded by 1, whose weights' gradient is one product: [O, B·H·W] · [B·H·W, I·9]."""

    @staticmethod
    def forward(context: Any, images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        context.save_for_backward(images, weight)
        return F.conv2d(images, weight, bias, padding=1)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        images, weight = context.saved_tensors
        (gradient,) = gradients
        columns = F.unfold(images, 3, padding=1).transpose(0, 1).flatten(1)
        by_weight = gradient.transpose(0, 1).flatten(1) @ columns.T
        by_image = conv2d_input(images.shape, weight, gradient, padding=1) if context.needs_input_grad[0] else None
        return by_image, by_weight.view_as(weight), gradient.sum((0, 2, 3))


class Unfolded(nn.Conv2d):
    """As nn.Conv2d, by `Product`."""

    def forward(self, images: Tensor) -> Tensor:
        return Product.apply(images, self.weight, self.bias)


def milliseconds(step: Callable[[], None], device: torch.device, steps: int) -> float:
    """Of a step, after a few that are not counted."""
    for _ in range(3):
        step()
    _wait(device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    _wait(device)
    return 1000 * (time.perf_counter() - start) / steps


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measured(name: str, layout: str, unfolded: bool, device: torch.device, steps: int) -> float:
    """Milliseconds of a step, with the kernels that PyTorch may take now."""
    pixels = torch.randint(0, 256, (4 * BATCH, 32, 32, 3), dtype=torch.uint8)
    network = NETWORKS[name]()
    if unfolded:
        for layer in (each for each in network.modules() if isinstance(each, nn.Conv2d)):
            layer.__class__ = Unfolded
    loop = Loop(pixels, torch.arange(len(pixels)) % 10, device, network, LAYOUTS[layout])
    return milliseconds(loop.captured(), device, steps)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.kernels", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cpu: to try it; nothing that it then prints means anything")
    parser.add_argument("--steps", type=int, default=500, help="of each (%(default)s)")
    args = parser.parse_args(arguments)
    torch.utils.deterministic.fill_uninitialized_memory = False  # it would fill every new tensor
    torch.backends.cudnn.allow_tf32 = False
    print(f"{'network':10}{'layout':17}{'weights’ gradient':20}{'kernels':17}ms a step")
    for name, layout, unfolded, same in product(NETWORKS, LAYOUTS, (False, True), (True, False)):
        torch.use_deterministic_algorithms(same)
        taken = measured(name, layout, unfolded, torch.device(args.device), args.steps)
        words = "unfolded" if unfolded else "cuDNN's", "deterministic" if same else "any"
        print(f"{name:10}{layout:17}{words[0]:20}{words[1]:17}{taken:.3f}", flush=True)


if __name__ == "__main__":
    main()
