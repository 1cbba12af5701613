"""Losses of rows in Triton: their weights, their total in two stages, and the upstream gradient back to the rows.

A total is formed in two stages: every program of a forward kernel leaves one partial sum in its slot, and a program of
`total_kernel` adds them up. The order of both sums depends on the shapes only.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from gflv2.ops.reduction import Reduction

# Partial sums that one step of the second stage adds: two a thread of four warps, which keeps its few programs short.
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
def weight_of_rows(weight, rows, live):
    """Weights (float32, or None: 1) of the rows that are live, else 0."""
    if weight is not None:
        found = tl.load(weight + rows, mask=live, other=0.0)
    else:
        found = tl.where(live, 1.0, 0.0)
    return found


@triton.jit
def total_divisor(factor, divisor):
    """The divisors of a total together."""
    if factor is not None:
        divisor *= tl.load(factor)
    return divisor


@triton.jit
def reduce_rows(losses, weight, out, partials, rows, live, slot):
    """Write the losses of a program's rows to ``out``, or where ``partials`` is not None their sum to its slot."""
    losses = tl.where(live, losses * weight_of_rows(weight, rows, live), 0.0)
    if partials is not None:
        tl.store(partials + slot, tl.sum(losses, axis=0))
    else:
        tl.store(out + rows, losses, mask=live)


@triton.jit
def upstream_of_rows(upstream, weight, factor, divisor, rows, live, TOTAL: tl.constexpr):
    """∂L/∂(loss of a row), 0 for rows that are not live. ``upstream``: one number with TOTAL, else one a row."""
    if TOTAL:
        given = tl.load(upstream) / total_divisor(factor, divisor)
    else:
        given = tl.load(upstream + rows, mask=live, other=0.0)
    return given * weight_of_rows(weight, rows, live)


@triton.jit(do_not_specialize=["partials", "factor", "out", "divisor", "slots"])
def total_kernel(
    partials,  # (slots,) float32
    factor,  # () float32, or None
    out,  # () float32
    divisor: tl.float32,
    slots: tl.int64,
    WIDE: tl.constexpr,
):
    tl.store(out, sum_run(partials, slots, WIDE) / total_divisor(factor, divisor))


def new_partials(reduction: Reduction, slots: int, out: Tensor) -> Tensor | None:
    """Memory for the first stage, one slot a program; None where no total is wanted."""
    return out.new_empty(slots) if reduction.total else None


def write_total(reduction: Reduction, partials: Tensor | None, out: Tensor) -> None:
    """Launch the second stage, on the current device, where a total is wanted."""
    if partials is not None:
        total_kernel[(1,)](
            partials,
            reduction.factor,
            out,
            reduction.divisor,
            partials.numel(),
            WIDE=PARTIALS,
            num_warps=4,
            enable_fp_fusion=True,
        )
