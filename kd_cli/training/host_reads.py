"""Finds where the host waits for numbers of the device: such a step runs, but cannot be captured in a CUDA graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Operations whose result depends on values carry one of these; PyTorch's own marks.
_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
# They have no mark and read nevertheless: tests of two tensors, solvers that look whether they converged, and those
# that read sizes.
_ALSO = {
    *("equal", "allclose", "is_nonzero", "multinomial", "histc"),
    *("_linalg_eigh", "_linalg_eigvals", "linalg_eig", "linalg_eigvals", "_linalg_svd", "_linalg_check_errors"),
    *("linalg_lstsq", "linalg_matrix_exp", "linalg_cholesky", "linalg_inv", "_ctc_loss", "embedding_renorm_"),
    *("_pack_padded_sequence", "segment_reduce"),
}
_COPIES = {"_to_copy", "copy_", "lift_fresh"}
_BY_MASK = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


class _HostReads(TorchDispatchMode):
    found: list[str]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if str(func.overloadpacket).startswith("aten.") and _reads(func, name, args, result):
            self.found.append(f"aten.{name}")
        return result


def _reads(func: Any, name: str, args: Sequence[Any], result: Any) -> bool:
    if name in _COPIES:  # between host and device; a constant is lifted to where it is needed
        others = [arg.device.type for arg in args if isinstance(arg, Tensor)] if name != "lift_fresh" else ["cpu"]
        return any(device != result.device.type for device in others)
    if name in _BY_MASK:  # how many rows a mask chooses is a number of the device
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return name in _ALSO or not _TAGS.isdisjoint(func.tags)


@contextmanager
def host_reads() -> Iterator[list[str]]:
    """Records the operations, of forward and backward passes, that make the host wait for the device.

    `with host_reads() as found: step()` fills `found` with names such as "aten.nonzero", in order and as often as they
    ran. On the CPU nothing waits, and the names are those of a GPU.
    """
    mode = _HostReads()  # type: ignore[no-untyped-call] # torch has no types there
    mode.found = []
    with mode:
        yield mode.found
