"""What a network costs: parameters, bytes on disk, FLOPs, memory, time."""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

_WARM_UP = 3  # passes: lazy set-up, caches, clocks
_LEAST = 5  # passes of which a median and quartiles are still worth something
_BURST = 0.02  # seconds that a network has for itself before the next one's turn


def count_flops(network: nn.Module, images: Tensor) -> int:
    """Floating-point operations of a forward pass, per image of [B, C, H, W].

    Those of convolutions and matrix products, where a multiplication and an addition are two; what normalisation,
    activations and pooling do is not counted.
    """
    # A transformer's fast path and, up to torch 2.14, a processor's attention are operations that the counter does not
    # know: both are taken apart into matrix products.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            network(images)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops()) // len(images)


def stored_bytes(network: nn.Module) -> dict[str, int]:
    """Bytes of the weights as .safetensors files that were really written, in memory.

    Returns:
        `fp32`: as they are; `fp16`: every floating-point tensor in half precision; `int8`: the weights of layers, with
        a scale in float32 for each output channel, and everything else in float32. That a network still works with
        such weights is not said by that.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    halved = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    quantised = {key: value for name, tensor in state.items() for key, value in _quantised(name, tensor).items()}
    return {kind: len(save(tensors)) for kind, tensors in (("fp32", state), ("fp16", halved), ("int8", quantised))}


def _quantised(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Symmetric, one scale per output channel: the weights of convolutions and linear layers, and nothing smaller."""
    if tensor.ndim < 2 or not tensor.is_floating_point():
        return {name: tensor}
    rows = tensor.float().flatten(1)
    scale = rows.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return {name: (rows / scale).round().to(torch.int8).view(tensor.shape), f"{name}.scale": scale.squeeze(1)}


def peak_memory(network: nn.Module, images: Tensor) -> int | None:
    """Bytes at the worst moment of a forward pass: weights, the batch, and what PyTorch allocates for the pass.

    On a CPU the allocations are those that PyTorch's profiler records; what a kernel takes without PyTorch is not among
    them. On CUDA they are those of the caching allocator. None on other devices, which count nothing.
    """
    held = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers(), images))
    with torch.inference_mode():
        network(images)
        if images.device.type == "cpu":
            return held + _allocated_on_cpu(lambda: network(images))
        if images.device.type != "cuda":
            return None
        torch.cuda.synchronize(images.device)
        torch.cuda.reset_peak_memory_stats(images.device)
        before = torch.cuda.memory_allocated(images.device)
        network(images)
        return held + torch.cuda.max_memory_allocated(images.device) - before


def _allocated_on_cpu(action: Callable[[], object]) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler would tell standard error about its GPU library
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    recorded = [event for event in events if event.get("name") == "[memory]"]
    held = peak = 0
    for event in sorted(recorded, key=lambda event: float(event["ts"])):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


@dataclass(frozen=True)
class Timing:
    """How long forward passes took.

    Args:
        batch_size: images per pass.
        passes: how many were timed.
        median: seconds per pass.
        quartiles: the first and the third.
    """

    batch_size: int
    passes: int
    median: float
    quartiles: tuple[float, float]

    @property
    def images_per_second(self) -> float:
        return self.batch_size / self.median


def time_networks(
    networks: Mapping[str, nn.Module], images: Mapping[str, Tensor], *, seconds: float
) -> dict[str, Timing]:
    """Times forward passes of several networks by turns, so that a slow moment of the machine hits all of them.

    Args:
        networks: in eval mode.
        images: one batch [B, C, H, W] for each, on its device.
        seconds: of timed passes for each, unless that were fewer than five.
    """
    passes: dict[str, list[float]] = {name: [] for name in networks}
    with torch.inference_mode():
        for name, network in networks.items():
            _warm_up(network, images[name], seconds)
        while waiting := [name for name, done in passes.items() if len(done) < _LEAST or sum(done) < seconds]:
            for name in waiting:
                passes[name] += _burst(networks[name], images[name], passes[name])
    return {name: _timing(len(images[name]), done) for name, done in passes.items()}


def _warm_up(network: nn.Module, images: Tensor, seconds: float) -> None:
    spent = 0.0
    for _ in range(_WARM_UP):
        if spent <= seconds:
            spent += _pass(network, images)


def _burst(network: nn.Module, images: Tensor, before: Sequence[float]) -> list[float]:
    """Passes one after the other; the first of short ones finds other networks' data in the caches: it is not timed."""
    if not before or before[-1] < _BURST:
        _pass(network, images)
    passes, spent = [], 0.0
    while spent < _BURST:
        passes.append(_pass(network, images))
        spent += passes[-1]
    return passes


def _pass(network: nn.Module, images: Tensor) -> float:
    start = time.perf_counter()
    network(images)
    if images.device.type != "cpu":
        torch.accelerator.synchronize(images.device)
    return time.perf_counter() - start


def _timing(batch_size: int, passes: Sequence[float]) -> Timing:
    first, median, third = statistics.quantiles(passes, n=4, method="inclusive")
    return Timing(batch_size, len(passes), median, (first, third))


@contextmanager
def threads(count: int | None) -> Iterator[int]:
    """PyTorch's threads within one operation, put back afterwards; None: as they are. Yields how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def machine(device: torch.device, threads: int) -> dict[str, object]:
    """What the times are the times of."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"device": str(device), "device_name": name, "threads": threads, "torch": torch.__version__}
