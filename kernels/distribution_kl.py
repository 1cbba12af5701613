"""``distribution_kl`` in Triton: both softmaxes over the bins and their divergence (arXiv 2102.12252).

With s = (z − max z)/T of the student's logits and t the same of the teacher's, the divergence of a row is
Σ_b P_t·(t_b − s_b) + log(Σ exp s / Σ exp t), and the derivative of the loss, which is T²/R times that, T/R·(P_s − P_t).

A program takes BLOCK rows. The bins of each side form a tile, with the last bin beside it where that saves half of it:
see `gflv2.kernels.rows`, whose cells are the rows here.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from gflv2.kernels.common import device_of
from gflv2.kernels.logarithm import minus_log
from gflv2.kernels.reduction import new_partials, reduce_rows, upstream_of_rows, write_total
from gflv2.kernels.rows import load_shifted_rows, shape_of_rows, store_rows
from gflv2.ops.reduction import Reduction

# Most bins of a tile and rows of a program, by AXIS: 8 elements of each tile a thread of four warps. (With twice as
# many ptxas spills for sm_80.)
_ROWS = ((16, 64), (64, 16)), ((16, 64), (64, 16))

# Nothing of these is compiled in: neither a size, nor a stride, nor the alignment of an input, nor the temperature.
_RUN_TIME = ["out", "partials", "upstream", "logits", "teacher", "grad", "weight", "factor", "divisor", "rows"]
_RUN_TIME += ["inverse", "scale", "row_stride", "bin_stride", "teacher_row_stride", "teacher_bin_stride"]
_RUN_TIME += ["grad_row_stride", "grad_bin_stride"]


@triton.jit
def _weighted(teacher, student, shares):
    """Terms of Σ exp t·(t − s). Not a product alone: where the teacher rules a bin out, −∞ costs nothing."""
    return tl.where(teacher < -87.0, 0.0, shares * (teacher - student))


@triton.jit(do_not_specialize=_RUN_TIME)
def distribution_kl_forward_kernel(
    out,  # (N,) float32, unless partials
    partials,  # (programs,) float32: the total is wanted; or None
    logits,  # (N, R) of the student
    teacher,  # (N, R), of any dtype
    weight,  # (N,) float32, or None
    inverse: tl.float32,  # 1/T
    scale: tl.float32,  # T²/R
    rows: tl.int64,  # N
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
    program = tl.program_id(0)
    index = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = index < rows
    s, s_tail = load_shifted_rows(logits, index, live, row_stride, bin_stride, BINS, BODY, AXIS, TOUCHING)
    t, t_tail = load_shifted_rows(
        teacher, index, live, teacher_row_stride, teacher_bin_stride, BINS, BODY, AXIS, TOUCHING
    )
    s, s_tail, t, t_tail = s * inverse, s_tail * inverse, t * inverse, t_tail * inverse
    shares = tl.exp(t)
    student_total = tl.sum(tl.exp(s), axis=AXIS)
    teacher_total = tl.sum(shares, axis=AXIS)
    weighted = tl.sum(_weighted(t, s, shares), axis=AXIS)
    if BODY < BINS:
        share = tl.exp(t_tail)
        student_total += tl.exp(s_tail)
        teacher_total += share
        weighted += _weighted(t_tail, s_tail, share)
    # One logarithm of a quotient, not two: at a high temperature the two sums are nearly equal.
    ratio = student_total / teacher_total
    losses = scale * (weighted / teacher_total - minus_log(ratio, 1.0 - ratio))
    losses += ratio - ratio  # the logarithm of a NaN need not be one
    reduce_rows(losses, weight, out, partials, index, live, program)


@triton.jit(do_not_specialize=_RUN_TIME)
def distribution_kl_backward_kernel(
    upstream,  # () float32 with TOTAL, else (N,)
    logits, teacher, weight,  # as in forward
    factor,  # () float32, or None
    grad,  # (N, R), in the dtype of the student's logits
    divisor: tl.float32,
    inverse: tl.float32,
    scale: tl.float32,  # T/R
    rows: tl.int64,
    row_stride: tl.int64,
    bin_stride: tl.int64,
    teacher_row_stride: tl.int64,
    teacher_bin_stride: tl.int64,
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
    s, s_tail = load_shifted_rows(logits, index, live, row_stride, bin_stride, BINS, BODY, AXIS, TOUCHING)
    t, t_tail = load_shifted_rows(
        teacher, index, live, teacher_row_stride, teacher_bin_stride, BINS, BODY, AXIS, TOUCHING
    )
    s, s_tail = tl.exp(s * inverse), tl.exp(s_tail * inverse)
    t, t_tail = tl.exp(t * inverse), tl.exp(t_tail * inverse)
    student_total = tl.sum(s, axis=AXIS)
    teacher_total = tl.sum(t, axis=AXIS)
    if BODY < BINS:
        student_total += s_tail
        teacher_total += t_tail
    over_student, over_teacher = 1.0 / student_total, 1.0 / teacher_total
    given = upstream_of_rows(upstream, weight, factor, divisor, index, live, TOTAL) * scale
    body = tl.expand_dims(given, AXIS) * (
        s * tl.expand_dims(over_student, AXIS) - t * tl.expand_dims(over_teacher, AXIS)
    )
    tail = given * (s_tail * over_student - t_tail * over_teacher)
    store_rows(grad, body, tail, index, live, grad_row_stride, grad_bin_stride, BINS, BODY, AXIS, TOUCHING)


def distribution_kl_forward(
    logits: Tensor, teacher: Tensor, temperature: float, reduction: Reduction, out: Tensor
) -> None:
    """Write the losses of the rows, or their total, into ``out``, (N,) or () float32.

    Args:
        logits: (N, R) of the student, float32, float16 or bfloat16, any strides.
        teacher: (N, R), any of these dtypes, any strides.
        reduction: from ``Reduction.on``.
    """
    shape = shape_of_rows(_ROWS, logits, teacher)
    programs = triton.cdiv(logits.shape[0], shape["BLOCK"])
    partials = new_partials(reduction, programs, out)
    with device_of(out):
        distribution_kl_forward_kernel[(programs,)](
            None if reduction.total else out,
            partials,
            logits,
            teacher,
            reduction.weight,
            1 / temperature,
            temperature**2 / logits.shape[1],
            logits.shape[0],
            *logits.stride(),
            *teacher.stride(),
            **shape,
        )
        write_total(reduction, partials, out)


def distribution_kl_backward(
    grad: Tensor, logits: Tensor, teacher: Tensor, temperature: float, reduction: Reduction, grad_logits: Tensor
) -> None:
    """Write the gradient.

    Args:
        grad: upstream gradient, shaped as forward's output, float32 contiguous. The other inputs as in forward.
        grad_logits: (N, R), in the dtype of the logits, any strides.
    """
    shape = shape_of_rows(_ROWS, logits, teacher, grad_logits)
    with device_of(grad):
        distribution_kl_backward_kernel[(triton.cdiv(logits.shape[0], shape["BLOCK"]),)](
            grad,
            logits,
            teacher,
            reduction.weight,
            reduction.factor,
            grad_logits,
            reduction.divisor,
            1 / temperature,
            temperature / logits.shape[1],
            logits.shape[0],
            *logits.stride(),
            *teacher.stride(),
            *grad_logits.stride(),
            TOTAL=reduction.total,
            **shape,
        )
