"""Second stages of sums: every program of a kernel leaves partial sums in its slot, and few programs add them up.

The order of both stages depends on the shapes alone, so that the same call gives the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gflv2.kernels.levels import COUNT, pick_column, unseal

# Partial sums that one step of a second stage adds: two a thread of four warps, which keeps its few programs short.
PARTIALS = 256


@triton.jit
def sum_run(values, count, WIDE: tl.constexpr):
    """Sum of ``count`` float32 in an order that depends on the count only."""
    lanes = tl.arange(0, WIDE)
    total = tl.zeros((WIDE,), tl.float32)
    for start in range(0, count, WIDE):
        total += tl.load(values + start + lanes, mask=start + lanes < count, other=0.0)
    return tl.sum(total, axis=0)


@triton.jit
def level_slot(block, batch, CELLS: tl.constexpr):
    """The slot of a program, level-major: those of a level lie in one run. CELLS: of a program."""
    return block.first_block * batch + block.image * ((block.size + CELLS - 1) // CELLS) + block.number


@triton.jit
def sum_level(partials, levels, level, batch, CELLS: tl.constexpr, WIDE: tl.constexpr):
    """Sum over the slots of one level."""
    first = batch * 0
    for candidate in tl.static_range(len(levels)):
        blocks = (unseal(levels[candidate][COUNT]) + CELLS - 1) // CELLS
        first += tl.where(candidate < level, blocks * batch, 0)
    return sum_run(partials + first, (pick_column(levels, level, COUNT) + CELLS - 1) // CELLS * batch, WIDE)
