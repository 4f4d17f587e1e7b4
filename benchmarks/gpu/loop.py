"""The work of a step of kd's student as a bare loop: one CUDA graph, nothing checked, nothing counted but the loss.

Images and the teacher's answers are on the device; a step gathers, normalises, and takes the loss of E1.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as kd does, before CUDA starts

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.gpu.images import FILE
from benchmarks.loop import BATCH, LR, SEED
from benchmarks.script import MEAN, STD, Student, distillation_loss
from kd_cli.data.sampling import permutation

Step = Callable[[], None]


class Loop:
    """Everything that a step reads and writes.

    Args:
        pixels: [N, H, W, 3], bytes.
        labels: [N].
        network: of E1; None: its student.
        layout: of weights and images.
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor,
        device: torch.device,
        network: nn.Module | None = None,
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        self.pixels, self.labels = pixels.to(device), labels.to(device)
        self.said = torch.randn(len(pixels), 10, generator=torch.Generator().manual_seed(0)).to(device)
        std = torch.tensor(STD, device=device)
        self.scale, self.shift = 1 / (255 * std), -torch.tensor(MEAN, device=device) / std
        torch.manual_seed(SEED)
        self.layout, self.network = layout, (network or Student()).to(device, memory_format=layout).train()
        captured = device.type == "cuda"
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=LR, fused=True, capturable=captured)
        self.rows, self.total = torch.arange(BATCH, device=device), torch.zeros((), device=device)

    def step(self, rows: Tensor) -> None:
        """One update, on the images of these rows."""
        images = self.pixels.index_select(0, rows).float().mul_(self.scale).add_(self.shift).permute(0, 3, 1, 2)
        logits = self.network(images.contiguous(memory_format=self.layout))
        soft = distillation_loss(logits, self.said[rows], 2.0)
        loss = 0.25 * soft + 0.75 * F.cross_entropy(logits, self.labels[rows])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.total += loss.detach() * len(rows)

    def captured(self) -> Step:
        """A replay of the step on `self.rows`; without CUDA the step itself."""
        if self.rows.device.type != "cuda":
            return lambda: self.step(self.rows)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.step(self.rows)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            self.step(self.rows)
        return graph.replay

    def epoch(self, replay: Step, epoch: int) -> float:
        """Seconds of a pass over all images; the last, smaller batch is eager."""
        start = time.perf_counter()
        order = permutation(len(self.pixels), SEED, epoch).to(self.rows.device)
        for rows in order.split(BATCH):
            if len(rows) == BATCH:
                self.rows.copy_(rows)
                replay()
            else:
                self.step(rows)
        self.total.item()  # waits
        return time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="of the images")
    parser.add_argument("--images", type=int, default=45_000, help="of them (%(default)s)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args(arguments)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # it would fill every new tensor
    torch.backends.cudnn.allow_tf32 = False
    parts = load_file(args.root / FILE)
    loop = Loop(parts["train"][: args.images], parts["train_labels"][: args.images], torch.device(args.device))
    replay = loop.captured()
    print(json.dumps({"seconds": [loop.epoch(replay, epoch) for epoch in range(args.epochs)]}))


if __name__ == "__main__":
    main()
