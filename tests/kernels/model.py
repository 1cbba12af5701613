"""From the facts of a kernel's machine code to a predicted time on a GPU.

time = max(bytes, issue, LDS, MUFU, FP32, mma) ÷ utilisation, or, where it is longer, how long one block takes from its
first to its last instruction times the rounds that the grid needs: a tail in one block. What the block that ends last
does beside comes on top. Every time is a prediction.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from tests.kernels.machine_code import Facts


class Gpu(NamedTuple):
    """What a forecast knows of a GPU."""

    name: str
    architecture: int  # of the cubin that runs there
    bandwidth: float  # bytes/s that a copy reaches
    multiprocessors: int
    clock: float  # Hz, boost
    warps: int  # that a multiprocessor holds
    blocks: int
    shared: int  # bytes of a multiprocessor
    fp32: int  # lanes of a multiprocessor
    multiply_adds: int  # of a multiprocessor and cycle on the tensor cores: 16-bit factors, float32 sums
    source: str


# A copy reaches about 0.9 of the published bandwidth; of the H200 a number near what copies measure is used.
_COPY = 0.9
_GUIDE = "CUDA C++ programming guide, compute capabilities and arithmetic instructions"
GPUS = (
    Gpu(
        *("H200", 90, 4.3e12, 132, 1.98e9, 64, 32, 228 * 1024, 128, 2048),
        f"NVIDIA H200 datasheet (4.8 TB/s, of which a copy reaches 4.3); H100 architecture white paper; {_GUIDE}",
    ),
    Gpu(
        *("H100", 90, 3.35e12 * _COPY, 132, 1.98e9, 64, 32, 228 * 1024, 128, 2048),
        f"NVIDIA H100 SXM datasheet (3.35 TB/s); H100 architecture white paper; {_GUIDE}",
    ),
    Gpu(
        *("A100", 80, 2.039e12 * _COPY, 108, 1.41e9, 64, 32, 164 * 1024, 64, 1024),
        f"NVIDIA A100 80 GB SXM datasheet (2.039 TB/s); A100 architecture white paper; {_GUIDE}",
    ),
    Gpu(
        *("RTX 4090", 80, 1.008e12 * _COPY, 128, 2.52e9, 48, 24, 100 * 1024, 128, 256),
        f"NVIDIA Ada GPU architecture white paper (1.008 TB/s); {_GUIDE}; runs the machine code for sm_80",
    ),
)

UTILISATION = 0.75  # assumed, until a GPU has run: no kernel keeps its busiest unit busy all the time
SCHEDULERS = 4  # of a multiprocessor, one warp instruction a cycle each
REGISTERS = 65536  # of a multiprocessor
_MUFU = 16  # lanes of a multiprocessor
_RESERVED = 1024  # bytes of shared memory that a block costs besides its own, from sm_80 on
# Cycles that a warp waits, for the time of one block: for an instruction before it may issue the next one, for a load
# from global memory, for a barrier.
_NEXT, _LOAD, _BARRIER = 2, 600, 40


class Launch(NamedTuple):
    blocks: int
    warps: int  # of a block
    registers: int  # of a thread
    shared: int  # bytes of a block
    bytes: float  # of the launch, that must move
    last: Facts | None = None  # of the block that ends last, where it does more than the others


class Forecast(NamedTuple):
    """Seconds of each limit, and of the launch."""

    occupancy: int  # blocks a multiprocessor
    limits: dict[str, float]
    block: float  # from its first to its last instruction, times the rounds of the grid
    tail: float  # of the block that ends last
    seconds: float

    @property
    def limit(self) -> str:
        """What the launch waits for."""
        name = max(self.limits, key=lambda item: self.limits[item])
        return "latency" if self.block > self.limits[name] / UTILISATION else name


def blocks_per_multiprocessor(launch: Launch, gpu: Gpu) -> int:
    """How many blocks fit; registers are given out by 256 a warp, shared memory by 128 bytes."""
    registers = math.ceil(launch.registers * 32 / 256) * 256 * launch.warps
    shared = math.ceil((launch.shared + _RESERVED) / 128) * 128
    return max(1, min(gpu.blocks, gpu.warps // launch.warps, REGISTERS // registers, gpu.shared // shared))


def forecast(facts: Facts, launch: Launch, gpu: Gpu, utilisation: float = UTILISATION) -> Forecast:
    occupancy = blocks_per_multiprocessor(launch, gpu)
    # Where there are fewer blocks than multiprocessors, the others have nothing to do.
    cycles = launch.blocks * launch.warps / min(gpu.multiprocessors, launch.blocks) / gpu.clock
    limits = {
        "bytes": launch.bytes / gpu.bandwidth,
        "issue": cycles * facts.instructions / SCHEDULERS,
        "LDS": cycles * facts.shared_cycles,
        "MUFU": cycles * facts.mufu * 32 / _MUFU,
        "FP32": cycles * facts.fp32 * 32 / gpu.fp32,
        "mma": cycles * facts.multiply_adds / gpu.multiply_adds,
    }
    rounds = math.ceil(launch.blocks / (gpu.multiprocessors * occupancy))
    block = rounds * _cycles(facts) / gpu.clock
    tail = (_cycles(launch.last) - _cycles(facts)) / gpu.clock if launch.last else 0.0
    return Forecast(occupancy, limits, block, tail, max(max(limits.values()) / utilisation, block) + tail)


def _cycles(facts: Facts) -> float:
    """Of one block."""
    return facts.instructions * _NEXT + facts.waits * _LOAD + facts.barriers * _BARRIER
