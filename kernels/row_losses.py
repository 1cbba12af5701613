"""Losses of rows in Triton: their weights, their total, and the upstream gradient back to the rows.

A total is formed in two stages: every program of a forward kernel leaves one partial sum in its slot, and a program of
`total_kernel` adds them up.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from gflv2.kernels.launching import OPTIONS, device_of, kernel
from gflv2.kernels.sums import PARTIALS, sum_run
from gflv2.ops.reduction import Reduction


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
def reduce_rows(losses, weight, out, partials, rows, live):
    """Write the losses of this program's rows to ``out``, or where ``partials`` is not None their sum to its slot."""
    losses = tl.where(live, losses * weight_of_rows(weight, rows, live), 0.0)
    if partials is not None:
        tl.store(partials + tl.program_id(0), tl.sum(losses, axis=0))
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


@kernel
def total_kernel(
    partials,  # (slots,) float32
    factor,  # () float32, or None
    out,  # () float32
    divisor: tl.float32,
    slots: tl.int64,
    WIDE: tl.constexpr,
):
    tl.store(out, sum_run(partials, slots, WIDE) / total_divisor(factor, divisor))


def launch_losses(
    forward: Any, programs: int, reduction: Reduction, out: Tensor, arguments: tuple[Any, ...], shape: dict[str, Any]
) -> None:
    """Launch a forward kernel, and the second stage where a total is wanted.

    Args:
        forward: its parameters begin with ``out`` (None: a total is wanted), ``partials`` (None: it is not) and
            ``weight``; ``arguments`` follow. ``shape``: its constants and options.
        reduction: of which a mean has become a sum.
        out: (N,) or () float32.
    """
    partials = out.new_empty(programs) if reduction.total else None
    with device_of(out):
        forward[(programs,)](None if reduction.total else out, partials, reduction.weight, *arguments, **shape)
        if partials is not None:
            total = (partials, reduction.factor, out, reduction.divisor, programs)
            total_kernel[(1,)](*total, WIDE=PARTIALS, **OPTIONS)


def launch_gradients(
    backward: Any, programs: int, reduction: Reduction, grad: Tensor, arguments: tuple[Any, ...], shape: dict[str, Any]
) -> None:
    """Launch a backward kernel.

    Args:
        backward: its parameters begin with those of `upstream_of_rows`: ``upstream``, ``weight``, ``factor``,
            ``divisor``; ``arguments`` follow. ``shape``: its constants, but for TOTAL, and options.
        reduction: as in forward.
        grad: of forward's result, float32 contiguous.
    """
    given = (grad, reduction.weight, reduction.factor, reduction.divisor)
    with device_of(grad):
        backward[(programs,)](*given, *arguments, TOTAL=reduction.total, **shape)
