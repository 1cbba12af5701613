"""``giou``, ``iou`` and ``ciou`` in Triton: aligned pairs of boxes, a block of them a program.

Arithmetic: kernels/boxes.py, kernels/ciou.py.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from gflv2.kernels.boxes import giou_loss, iou, iou_gradients, load_corners, overlap
from gflv2.kernels.ciou import ciou, ciou_gradients, ciou_loss
from gflv2.kernels.launching import INTERPRETED, OPTIONS, kernel
from gflv2.kernels.row_losses import launch_gradients, launch_losses, reduce_rows, upstream_of_rows
from gflv2.kernels.rows import rows_of_program
from gflv2.ops.giou import CIOU, CIOU_MMDET, GIOU
from gflv2.ops.reduction import Reduction

_GIOU, _CIOU, _MMDET = (tl.constexpr(form) for form in (GIOU, CIOU, CIOU_MMDET))
_PAIRS = 1024 if INTERPRETED else 128  # pairs of a program: one a thread
_SHAPE: dict[str, Any] = {"BLOCK": _PAIRS, **OPTIONS}


@triton.jit
def _store(boxes, rows, live, corners):
    """To boxes (N, 4) without gaps: one store a box."""
    sides = tl.join(tl.join(corners.x1, corners.x2), tl.join(corners.y1, corners.y2))
    sides = tl.reshape(sides, (rows.shape[0], 4))
    at = boxes + (tl.expand_dims(rows * 4, 1) + tl.expand_dims(tl.arange(0, 4), 0))
    tl.store(at, sides.to(boxes.dtype.element_ty), mask=tl.expand_dims(live, 1))


@kernel
def giou_forward_kernel(
    out,  # (N,) float32, unless partials
    partials,  # (programs,) float32: the total is wanted; or None
    weight,  # (N,) float32, or None
    pred,  # (N, 4)
    target,  # (N, 4) float32, contiguous
    eps: tl.float32,
    count: tl.int64,  # N
    row_stride: tl.int64,
    side_stride: tl.int64,
    FORM: tl.constexpr,  # what is computed: the numbers of gflv2/ops/giou.py
    BLOCK: tl.constexpr,
):
    rows, live = rows_of_program(count, BLOCK)
    box = load_corners(pred, rows, live, row_stride, side_stride)
    goal = load_corners(target, rows, live, 4, 1)
    shared = overlap(box, goal)
    if FORM >= _CIOU:
        value = ciou_loss(ciou(box, goal, shared, eps, FORM == _MMDET), FORM == _MMDET)
    elif FORM == _GIOU:
        value = giou_loss(shared, eps)
    else:
        value = iou(shared, eps)
    reduce_rows(value, weight, out, partials, rows, live)


@kernel
def giou_backward_kernel(
    upstream,  # () float32 with TOTAL, else (N,)
    weight,  # as in forward
    factor,  # () float32, or None
    divisor: tl.float32,
    pred, target,  # as in forward
    grad_pred,  # (N, 4), in pred's dtype, contiguous; or None
    grad_target,  # (N, 4) float32, contiguous; or None
    eps: tl.float32, count: tl.int64, row_stride: tl.int64, side_stride: tl.int64,
    TOTAL: tl.constexpr, FORM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows, live = rows_of_program(count, BLOCK)
    box = load_corners(pred, rows, live, row_stride, side_stride)
    goal = load_corners(target, rows, live, 4, 1)
    given = upstream_of_rows(upstream, weight, factor, divisor, rows, live, TOTAL)
    shared = overlap(box, goal)
    if FORM >= _CIOU:
        pair = ciou(box, goal, shared, eps, FORM == _MMDET)
        of_box, of_goal = ciou_gradients(box, goal, shared, pair, given, eps, FORM == _MMDET)
    else:
        of_box, of_goal = iou_gradients(box, goal, shared, given, eps, FORM == _GIOU)
    if grad_pred is not None:
        _store(grad_pred, rows, live, of_box)
    if grad_target is not None:
        _store(grad_target, rows, live, of_goal)


def giou_forward(pred: Tensor, target: Tensor, form: int, eps: float, reduction: Reduction, out: Tensor) -> None:
    """Write what ``form`` says (gflv2/ops/giou.py) of the pairs, or the total, into ``out``, (N,) or () float32.

    Args:
        pred: (N, 4) float32, float16 or bfloat16, any strides.
        target: (N, 4) float32 contiguous.
        reduction: of which a mean has become a sum.
    """
    arguments = (pred, target, eps, pred.shape[0], *pred.stride())
    shape = {"FORM": form, **_SHAPE}
    launch_losses(giou_forward_kernel, triton.cdiv(pred.shape[0], _PAIRS), reduction, out, arguments, shape)


def giou_backward(
    grad: Tensor,
    pred: Tensor,
    target: Tensor,
    form: int,
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
    arguments = (pred, target, grad_pred, grad_target, eps, pred.shape[0], *pred.stride())
    shape = {"FORM": form, **_SHAPE}
    launch_gradients(giou_backward_kernel, triton.cdiv(pred.shape[0], _PAIRS), reduction, grad, arguments, shape)
