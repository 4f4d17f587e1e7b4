"""Data-parallel training: the processes (ranks) of one training, each with its rows of every global batch.

Every rank's network sees its own rows. What it said is then gathered, so that every rank has the loss of the whole
batch: labels, losses over pairs of images and layers of a method are right whatever they are. A rank's gradient is that
of its own rows, and the mean over ranks (of W times it) is the gradient of one process.

B rows of the global batch, of which a rank has b; W ranks.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kd_cli.training.whole_batch import WholeBatch
from kd_cli.types import Batch, Outputs

T = TypeVar("T")

_PATIENCE = timedelta(hours=12)  # a rank may have a teacher to ask; one that has ended is noticed at once


@dataclass(frozen=True)
class Shard:
    """A rank's part of one global batch.

    Args:
        rank: whose.
        sizes: rows of each rank, [W].
        block: rows of one image, which are together; images go to the ranks in turn.
    """

    rank: int
    sizes: tuple[int, ...]
    block: int = 1

    @property
    def total(self) -> int:
        """B."""
        return sum(self.sizes)

    @property
    def own(self) -> int:
        """b."""
        return self.sizes[self.rank]

    def places(self, device: torch.device, block: int | None = None) -> Tensor:
        """Which rows of the global batch are this rank's: [b], int64; of things that each image has `block` of."""
        block = block or self.block
        images = torch.arange(self.rank, self.total // self.block, len(self.sizes), device=device)
        return (images[:, None] * block + torch.arange(block, device=device)).flatten()

    def together(self, parts: Sequence[Tensor]) -> Tensor:
        """The rows of the global batch [B, …] from those of each rank, filled up to the same number."""
        rows: Tensor = torch.stack(list(parts)).unflatten(1, (-1, self.block)).transpose(0, 1)
        return rows.flatten(0, 2)[: self.total]


class _Gather(torch.autograd.Function):
    """The rows of all ranks. All of them make the same of it, so a row's gradient is known where the row is."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, shard: Shard) -> Tensor:
        ctx.shard = shard
        padded = own.new_zeros(max(shard.sizes), *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in shard.sizes]
        dist.all_gather(parts, padded)
        return shard.together(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,), shard = gradients, ctx.shard
        own: Tensor = gradient[shard.places(gradient.device)] * len(shard.sizes)
        return own, None


def gathered(own: Tensor, shard: Shard) -> Tensor:
    """What all ranks have: [b, …] of each → [B, …], in the order of the global batch, with a gradient."""
    if not math.prod(own.shape[1:]):
        return own.new_zeros(shard.total, *own.shape[1:])
    said: Tensor = _Gather.apply(own.contiguous(), shard)
    return said


@dataclass(frozen=True)
class ShardedBatch(Batch):
    """A global batch, of whose images this process has its own alone: labels, ids and all else are of all B images."""

    shard: Shard = Shard(0, (1,))
    sync: bool = True

    def shown(self, network: Callable[[Tensor], T]) -> T:
        """What a network says of the whole batch, each rank having asked it about its own images."""
        # Without an image of its own a rank is shown a black one, which counts for nothing: networks want one.
        images = self.images if len(self.images) else self.images.new_zeros(1, *self.images.shape[1:])
        with WholeBatch(self.shard, sync=self.sync):
            said: Any = network(images)
        own = self.shard.own
        if isinstance(said, Tensor):
            logits: Any = gathered(said[:own], self.shard)
            return logits  # type: ignore[no-any-return]
        features = {tap: gathered(feature[:own], self.shard) for tap, feature in said.features.items()}
        whole: Any = Outputs(gathered(said.logits[:own], self.shard), features, said.classifier)
        return whole  # type: ignore[no-any-return]


class Ranks:
    """The processes of one training; every one of them calls every method, in the same order.

    Args:
        rank: of this process.
        world: W.
        device: of this process.
        host: the processes' group for numbers that are no device's.
        line: the file that says how to go on when a process has ended.
    """

    def __init__(self, rank: int, world: int, device: torch.device, host: Any = None, line: Path | None = None) -> None:
        self.rank, self.world, self.device, self._host, self._line = rank, world, device, host, line

    @classmethod
    def join(cls, kind: str, line: Path | None = None, **options: Any) -> Ranks:
        """Waits for all of them. Ranks, their number and where they meet are found in the environment.

        Args:
            kind: of devices: `cuda` or `cpu`.
            line: as of the class.
            options: of `init_process_group`.
        """
        cuda = kind == "cuda"
        device = torch.device(kind)
        if cuda:  # a task of Slurm's may see its own GPU alone
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if cuda else "gloo", timeout=_PATIENCE, **options)
        host = dist.new_group(backend="gloo", timeout=_PATIENCE) if cuda else None
        return cls(dist.get_rank(), dist.get_world_size(), device, host, line)

    def leave(self) -> None:
        """The end."""
        dist.destroy_process_group()

    def whole(self, batch: Batch, *, sync: bool = True) -> ShardedBatch:
        """A rank's batch as a part of the global one.

        Args:
            sync: batch normalisation is over the global batch.
        """
        views = 0 if batch.repeat is None or not len(batch.repeat) else int(batch.repeat.max())
        sizes, highest = self.numbers([len(batch.labels), views]).long().unbind(dim=1)
        shard = Shard(self.rank, tuple(sizes.tolist()), int(highest.max()) + 1)
        ids, labels = gathered(batch.ids, shard), gathered(batch.labels, shard)
        repeat = None if batch.repeat is None else gathered(batch.repeat, shard)
        return ShardedBatch(batch.images, labels, ids, batch.epoch, repeat, None, shard, sync)

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Makes gradients what one process would have."""
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is not None:
                by_type.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for gradients in by_type.values():
            flat = torch.cat([each.reshape(-1) for each in gradients])
            dist.all_reduce(flat)
            flat /= self.world
            self._put(flat, gradients)

    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Rank 0's numbers, in place: floating-point tensors."""
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_type.setdefault(tensor.dtype, []).append(tensor)
        for each in by_type.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in each])
            dist.broadcast(flat, 0)
            self._put(flat, each)

    @staticmethod
    def _put(flat: Tensor, tensors: Sequence[Tensor]) -> None:
        for tensor, values in zip(tensors, flat.split([each.numel() for each in tensors]), strict=True):
            tensor.copy_(values.view_as(tensor))

    def numbers(self, own: Sequence[float]) -> Tensor:
        """Some numbers of each rank: [W, count], float64, on the CPU."""
        sent = torch.tensor(own, dtype=torch.float64)
        parts = [torch.empty_like(sent) for _ in range(self.world)]
        dist.all_gather(parts, sent, group=self._host)
        return torch.stack(parts)

    def joined(self, own: Tensor) -> Tensor:
        """The rows of all ranks, one rank's after another's: [n, …] of each → [N, …]."""
        counts = self.numbers([len(own)])[:, 0].long().tolist()
        padded = own.new_zeros(max(counts), *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def any(self, own: bool) -> bool:
        """Whether it is so on any of them."""
        return bool(self.numbers([own]).any())

    def agreed(self, record: Mapping[str, float]) -> dict[str, float]:
        """What rank 0 has measured: all decide by the same numbers."""
        said = self.numbers([float(value) for value in record.values()])[0].tolist()
        kinds = [type(value) for value in record.values()]
        return {name: kind(value) for name, kind, value in zip(record, kinds, said, strict=True)}

    def told(self, text: str = "") -> str:
        """What rank 0 says."""
        data = list(text.encode())
        count = int(self.numbers([len(data)])[0, 0])
        said = self.numbers(data if self.rank == 0 else [0] * count)[0]
        return bytes(said.to(torch.uint8).tolist()).decode()

    @staticmethod
    def lost(error: BaseException | None) -> bool:
        """Whether this, or what it came of, is because another process has ended."""
        while error is not None:
            text = str(error)
            if type(error).__name__.startswith("Dist") or "gloo" in text or "NCCL" in text:
                return True
            error = error.__cause__ or error.__context__
        return False

    def say_how_to_go_on(self, line: str) -> None:
        """Keeps what is to be typed, for when a process has ended without a word."""
        if self._line is not None and self.rank == 0:
            self._line.write_text(line)

    def wait(self) -> None:
        """For all."""
        self.numbers([0])

    def same(self, tensors: Iterable[Tensor]) -> bool:
        """Whether all ranks have the same numbers in floating-point tensors, up to what sums are rounded by."""
        sums = [float(tensor.detach().double().sum()) for tensor in tensors]
        said = self.numbers(sums)
        return bool(torch.allclose(said, said[:1].expand_as(said), rtol=1e-5, atol=1e-6, equal_nan=True))
