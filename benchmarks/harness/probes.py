"""What is counted of one call, apart from its time: memory, launches, waits of the host."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

# Calls of the CUDA runtime and driver that put work on a stream; a captured graph counts as one.
_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int | None:
    """The most that torch's allocator held at a time during the call, above what it held before; results included.

    CPU: the allocations and releases that torch's profiler records, summed in their order. Memory that the
    native library takes from the system by itself (partial sums, the claims of ATSS, a level's order) is not seen.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = call()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - before
        del result
        return peak
    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        result = call()
    del result
    events = [event for event in prof.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak if events else None


def launches(call: Callable[[], Any], device: torch.device) -> int | None:
    """How often the host puts work on the GPU during the call; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    with _quiet(), profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as prof:
        result = call()
        torch.cuda.synchronize(device)
    del result
    return sum(event.count for event in prof.key_averages() if event.key.startswith(_LAUNCHES))


def syncs(call: Callable[[], Any], device: torch.device) -> int:
    """How often the host waits for the device during the call.

    GPU: what torch's sync checker warns of. CPU: operators whose result a host would have to wait for on a GPU, because
    a value or a shape that it needs is on the device (`item`, `nonzero`, indexing with a mask).
    """
    if device.type != "cuda":
        with _HostWaits() as waits:
            call()
        return waits.count
    torch.cuda.synchronize(device)
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)


class _HostWaits(TorchDispatchMode):
    """Counts operators that make a host wait."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags):
            # Indexing has such a tag for the sake of masks alone.
            indexing = func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put)
            self.count += not indexing or _waits_for_mask(args)
        elif func.overloadpacket in (torch.ops.aten.index_put, torch.ops.aten.index_put_):
            self.count += _waits_for_mask(args)
        return func(*args, **(kwargs or {}))


def _waits_for_mask(args: Any) -> bool:
    """Of `index` and `index_put`: how many are chosen must be known, unless one number goes to all of them."""
    masked = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return masked and not (len(args) > 2 and args[2].numel() == 1)


class _quiet(warnings.catch_warnings):
    """The profiler warns about itself in some versions of torch."""

    def __enter__(self):
        entered = super().__enter__()
        warnings.simplefilter("ignore")
        return entered
