"""``distribution_kl`` in Triton: both softmaxes over the bins and their divergence (arXiv 2102.12252).

With s = (z − max z)/T of the student's logits and t the same of the teacher's, the divergence of a row is
Σ_b P_t·(t_b − s_b) + log(Σ exp s / Σ exp t), and the derivative of the loss, which is T²/R times that, T/R·(P_s − P_t).

A program takes BLOCK rows. The bins of each side form a tile, see `gflv2.kernels.bins`, whose cells are the rows here.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from gflv2.kernels.bins import Tile, store_bins, sum_bins, wide
from gflv2.kernels.launching import kernel
from gflv2.kernels.logarithm import minus_log
from gflv2.kernels.row_losses import launch_gradients, launch_losses, reduce_rows, upstream_of_rows
from gflv2.kernels.rows import load_shifted_rows, open_rows, rows_of_program, shape_of_rows
from gflv2.ops.reduction import Reduction

# Most bins of a tile and rows of a program, by AXIS: 8 elements of each tile a thread of four warps. (With twice as
# many ptxas spills for sm_80.)
_ROWS = ((16, 64), (64, 16)), ((16, 64), (64, 16))


@triton.jit
def _weighted(teacher, student, shares):
    """Terms of Σ exp t·(t − s). Where the teacher's share vanishes, a student's −∞ must not count: 0·∞ is NaN."""
    return tl.where(teacher < -87.0, 0.0, shares * (teacher - student))


@kernel
def distribution_kl_forward_kernel(
    out,  # (N,) float32, unless partials
    partials,  # (programs,) float32: the total is wanted; or None
    weight,  # (N,) float32, or None
    logits,  # (N, R) of the student
    teacher,  # (N, R), of any dtype
    inverse: tl.float32,  # 1/T
    scale: tl.float32,  # T²/R
    count: tl.int64,  # N
    row_stride: tl.int64,
    bin_stride: tl.int64,
    teacher_row_stride: tl.int64,
    teacher_bin_stride: tl.int64,
    BINS: tl.constexpr,
    BODY: tl.constexpr,
    AXIS: tl.constexpr,  # of the bins in the tile: the inner dimension of the student's logits is the tile's last
    TOUCHING: tl.constexpr,  # its stride is 1 in all tensors
    BLOCK: tl.constexpr,
):
    tile: tl.constexpr = Tile(BINS, BODY, AXIS)
    rows, live = rows_of_program(count, BLOCK)
    s, s_tail = load_shifted_rows(logits, rows, live, row_stride, bin_stride, TOUCHING, tile)
    t, t_tail = load_shifted_rows(teacher, rows, live, teacher_row_stride, teacher_bin_stride, TOUCHING, tile)
    s, s_tail, t, t_tail = s * inverse, s_tail * inverse, t * inverse, t_tail * inverse
    shares, tail_share = tl.exp(t), tl.exp(t_tail)
    teacher_total = sum_bins(shares, tail_share, tile)
    weighted = sum_bins(_weighted(t, s, shares), _weighted(t_tail, s_tail, tail_share), tile)
    # One logarithm of a quotient, not two: at a high temperature the two sums are nearly equal.
    ratio = sum_bins(tl.exp(s), tl.exp(s_tail), tile) / teacher_total
    losses = scale * (weighted / teacher_total - minus_log(ratio, 1.0 - ratio))
    losses += ratio - ratio  # the logarithm of a NaN need not be one
    reduce_rows(losses, weight, out, partials, rows, live)


@kernel
def distribution_kl_backward_kernel(
    upstream,  # () float32 with TOTAL, else (N,)
    weight,  # as in forward
    factor,  # () float32, or None
    divisor: tl.float32,
    logits, teacher,  # as in forward
    grad,  # (N, R), in the dtype of the student's logits
    inverse: tl.float32,
    scale: tl.float32,  # T/R
    count: tl.int64, row_stride: tl.int64, bin_stride: tl.int64, teacher_row_stride: tl.int64,
    teacher_bin_stride: tl.int64, grad_row_stride: tl.int64, grad_bin_stride: tl.int64,
    TOTAL: tl.constexpr, BINS: tl.constexpr, BODY: tl.constexpr, AXIS: tl.constexpr, TOUCHING: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    tile: tl.constexpr = Tile(BINS, BODY, AXIS)
    rows, live = rows_of_program(count, BLOCK)
    s, s_tail = load_shifted_rows(logits, rows, live, row_stride, bin_stride, TOUCHING, tile)
    t, t_tail = load_shifted_rows(teacher, rows, live, teacher_row_stride, teacher_bin_stride, TOUCHING, tile)
    s, s_tail = tl.exp(s * inverse), tl.exp(s_tail * inverse)
    t, t_tail = tl.exp(t * inverse), tl.exp(t_tail * inverse)
    over_student, over_teacher = 1.0 / sum_bins(s, s_tail, tile), 1.0 / sum_bins(t, t_tail, tile)
    given = upstream_of_rows(upstream, weight, factor, divisor, rows, live, TOTAL) * scale
    body = wide(given, tile) * (s * wide(over_student, tile) - t * wide(over_teacher, tile))
    tail = given * (s_tail * over_student - t_tail * over_teacher)
    store_bins(open_rows(grad, rows, grad_row_stride, grad_bin_stride, TOUCHING, tile), 0, body, tail, live, tile)


def distribution_kl_forward(
    logits: Tensor, teacher: Tensor, temperature: float, reduction: Reduction, out: Tensor
) -> None:
    """Write the losses of the rows, or their total, into ``out``, (N,) or () float32.

    Args:
        logits: (N, R) of the student, float32, float16 or bfloat16, any strides.
        teacher: (N, R), any of these dtypes, any strides.
        reduction: of which a mean has become a sum.
    """
    shape = shape_of_rows(_ROWS, logits, teacher)
    count, bins = logits.shape
    factors = (1 / temperature, temperature**2 / bins)
    arguments = (logits, teacher, *factors, count, *logits.stride(), *teacher.stride())
    programs = triton.cdiv(count, shape["BLOCK"])
    launch_losses(distribution_kl_forward_kernel, programs, reduction, out, arguments, shape)


def distribution_kl_backward(
    grad: Tensor,
    logits: Tensor,
    teacher: Tensor,
    temperature: float,
    reduction: Reduction,
    grad_logits: Tensor,
) -> None:
    """Write the gradient.

    Args:
        grad: upstream gradient, shaped as forward's output, float32 contiguous. The other inputs as in forward.
        grad_logits: (N, R), in the dtype of the logits, any strides.
    """
    shape = shape_of_rows(_ROWS, logits, teacher, grad_logits)
    count, bins = logits.shape
    strides = (*logits.stride(), *teacher.stride(), *grad_logits.stride())
    arguments = (logits, teacher, grad_logits, 1 / temperature, temperature / bins, count, *strides)
    programs = triton.cdiv(count, shape["BLOCK"])
    launch_gradients(distribution_kl_backward_kernel, programs, reduction, grad, arguments, shape)
