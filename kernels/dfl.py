"""``dfl`` in Triton: log-softmax over the bins and both cross-entropies (arXiv 2006.04388, equation 6).

With t = z − max z and the hat h_b = max(0, 1 − |b − d|) the loss of a row is log Σ_b exp(t_b) − Σ_b h_b·t_b, and its
derivative P_b − h_b: every bin is alike, and no target, however wrong, chooses an address.

A program takes BLOCK rows. Their bins form a tile, see `gflv2.kernels.bins`, whose cells are the rows here.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from gflv2.kernels.bins import Tile, chosen_logit, hat, store_bins, sum_bins, wide
from gflv2.kernels.launching import kernel
from gflv2.kernels.row_losses import launch_gradients, launch_losses, reduce_rows, upstream_of_rows
from gflv2.kernels.rows import load_shifted_rows, open_rows, rows_of_program, shape_of_rows
from gflv2.ops.reduction import Reduction

# Most bins of the tile and rows of a program, by AXIS: 4 to 32 elements a thread of four warps. (With 64 rows of 17
# bins Triton 3.8 spills for sm_90.)
_ROWS = ((16, 128), (64, 64)), ((16, 32), (64, 32))


@triton.jit
def _load_target(target, rows, live, tile):
    """Targets within the bins."""
    d = tl.load(target + rows, mask=live, other=0.0)
    d = tl.where(d < 0.0, 0.0, d)
    return tl.where(d > tile.bins - 1, tile.bins - 1, d)


@kernel
def dfl_forward_kernel(
    out,  # (N,) float32, unless partials
    partials,  # (programs,) float32: the total is wanted; or None
    weight,  # (N,) float32, or None
    logits,  # (N, R)
    target,  # (N,) float32, in bins
    count: tl.int64,  # N
    row_stride: tl.int64,
    bin_stride: tl.int64,
    BINS: tl.constexpr,
    BODY: tl.constexpr,
    AXIS: tl.constexpr,  # of the bins in the tile: the inner dimension in memory is the tile's last
    TOUCHING: tl.constexpr,  # its stride is 1
    BLOCK: tl.constexpr,
):
    tile: tl.constexpr = Tile(BINS, BODY, AXIS)
    rows, live = rows_of_program(count, BLOCK)
    body, tail = load_shifted_rows(logits, rows, live, row_stride, bin_stride, TOUCHING, tile)
    chosen = chosen_logit(body, tail, _load_target(target, rows, live, tile), tile)
    total = sum_bins(tl.exp(body), tl.exp(tail), tile)
    reduce_rows(tl.log(total) - chosen, weight, out, partials, rows, live)


@kernel
def dfl_backward_kernel(
    upstream,  # () float32 with TOTAL, else (N,)
    weight,  # as in forward
    factor,  # () float32, or None
    divisor: tl.float32,
    logits, target,  # as in forward
    grad,  # (N, R), in the dtype of the logits
    count: tl.int64, row_stride: tl.int64, bin_stride: tl.int64, grad_row_stride: tl.int64,
    grad_bin_stride: tl.int64,
    TOTAL: tl.constexpr, BINS: tl.constexpr, BODY: tl.constexpr, AXIS: tl.constexpr, TOUCHING: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    tile: tl.constexpr = Tile(BINS, BODY, AXIS)
    rows, live = rows_of_program(count, BLOCK)
    body, tail = load_shifted_rows(logits, rows, live, row_stride, bin_stride, TOUCHING, tile)
    share, tail_share = hat(_load_target(target, rows, live, tile), tile)
    body, tail = tl.exp(body), tl.exp(tail)
    norm = 1.0 / sum_bins(body, tail, tile)
    given = upstream_of_rows(upstream, weight, factor, divisor, rows, live, TOTAL)
    body = wide(given, tile) * (body * wide(norm, tile) - share)
    tail = given * (tail * norm - tail_share)
    store_bins(open_rows(grad, rows, grad_row_stride, grad_bin_stride, TOUCHING, tile), 0, body, tail, live, tile)


def dfl_forward(logits: Tensor, target: Tensor, reduction: Reduction, out: Tensor) -> None:
    """Write the losses of the rows, or their total, into ``out``, (N,) or () float32.

    Args:
        logits: (N, R) float32, float16 or bfloat16, any strides.
        target: (N,) float32 contiguous.
        reduction: of which a mean has become a sum.
    """
    shape = shape_of_rows(_ROWS, logits)
    count = logits.shape[0]
    arguments = (logits, target, count, *logits.stride())
    launch_losses(dfl_forward_kernel, triton.cdiv(count, shape["BLOCK"]), reduction, out, arguments, shape)


def dfl_backward(grad: Tensor, logits: Tensor, target: Tensor, reduction: Reduction, grad_logits: Tensor) -> None:
    """Write the gradient.

    Args:
        grad: upstream gradient, shaped as forward's output, float32 contiguous. The other inputs as in forward.
        grad_logits: (N, R), in the dtype of the logits, any strides.
    """
    shape = shape_of_rows(_ROWS, logits, grad_logits)
    count = logits.shape[0]
    arguments = (logits, target, grad_logits, count, *logits.stride(), *grad_logits.stride())
    launch_gradients(dfl_backward_kernel, triton.cdiv(count, shape["BLOCK"]), reduction, grad, arguments, shape)
