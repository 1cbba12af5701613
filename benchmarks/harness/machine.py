"""The machine's own numbers: what it is called, which software it has, how fast it copies."""

from __future__ import annotations

import functools
import platform
import re
import statistics
import subprocess
import time
from pathlib import Path

import torch

from gflv2.data.cache import free_memory

ROOT = Path(__file__).resolve().parents[2]
_PAIRS = 3  # copies rotate over as many buffers as the benchmarks over their inputs


def device_text(device: torch.device) -> str:
    """What the column ``device`` says: the GPU, or the processor and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} thread{'s' * (threads > 1)}"


@functools.cache
def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def slug(text: str) -> str:
    """A file name of a device's text."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


@functools.cache
def software(device_type: str) -> dict[str, str]:
    """The columns torch, triton, driver and commit."""
    return {"torch": torch.__version__, "triton": _triton(), "driver": _driver(device_type), "commit": _commit()}


def _triton() -> str:
    try:
        import triton
    except ImportError:
        return ""
    return triton.__version__


def _driver(device_type: str) -> str:
    return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if device_type == "cuda" else ""


def _commit() -> str:
    commit = _output("git", "-C", str(ROOT), "rev-parse", "--short=10", "HEAD")
    code = ("gflv2", "kernels", "csrc", "benchmarks/*.py", "benchmarks/*/*.py")
    changed = _output("git", "-C", str(ROOT), "status", "--porcelain", "--", *code)
    return commit + ("-changed" if commit and changed else "")


def _output(*command: str) -> str:
    """First line of what a command prints; empty where it cannot run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip().partition("\n")[0]


def limit_memory() -> None:
    """What asks for more memory than there is gets an error of its own; without a limit the system ends the whole run.

    On Linux; elsewhere nothing changes. Not for a process that uses a GPU, whose driver reserves more than there is.
    """
    try:
        import resource

        own = re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except (ImportError, OSError):
        return
    free = free_memory()
    if own and free is not None:
        most = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (1024 * int(own[1]) + free * 95 // 100, most))


@functools.cache
def copy_bandwidth(size: int, device: torch.device) -> float:
    """Bytes per second of a copy that moves ``size`` bytes: half of them read, half of them written. Median of 9."""
    pairs = [torch.zeros(2, max(size // 2, 1), dtype=torch.uint8, device=device) for _ in range(_PAIRS)]
    repeats = max(1, min(100, int(2e7 // max(size, 1))))
    times = []
    for _ in range(10):
        start = time.perf_counter()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
        for index in range(repeats):
            target, source = pairs[index % _PAIRS]
            target.copy_(source)
        if device.type == "cuda":
            last.record()
            torch.cuda.synchronize(device)
            times.append(first.elapsed_time(last) / 1e3 / repeats)
        else:
            times.append((time.perf_counter() - start) / repeats)
    return size / statistics.median(times[1:])
