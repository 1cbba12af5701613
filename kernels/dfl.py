"""``dfl`` in Triton: log-softmax over the bins and both cross-entropies (arXiv 2006.04388, equation 6).

With t = z − max z and the hat h_b = max(0, 1 − |b − d|) the loss of a row is log Σ_b exp(t_b) − Σ_b h_b·t_b, and its
derivative P_b − h_b: every bin is alike, and no target, however wrong, chooses an address.

A program takes BLOCK rows. Their bins form a tile, with the last bin beside it where that saves half of it: see
`gflv2.kernels.rows`, whose cells are the rows here.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from gflv2.kernels.common import device_of
from gflv2.kernels.reduction import new_partials, reduce_rows, upstream_of_rows, write_total
from gflv2.kernels.rows import hat, load_shifted_rows, shape_of_rows, store_rows
from gflv2.ops.reduction import Reduction

# Most bins of the tile and rows of a program, by AXIS: 4 to 32 elements a thread of four warps. (With 64 rows of 17
# bins Triton 3.8 spills for sm_90.)
_ROWS = ((16, 128), (64, 64)), ((16, 32), (64, 32))

# Nothing of these is compiled in: neither a size, nor a stride, nor the alignment of an input.
_RUN_TIME = ["out", "partials", "upstream", "logits", "target", "grad", "weight", "factor", "divisor", "rows"]
_RUN_TIME += ["row_stride", "bin_stride", "grad_row_stride", "grad_bin_stride"]


@triton.jit
def _logits_and_shares(
    logits, target, rows, live, row_stride, bin_stride,
    BINS: tl.constexpr, BODY: tl.constexpr, AXIS: tl.constexpr, TOUCHING: tl.constexpr,
):  # fmt: skip
    """z − max z of the tile and of the last bin, and the target's shares of them."""
    body, tail = load_shifted_rows(logits, rows, live, row_stride, bin_stride, BINS, BODY, AXIS, TOUCHING)
    d = tl.load(target + rows, mask=live, other=0.0)
    d = tl.where(d < 0.0, 0.0, d)
    d = tl.where(d > BINS - 1, BINS - 1, d)
    body_share = hat(tl.expand_dims(tl.arange(0, BODY), 1 - AXIS), tl.expand_dims(d, AXIS))
    return body, tail, body_share, hat(BINS - 1, d)


@triton.jit(do_not_specialize=_RUN_TIME)
def dfl_forward_kernel(
    out,  # (N,) float32, unless partials
    partials,  # (programs,) float32: the total is wanted; or None
    logits,  # (N, R)
    target,  # (N,) float32, in bins
    weight,  # (N,) float32, or None
    rows: tl.int64,  # N
    row_stride: tl.int64,
    bin_stride: tl.int64,
    BINS: tl.constexpr,
    BODY: tl.constexpr,
    AXIS: tl.constexpr,  # of the bins in the tile: the inner dimension in memory is the tile's last
    TOUCHING: tl.constexpr,  # its stride is 1
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    index = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = index < rows
    body, tail, body_share, tail_share = _logits_and_shares(
        logits, target, index, live, row_stride, bin_stride, BINS, BODY, AXIS, TOUCHING
    )
    total = tl.sum(tl.exp(body), axis=AXIS)
    # Not a product alone: a logit of −∞ outside the two bins must not spoil the loss.
    chosen = tl.sum(tl.where(body_share == 0.0, 0.0, body_share * body), axis=AXIS)
    if BODY < BINS:
        total += tl.exp(tail)
        chosen += tl.where(tail_share == 0.0, 0.0, tail_share * tail)
    reduce_rows(tl.log(total) - chosen, weight, out, partials, index, live, program)


@triton.jit(do_not_specialize=_RUN_TIME)
def dfl_backward_kernel(
    upstream,  # () float32 with TOTAL, else (N,)
    logits, target, weight,  # as in forward
    factor,  # () float32, or None
    grad,  # (N, R), in the dtype of the logits
    divisor: tl.float32,
    rows: tl.int64,
    row_stride: tl.int64,
    bin_stride: tl.int64,
    grad_row_stride: tl.int64,
    grad_bin_stride: tl.int64,
    TOTAL: tl.constexpr,
    BINS: tl.constexpr,
    BODY: tl.constexpr,
    AXIS: tl.constexpr,
    TOUCHING: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = index < rows
    body, tail, body_share, tail_share = _logits_and_shares(
        logits, target, index, live, row_stride, bin_stride, BINS, BODY, AXIS, TOUCHING
    )
    body, tail = tl.exp(body), tl.exp(tail)
    total = tl.sum(body, axis=AXIS)
    if BODY < BINS:
        total += tail
    norm = 1.0 / total
    given = upstream_of_rows(upstream, weight, factor, divisor, index, live, TOTAL)
    body = tl.expand_dims(given, AXIS) * (body * tl.expand_dims(norm, AXIS) - body_share)
    tail = given * (tail * norm - tail_share)
    store_rows(grad, body, tail, index, live, grad_row_stride, grad_bin_stride, BINS, BODY, AXIS, TOUCHING)


def dfl_forward(logits: Tensor, target: Tensor, reduction: Reduction, out: Tensor) -> None:
    """Write the losses of the rows, or their total, into ``out``, (N,) or () float32.

    Args:
        logits: (N, R) float32, float16 or bfloat16, any strides.
        target: (N,) float32 contiguous.
        reduction: from ``Reduction.on``.
    """
    shape = shape_of_rows(_ROWS, logits)
    programs = triton.cdiv(logits.shape[0], shape["BLOCK"])
    partials = new_partials(reduction, programs, out)
    with device_of(out):
        dfl_forward_kernel[(programs,)](
            None if reduction.total else out,
            partials,
            logits,
            target,
            reduction.weight,
            logits.shape[0],
            *logits.stride(),
            **shape,
        )
        write_total(reduction, partials, out)


def dfl_backward(grad: Tensor, logits: Tensor, target: Tensor, reduction: Reduction, grad_logits: Tensor) -> None:
    """Write the gradient.

    Args:
        grad: upstream gradient, shaped as forward's output, float32 contiguous. The other inputs as in forward.
        grad_logits: (N, R), in the dtype of the logits, any strides.
    """
    shape = shape_of_rows(_ROWS, logits, grad_logits)
    with device_of(grad):
        dfl_backward_kernel[(triton.cdiv(logits.shape[0], shape["BLOCK"]),)](
            grad,
            logits,
            target,
            reduction.weight,
            reduction.factor,
            grad_logits,
            reduction.divisor,
            logits.shape[0],
            *logits.stride(),
            *grad_logits.stride(),
            TOTAL=reduction.total,
            **shape,
        )
