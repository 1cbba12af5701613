"""How long a call keeps a GPU busy, without the host that makes it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

_FIRST, _LONGEST = 0.5e-3, 50e-3  # seconds that the stream is kept waiting


class GpuClock:
    """Times calls on a stream that is kept waiting until the host has made all of its launches.

    Events round a call alone would time the host: it takes longer than most kernels. So a kernel that only waits goes
    first. Whether it waited long enough is asked afterwards, and where it did not, the call is made again behind a
    longer one. A call that itself waits for the device cannot be hidden; its waits count.

    Args:
        cuda: ``torch.cuda``, or what stands for it in a test.
        clock: seconds of the host.
    """

    def __init__(self, cuda: Any = torch.cuda, clock: Callable[[], float] = time.perf_counter) -> None:
        self._cuda, self._clock = cuda, clock
        self._waits: dict[str, float] = {}  # by the name of what is timed
        self._cycles = 0.0  # of the waiting kernel, a second

    def times(self, name: str, steps: list[Callable[[Any], Any]]) -> tuple[list[float], list[float]]:
        """Seconds of each step on the device, and on the host. Each is given what the one before it returned.

        Args:
            name: of the candidate: how long its launches take is remembered.
        """
        if not self._cycles:
            self._calibrate()
        while True:
            wait = self._waits.setdefault(name, _FIRST)
            hidden, device, host = self._once(steps, wait)
            if hidden or wait >= _LONGEST:
                return device, host
            self._waits[name] = min(2 * wait, _LONGEST)

    def _once(self, steps: list[Callable[[Any], Any]], wait: float) -> tuple[bool, list[float], list[float]]:
        marks = [self._cuda.Event(enable_timing=True) for _ in range(len(steps) + 1)]
        self._cuda.synchronize()
        self._cuda._sleep(int(wait * self._cycles))
        marks[0].record()
        host, result, kept = [], None, []
        for step, mark in zip(steps, marks[1:], strict=True):
            start = self._clock()
            result = step(result)
            host.append(self._clock() - start)
            kept.append(result)  # nothing is freed between the marks
            mark.record()
        hidden = not marks[0].query()
        self._cuda.synchronize()
        pairs = zip(marks, marks[1:], strict=False)
        return hidden, [first.elapsed_time(last) / 1e3 for first, last in pairs], host

    def _calibrate(self) -> None:
        """Of two kernels that wait, the second: the first one also loads."""
        count = 1_000_000
        for _ in range(2):
            first, last = (self._cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            self._cuda._sleep(count)
            last.record()
            self._cuda.synchronize()
            self._cycles = count / (first.elapsed_time(last) / 1e3)
