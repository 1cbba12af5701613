"""The times of a GPU are the device's, however slow the host is: on a stream and a host that are made up."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.harness.candidates import Candidate
from benchmarks.harness.contest import _gpu_times
from benchmarks.harness.gpu_clock import GpuClock
from benchmarks.harness.operation import Inputs, Operation


class Gpu:
    """A host and one stream, with a time each; stands for ``torch.cuda``."""

    def __init__(self) -> None:
        self.host = self.stream = 0.0
        self.sleeps: list[float] = []

    def launch(self, host: float, device: float) -> None:
        """A launch that takes the host so long, and then the device."""
        self.host += host
        self.stream = max(self.stream, self.host) + device

    def synchronize(self) -> None:
        self.host = max(self.host, self.stream)

    def _sleep(self, cycles: int) -> None:
        self.sleeps.append(cycles / 2e9)
        self.launch(1e-6, self.sleeps[-1])

    def Event(self, *, enable_timing: bool) -> Event:  # noqa: N802  (torch's name)
        assert enable_timing
        return Event(self)


class Event:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu

    def record(self) -> None:
        self.at = max(self.gpu.stream, self.gpu.host)

    def query(self) -> bool:
        return self.gpu.host >= self.at

    def elapsed_time(self, last: Event) -> float:
        return 1e3 * (last.at - self.at)


def clock_of(gpu: Gpu) -> GpuClock:
    return GpuClock(gpu, lambda: gpu.host)


@pytest.mark.parametrize("host", [1e-6, 50e-6, 2e-3], ids=["a quick host", "a slow host", "a very slow host"])
def test_the_host_does_not_count(host: float) -> None:
    gpu = Gpu()
    steps = [lambda _: [gpu.launch(host, 5e-6) for _ in range(3)], lambda _: gpu.launch(host, 9e-6)]
    device, on_host = clock_of(gpu).times("a", steps)
    assert device == pytest.approx([15e-6, 9e-6])
    assert on_host == pytest.approx([3 * host, host])


def test_what_a_wait_must_last_is_remembered() -> None:
    gpu = Gpu()
    clock = clock_of(gpu)
    steps = [lambda _: gpu.launch(3e-3, 5e-6)]
    clock.times("a", steps)
    before = len(gpu.sleeps)
    clock.times("a", steps)
    assert len(gpu.sleeps) == before + 1
    assert gpu.sleeps[-1] > 3e-3


def test_a_call_that_waits_for_the_device_ends() -> None:
    gpu = Gpu()

    def waits(_: Any) -> None:
        gpu.launch(10e-6, 5e-6)
        gpu.synchronize()
        gpu.launch(10e-6, 5e-6)

    device, _ = clock_of(gpu).times("a", [waits])
    assert device[0] == pytest.approx(20e-6)  # the second launch of the host is seen


def test_a_candidate_is_timed_so() -> None:
    gpu = Gpu()

    class Launch(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            gpu.launch(100e-6, 4e-6)
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            gpu.launch(100e-6, 6e-6)
            return grad

    x = torch.zeros(3, requires_grad=True)
    candidate = Candidate("cuda", Launch.apply, "ours")
    times = _gpu_times(clock_of(gpu), Operation(), candidate, [Inputs((x,), {}, [x])] * 2)
    assert [times[mode] for mode in ("forward", "backward", "both")] == pytest.approx([4e-6, 6e-6, 10e-6])
    assert times["host both"] == pytest.approx(200e-6)
