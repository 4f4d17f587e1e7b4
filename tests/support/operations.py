"""Which operations a step is made of, on a device that is no CPU and has no numbers: PyTorch's `meta`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from kd_cli.training.task import Task
from kd_cli.types import Batch

# Those that PyTorch refuses on CUDA under torch.use_deterministic_algorithms (its documentation lists them).
UNORDERED = {
    *("aten._adaptive_avg_pool2d_backward", "aten._adaptive_avg_pool3d_backward", "aten.avg_pool3d_backward"),
    *("aten.adaptive_max_pool2d_backward", "aten.adaptive_max_pool3d_backward"),
    *("aten.fractional_max_pool2d_backward", "aten.fractional_max_pool3d_backward"),
    *("aten.max_pool3d_with_indices_backward", "aten.max_unpool2d", "aten.max_unpool3d"),
    *(f"aten.upsample_{mode}_backward" for mode in ("linear1d", "bilinear2d", "bicubic2d", "trilinear3d")),
    *("aten._upsample_bilinear2d_aa_backward", "aten._upsample_bicubic2d_aa_backward"),
    *("aten.reflection_pad1d_backward", "aten.reflection_pad2d_backward", "aten.reflection_pad3d_backward"),
    *("aten.replication_pad1d_backward", "aten.replication_pad2d_backward", "aten.replication_pad3d_backward"),
    *("aten.nll_loss2d_forward", "aten.nll_loss2d_backward", "aten._ctc_loss_backward"),
    *("aten._embedding_bag_dense_backward", "aten.put_", "aten.put", "aten.histc", "aten.bincount", "aten.kthvalue"),
    *("aten.median", "aten.nanmedian", "aten.cumsum", "aten.cumsum_", "aten.grid_sampler_2d_backward"),
    *("aten.grid_sampler_3d_backward", "aten.scatter_reduce", "aten.scatter_reduce_"),
}


class _All(TorchDispatchMode):
    found: set[str]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.found.add(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))


@contextmanager
def recorded() -> Iterator[set[str]]:
    """Fills a set with the names of all operations inside, backward passes included: `aten.mm`."""
    mode = _All()
    mode.found = set()
    with mode:
        yield mode.found


def operations(task: Task, batch: Batch, *others: nn.Module) -> set[str]:
    """The names of all operations of a forward and a backward pass in train mode.

    What reads a number on the host raises: there is none.

    Args:
        task: bound already; it and the other modules are moved, and of no use afterwards.
        others: what the task refers to without owning it.
    """
    for module in (task, *others):
        module.to("meta")
    with recorded() as found:
        task.train()(Batch(batch.images.to("meta"), batch.labels.to("meta"), batch.ids.to("meta"))).loss.backward()
    return found
