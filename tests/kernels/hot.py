"""What the forecast must be told of a launch, because its machine code does not say it; and the workload.

Declared beside the launches, one list ``HOT`` in each module of ``launches``, for both kinds of kernels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

# The workload: 16 images of 800×1344, five levels, 80 classes, R = 17, bfloat16, NCHW.
BATCH = 16
LEVELS = tuple(math.ceil(800 / stride) * math.ceil(1344 / stride) for stride in (8, 16, 32, 64, 128))
CELLS = BATCH * sum(LEVELS)  # points of all levels and images
CLASSES = 80
BINS = 17
BOXES = 100  # of an image
KEPT = 1000  # points of a level that decode keeps
WORKLOAD = "B = 16, 800×1344, 80 classes, R = 17, bfloat16, NCHW"


def programs(points: int) -> int:
    """Blocks, each of up to so many points of one level of one image."""
    return BATCH * sum(math.ceil(level / points) for level in LEVELS)


def of_cells(constants: Mapping[str, Any]) -> int:
    """Programs of a Triton kernel whose program takes STEPS × BLOCK cells."""
    return programs(constants["BLOCK"] * constants.get("STEPS", 1))


# Of the block that ends last: it puts the launch's counter back, and adds up in double.
LAST: Mapping[str, float] = {r"^STG\.E \S+, RZ": 1, r"^DADD": 1}


class Way(NamedTuple):
    """Of warps, or of turns of a loop, that go different ways: how many go this one, and what is declared of it."""

    share: float
    cold: str = ""
    trips: float | Sequence[float | None] = ()


class Hot(NamedTuple):
    """One launch of the workload."""

    operation: str  # of the benchmarks, and which part of it
    mode: str
    source: str  # integral.cu, or kernels/integral.py
    kernel: str
    instance: str  # CUDA: an expression searched for in the mangled name; Triton: the call in ``variants``
    blocks: int | Callable[[Mapping[str, Any]], int]
    bytes: float  # that must move
    elements: float  # what "an element" is counted by: logits, or points
    warps: int = 4  # of a block; for Triton the launch says it
    shared: int = 0  # bytes of a block that only the launch knows
    loops: Mapping[str, float | Sequence[float]] = {}  # see machine_code.facts_of
    trips: float | Sequence[float | None] = ()
    cold: str = ""
    # Instead of trips and cold: several ways, whose average counts. Their shares are those of the benchmark's inputs.
    ways: Sequence[Way] = ()
    # Of what the block that ends last does beside: instructions that no other block runs, and how often they run.
    last: Mapping[str, float] = {}
    launches: int = 1  # one after the other, alike

    @property
    def backend(self) -> str:
        return "cuda" if self.source.endswith(".cu") else "triton"

    @property
    def name(self) -> str:
        """Of a line of the forecast and of its expectation."""
        return f"{self.operation} {self.mode}: {self.source} {self.kernel}"

    def blocks_of(self, constants: Mapping[str, Any]) -> int:
        return self.blocks if isinstance(self.blocks, int) else self.blocks(constants)

    def is_launched_by(self, source: str, kernel: str, instance: str) -> bool:
        """``kernel``, ``instance``: of CUDA the mangled name, twice; of Triton the kernel and the call."""
        if source != self.source:
            return False
        if self.backend == "cuda":
            return self.kernel in kernel and bool(re.search(self.instance, instance))
        return (kernel, instance) == (self.kernel, self.instance)
