"""A network that sees some rows of a global batch computes what it would compute of them if it saw all.

Batch normalisation reads, and dropout and stochastic depth draw, more than a row at a time. While `WholeBatch` is open
they are those of the global batch, in whatever layer they are called. C channels, W ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kd_cli.errors import ConfigError

if TYPE_CHECKING:
    from kd_cli.training.parallel import Shard


DROPOUT = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)


class WholeBatch(TorchFunctionMode):
    """Batch normalisation over all ranks' rows; dropout and stochastic depth (`bernoulli_`) as one process draws them.

    Args:
        shard: this rank's part of the batch.
        sync: batch normalisation is over all rows; otherwise each rank's is of its own.
    """

    def __init__(self, shard: Shard, *, sync: bool = True) -> None:
        super().__init__()
        self._shard = shard
        self._instead: dict[Any, Callable[..., Tensor]] = {each: partial(self._dropout, each) for each in DROPOUT}
        self._instead[Tensor.bernoulli_] = self._bernoulli
        if sync:
            self._instead[F.batch_norm] = self._batch_norm

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return self._instead.get(func, func)(*args, **(kwargs or {}))

    def _dropout(
        self, drop: Callable[..., Tensor], values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or p == 0:
            return drop(values, p, training, inplace)
        return values * self._drawn(values, partial(drop, p=p))

    def _bernoulli(self, values: Tensor, p: float = 0.5) -> Tensor:
        return values.copy_(self._drawn(values, partial(Tensor.bernoulli_, p=p)))

    def _drawn(self, values: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
        """Every rank draws what one process would draw, of ones, and takes its rows."""
        each, rest = divmod(len(values), max(1, self._shard.own))
        if rest:
            raise ConfigError(
                f"devices: a network drops values of {list(values.shape)}, whose first dimension is not that of the "
                f"{self._shard.own} images of this process; type devices=1"
            )
        whole = torch.ones(self._shard.total * each, *values.shape[1:], dtype=values.dtype, device=values.device)
        if values.ndim == 4 and not values.is_contiguous() and values.is_contiguous(memory_format=torch.channels_last):
            whole = whole.contiguous(memory_format=torch.channels_last)
        kept = draw(whole)
        if not self._shard.own:
            return kept[: len(values)]
        return kept[self._shard.places(values.device, each * self._shard.block)]

    def _batch_norm(
        self,
        values: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return F.batch_norm(values, running_mean, running_var, weight, bias, training, momentum, eps)
        mean, var, count = _statistics(values, self._shard.own)
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * (count / (count - 1))).to(running_var.dtype), momentum)
        said: Tensor = _Normalise.apply(values, weight, bias, mean, (var + eps).rsqrt(), count, self._shard.own)
        return said


@torch.no_grad()
def _statistics(values: Tensor, rows: int) -> tuple[Tensor, Tensor, float]:
    """Mean and variance of each channel [C], float64, and how many numbers each has, over all ranks.

    Args:
        values: [b, C, …] of this rank.
        rows: that count of these.
    """
    own = values[:rows].transpose(0, 1).flatten(1).double()  # [C, n]
    count = own.shape[1]
    mean = own.mean(dim=1) if count else own.new_zeros(len(own))
    squares = (own - mean[:, None]).square().sum(dim=1)
    sent = torch.cat([own.new_full((1,), count), mean, squares])
    parts = [torch.empty_like(sent) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, sent)
    counts, means, sums = torch.stack(parts).split([1, len(own), len(own)], dim=1)  # each [W, …]
    total = float(counts.sum())
    if total < 2:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {list(values.shape)}")
    mean = (counts * means).sum(dim=0) / total
    return mean, (sums + counts * (means - mean).square()).sum(dim=0) / total, total


class _Normalise(torch.autograd.Function):
    """Batch normalisation with statistics of all ranks (Ioffe & Szegedy 2015, arXiv:1502.03167, and its gradient)."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        scale: Tensor,
        count: float,
        rows: int,
    ) -> Tensor:
        kind = torch.promote_types(values.dtype, torch.float32)
        shape = (1, -1, *[1] * (values.ndim - 2))
        normal = (values.to(kind) - mean.to(kind).view(shape)) * scale.to(kind).view(shape)
        ctx.save_for_backward(normal, weight, scale)
        ctx.facts = shape, count, rows, values.dtype
        said = normal if weight is None else normal * weight.to(kind).view(shape)
        said = said if bias is None else said + bias.to(kind).view(shape)
        return said.to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        normal, weight, scale = ctx.saved_tensors
        shape, count, rows, kind = ctx.facts
        gradient = gradients[0].to(normal.dtype)
        others = [dim for dim in range(normal.ndim) if dim != 1]
        of_bias = gradient[:rows].sum(dim=others)
        of_weight = (gradient[:rows] * normal[:rows]).sum(dim=others)
        sums = torch.stack([of_bias, of_weight])
        dist.all_reduce(sums)
        means = (sums / count).to(normal.dtype)
        inner = gradient - means[0].view(shape) - normal * means[1].view(shape)
        factor = scale.to(normal.dtype) if weight is None else scale.to(normal.dtype) * weight.to(normal.dtype)
        of_values = (inner * factor.view(shape)).to(kind)
        own = (of_values, of_weight, of_bias) if weight is not None else (of_values, None, None)
        return (*own, None, None, None, None)
