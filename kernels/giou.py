"""``giou`` and ``iou`` in Triton: aligned pairs of boxes, a block of them a program (arXiv 1902.09630).

IoU = I/U, GIoU = I/U − (E − U)/E, with U = max(area + area' − I, eps) and E = max(enclosing, eps). Wherever maximum and
minimum meet a NaN here it must win (`tl.maximum` would drop it), so comparisons stand in their place.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from gflv2.kernels.common import INTERPRETED, device_of
from gflv2.kernels.reduction import new_partials, reduce_rows, upstream_of_rows, write_total
from gflv2.ops.reduction import Reduction

# Pairs of a program: one a thread. The interpreter pays for each operation of a program, not for each element.
_PAIRS = 1024 if INTERPRETED else 128
_OPTIONS: dict[str, Any] = {"BLOCK": _PAIRS, "num_warps": 4, "enable_fp_fusion": True}

# Nothing of these is compiled in: neither a size, nor a stride, nor the alignment of an input.
_RUN_TIME = ["out", "partials", "upstream", "pred", "target", "grad_pred", "grad_target", "weight", "factor"]
_RUN_TIME += ["divisor", "eps", "rows", "row_stride", "side_stride"]


@triton.jit
def _load(boxes, rows, live, row_stride, side_stride):
    """The four corners of boxes in float32."""
    at = boxes + rows * row_stride
    x1 = tl.load(at, mask=live, other=0.0).to(tl.float32)
    y1 = tl.load(at + side_stride, mask=live, other=0.0).to(tl.float32)
    x2 = tl.load(at + 2 * side_stride, mask=live, other=0.0).to(tl.float32)
    y2 = tl.load(at + 3 * side_stride, mask=live, other=0.0).to(tl.float32)
    return x1, y1, x2, y2


@triton.jit
def _at_least(x, low):
    return tl.where(x < low, low, x)


@triton.jit
def _share(a, b):
    """∂max(a, b)/∂a: 1 where a > b, a half where they are equal."""
    return tl.where(a > b, 1.0, tl.where(a == b, 0.5, 0.0))


@triton.jit
def _axis(low, high, target_low, target_high):
    """Along one axis: the sides of both boxes, of their intersection and of the enclosing box."""
    common = tl.minimum(high, target_high) - tl.maximum(low, target_low)
    whole = tl.maximum(high, target_high) - tl.minimum(low, target_low)
    return high - low, target_high - target_low, _at_least(common, 0.0), _at_least(whole, 0.0)


@triton.jit
def _axis_slopes(
    low, high, target_low, target_high, side, target_side, common, other_common, whole, other_whole,
    of_union, of_common, of_whole,
):  # fmt: skip
    """Along one axis: ∂L/∂(low, high) of pred and of target. side, target_side: of the boxes, along the other axis."""
    # A side of the intersection or of the enclosing box that is 0 has derivative 0.
    inner = tl.where(common > 0.0, of_common * other_common, 0.0)
    outer = tl.where(whole > 0.0, of_whole * other_whole, 0.0)
    left = _share(low, target_low)
    right = _share(target_high, high)
    area = of_union * side
    target_area = of_union * target_side
    grad_low = -(left * inner) - area - (1.0 - left) * outer
    grad_high = right * inner + area + (1.0 - right) * outer
    target_grad_low = -((1.0 - left) * inner) - target_area - left * outer
    target_grad_high = (1.0 - right) * inner + target_area + right * outer
    return grad_low, grad_high, target_grad_low, target_grad_high


@triton.jit
def _store(boxes, rows, live, x1, y1, x2, y2):
    """To boxes (N, 4) without gaps: one store a box."""
    corners = tl.reshape(tl.join(tl.join(x1, x2), tl.join(y1, y2)), (x1.shape[0], 4))
    at = boxes + (tl.expand_dims(rows * 4, 1) + tl.expand_dims(tl.arange(0, 4), 0))
    tl.store(at, corners.to(boxes.dtype.element_ty), mask=tl.expand_dims(live, 1))


@triton.jit(do_not_specialize=_RUN_TIME)
def giou_forward_kernel(
    out,  # (N,) float32, unless partials
    partials,  # (programs,) float32: the total is wanted; or None
    pred,  # (N, 4)
    target,  # (N, 4) float32, contiguous
    weight,  # (N,) float32, or None
    eps: tl.float32,
    rows: tl.int64,  # N
    row_stride: tl.int64,
    side_stride: tl.int64,
    LOSS: tl.constexpr,  # 1 − GIoU, else the IoU
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    index = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = index < rows
    x1, y1, x2, y2 = _load(pred, index, live, row_stride, side_stride)
    u1, v1, u2, v2 = _load(target, index, live, 4, 1)
    width, target_width, common_x, whole_x = _axis(x1, x2, u1, u2)
    height, target_height, common_y, whole_y = _axis(y1, y2, v1, v2)
    common = common_x * common_y
    union = _at_least(width * height + target_width * target_height - common, eps)
    value = common / union
    if LOSS:
        enclosing = _at_least(whole_x * whole_y, eps)
        value = 1.0 - (value - (enclosing - union) / enclosing)
    reduce_rows(value, weight, out, partials, index, live, program)


@triton.jit(do_not_specialize=_RUN_TIME)
def giou_backward_kernel(
    upstream,  # () float32 with TOTAL, else (N,)
    pred, target, weight,  # as in forward
    factor,  # () float32, or None
    grad_pred,  # (N, 4), in pred's dtype, contiguous; or None
    grad_target,  # (N, 4) float32, contiguous; or None
    divisor: tl.float32,
    eps: tl.float32,
    rows: tl.int64,
    row_stride: tl.int64,
    side_stride: tl.int64,
    TOTAL: tl.constexpr,
    LOSS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    # 1. The pairs, as in forward.
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = index < rows
    x1, y1, x2, y2 = _load(pred, index, live, row_stride, side_stride)
    u1, v1, u2, v2 = _load(target, index, live, 4, 1)
    width, target_width, common_x, whole_x = _axis(x1, x2, u1, u2)
    height, target_height, common_y, whole_y = _axis(y1, y2, v1, v2)
    common = common_x * common_y
    raw_union = width * height + target_width * target_height - common
    union = _at_least(raw_union, eps)

    # 2. ∂L/∂(union, intersection, enclosing box).
    given = upstream_of_rows(upstream, weight, factor, divisor, index, live, TOTAL)
    over_union = 1.0 / union
    of_union = -common * over_union * over_union
    of_whole = tl.zeros_like(given)
    if LOSS:
        raw_enclosing = whole_x * whole_y
        over_enclosing = 1.0 / _at_least(raw_enclosing, eps)
        of_union += over_enclosing
        of_whole = -union * over_enclosing * over_enclosing * _share(raw_enclosing, eps)
        given = -given
    of_union *= _share(raw_union, eps)
    of_common = given * (over_union - of_union)  # the union shrinks by the intersection
    of_union *= given
    of_whole *= given

    # 3. To the corners.
    a1, a2, b1, b2 = _axis_slopes(
        x1, x2, u1, u2, height, target_height, common_x, common_y, whole_x, whole_y, of_union, of_common, of_whole
    )
    c1, c2, d1, d2 = _axis_slopes(
        y1, y2, v1, v2, width, target_width, common_y, common_x, whole_y, whole_x, of_union, of_common, of_whole
    )
    if grad_pred is not None:
        _store(grad_pred, index, live, a1, c1, a2, c2)
    if grad_target is not None:
        _store(grad_target, index, live, b1, d1, b2, d2)


def giou_forward(pred: Tensor, target: Tensor, loss: bool, eps: float, reduction: Reduction, out: Tensor) -> None:
    """Write 1 − GIoU (``loss``) or the IoU of the pairs, or their total, into ``out``, (N,) or () float32.

    Args:
        pred: (N, 4) float32, float16 or bfloat16, any strides.
        target: (N, 4) float32 contiguous.
        reduction: from ``Reduction.on``.
    """
    programs = triton.cdiv(pred.shape[0], _PAIRS)
    partials = new_partials(reduction, programs, out)
    with device_of(out):
        giou_forward_kernel[(programs,)](
            None if reduction.total else out,
            partials,
            pred,
            target,
            reduction.weight,
            eps,
            pred.shape[0],
            *pred.stride(),
            LOSS=loss,
            **_OPTIONS,
        )
        write_total(reduction, partials, out)


def giou_backward(
    grad: Tensor,
    pred: Tensor,
    target: Tensor,
    loss: bool,
    eps: float,
    reduction: Reduction,
    grad_pred: Tensor | None,
    grad_target: Tensor | None,
) -> None:
    """Write the gradients that are wanted.

    Args:
        grad: upstream gradient, shaped as forward's output, float32 contiguous. The other inputs as in forward.
        grad_pred, grad_target: (N, 4) contiguous, in pred's dtype and float32; None: not wanted.
    """
    with device_of(grad):
        giou_backward_kernel[(triton.cdiv(pred.shape[0], _PAIRS),)](
            grad,
            pred,
            target,
            reduction.weight,
            reduction.factor,
            grad_pred,
            grad_target,
            reduction.divisor,
            eps,
            pred.shape[0],
            *pred.stride(),
            TOTAL=reduction.total,
            LOSS=loss,
            **_OPTIONS,
        )
