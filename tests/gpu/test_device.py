"""What only a GPU can show of every operation: no wait for the device, graphs, streams, a second device.

The numbers are those of tests/ops, whose tests run against the device where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from gflv2.ops import backends
from tests.ops import calls
from tests.ops.under_test import running

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
KERNELS = [(op, name) for op in calls.operations() for name in ("cuda", "triton") if name in backends._refusals[op]]
each_kernel = pytest.mark.parametrize(("op", "backend"), KERNELS)


def run(op: str, made: calls.Arguments) -> list[Tensor]:
    """Results and gradients of a call."""
    result = calls.function(op)(**made)
    found = calls.gradients(result, made) if op in calls.DIFFERENTIABLE else []
    return [tensor.detach() for tensor in calls.tensors([result, found])]


def turned(tensor: Tensor) -> Tensor:
    """Other values that are as valid: those of the last image, row or unit first."""
    return tensor.detach().flip(0) if tensor.dim() else tensor.detach()


def assert_same(found: list[Tensor], want: list[Tensor]) -> None:
    assert len(found) == len(want)
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@contextmanager
def synchronising_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_checker_of_waits_works() -> None:
    number = torch.ones((), device="cuda")
    with pytest.raises(RuntimeError, match="synchroniz"), synchronising_is_an_error():
        number.item()


@each_kernel
def test_no_wait_for_the_device(op: str, backend: str) -> None:
    with running(backend) as device:
        made = calls.arguments(op, device)
        want = run(op, made)  # compiles and loads
        with synchronising_is_an_error():
            found = run(op, made)
        assert_same(found, want)


@each_kernel
def test_a_captured_graph_replays_on_other_values(op: str, backend: str) -> None:
    with running(backend) as device:
        made = calls.arguments(op, device)
        other = calls.arguments(op, device)
        with torch.no_grad():
            for tensor in calls.tensors(other):
                tensor.copy_(turned(tensor))
        wanted = [run(op, made), run(op, other)]
        # As PyTorch asks: once on another stream before the capture.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run(op, made)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = run(op, made)
        first = [tensor.detach().clone() for tensor in calls.tensors(made)]
        wanted = [[tensor.detach().clone() for tensor in want] for want in wanted]
        # gfl_targets hands an input on, which is none of the replay's to fill.
        given = {tensor.untyped_storage().data_ptr() for tensor in calls.tensors(made)}
        own = [tensor for tensor in outputs if tensor.untyped_storage().data_ptr() not in given]
        for values, want in ((calls.tensors(other), wanted[1]), (first, wanted[0])):
            with torch.no_grad():
                for tensor, value in zip(calls.tensors(made), values, strict=True):
                    tensor.copy_(value)
                for tensor in own:  # what the replay leaves out shows
                    tensor.fill_(float("nan") if tensor.is_floating_point() else -7)
            graph.replay()
            torch.cuda.synchronize()
            assert_same(outputs, want)


@each_kernel
def test_the_current_stream_is_used(op: str, backend: str) -> None:
    """The default stream is busy for a second: what is launched there cannot be done when the side stream is."""
    with running(backend) as device:
        made = calls.arguments(op, device)
        want = run(op, made)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        torch.cuda.synchronize()
        torch.cuda._sleep(2_000_000_000)
        with torch.cuda.stream(side):
            found = run(op, made)
            copies = [tensor.clone() for tensor in found]
            side.synchronize()
            busy = not torch.cuda.default_stream().query()
        torch.cuda.synchronize()
        assert busy, "the test was too slow to show anything, or something waited for the whole device"
        assert_same(copies, want)


@each_kernel
def test_a_device_that_is_not_the_current_one(op: str, backend: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    with running(backend):
        want = run(op, calls.arguments(op, "cuda:0"))
        with torch.cuda.device(0):
            found = run(op, calls.arguments(op, "cuda:1"))
            assert torch.cuda.current_device() == 0
        assert all(tensor.device.index == 1 for tensor in found)
        assert_same([tensor.to("cuda:0") for tensor in found], want)


@each_kernel
def test_two_devices_in_one_call_are_refused(op: str, backend: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    with running(backend):
        made: dict[str, Any] = calls.arguments(op, "cuda:0")
        for _, changed in calls.variations(made, lambda tensor: tensor.detach().to("cuda:1")):
            with pytest.raises(ValueError, match="expected.*cuda:[01].*got.*cuda:[01]"):
                calls.function(op)(**changed)
