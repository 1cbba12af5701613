"""Two boxes in Triton: how they overlap, and the gradients of IoU and GIoU (arXiv 1902.09630).

IoU = I/U, GIoU = I/U − (E − U)/E, with U = max(area + area' − I, eps) and E = max(enclosing, eps). Wherever maximum and
minimum meet a NaN here it must win (`tl.maximum` would drop it), so comparisons stand in their place.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Corners(NamedTuple):
    x1: Any
    y1: Any
    x2: Any
    y2: Any


class Overlap(NamedTuple):
    """Of two boxes: their intersection, the union of their areas, the enclosing box. Areas before the limit eps."""

    inner_x: Any
    inner_y: Any
    outer_x: Any
    outer_y: Any
    inner: Any
    union: Any
    outer: Any


@triton.jit
def load_corners(boxes, rows, live, row_stride, side_stride):
    """Corners of boxes in float32."""
    at = boxes + rows * row_stride
    x1 = tl.load(at, mask=live, other=0.0).to(tl.float32)
    y1 = tl.load(at + side_stride, mask=live, other=0.0).to(tl.float32)
    x2 = tl.load(at + 2 * side_stride, mask=live, other=0.0).to(tl.float32)
    y2 = tl.load(at + 3 * side_stride, mask=live, other=0.0).to(tl.float32)
    return Corners(x1, y1, x2, y2)


@triton.jit
def at_least(x, low):
    return tl.where(x < low, low, x)


@triton.jit
def _share(a, b):
    """∂max(a, b)/∂a: 1 where a > b, a half where they are equal."""
    return tl.where(a > b, 1.0, tl.where(a == b, 0.5, 0.0))


@triton.jit
def _axis_overlap(low, high, target_low, target_high):
    """Sides of the intersection and of the enclosing box along one axis."""
    inner = tl.minimum(high, target_high) - tl.maximum(low, target_low)
    outer = tl.maximum(high, target_high) - tl.minimum(low, target_low)
    return at_least(inner, 0.0), at_least(outer, 0.0)


@triton.jit
def overlap(box, target):
    """Of two ``Corners``."""
    inner_x, outer_x = _axis_overlap(box.x1, box.x2, target.x1, target.x2)
    inner_y, outer_y = _axis_overlap(box.y1, box.y2, target.y1, target.y2)
    inner = inner_x * inner_y
    areas = (box.x2 - box.x1) * (box.y2 - box.y1) + (target.x2 - target.x1) * (target.y2 - target.y1)
    return Overlap(inner_x, inner_y, outer_x, outer_y, inner, areas - inner, outer_x * outer_y)


@triton.jit
def iou(shared, eps):
    return shared.inner / at_least(shared.union, eps)


@triton.jit
def giou_loss(shared, eps):
    """1 − GIoU."""
    union, outer = at_least(shared.union, eps), at_least(shared.outer, eps)
    return 1.0 - (shared.inner / union - (outer - union) / outer)


@triton.jit
def _axis_gradients(
    low, high, target_low, target_high, side, target_side, inner, other_inner, outer, other_outer,
    of_union, of_inner, of_outer,
):  # fmt: skip
    """Along one axis: ∂L/∂(low, high) of box and of target. side, target_side: of the boxes, along the other axis."""
    # A side of the intersection or of the enclosing box that is 0 has derivative 0.
    by_inner = tl.where(inner > 0.0, of_inner * other_inner, 0.0)
    by_outer = tl.where(outer > 0.0, of_outer * other_outer, 0.0)
    left = _share(low, target_low)
    right = _share(target_high, high)
    area = of_union * side
    target_area = of_union * target_side
    grad_low = -(left * by_inner) - area - (1.0 - left) * by_outer
    grad_high = right * by_inner + area + (1.0 - right) * by_outer
    target_grad_low = -((1.0 - left) * by_inner) - target_area - left * by_outer
    target_grad_high = (1.0 - right) * by_inner + target_area + right * by_outer
    return grad_low, grad_high, target_grad_low, target_grad_high


@triton.jit
def iou_gradients(box, target, shared, given, eps, LOSS: tl.constexpr):
    """∂L/∂(corners) of box and of target, with ``given`` the upstream gradient of 1 − GIoU (LOSS) or of the IoU."""
    # 1. ∂L/∂(union, intersection, enclosing box).
    over_union = 1.0 / at_least(shared.union, eps)
    of_union = -shared.inner * over_union * over_union
    of_outer = tl.zeros_like(given)
    if LOSS:
        over_outer = 1.0 / at_least(shared.outer, eps)
        of_union += over_outer
        of_outer = -at_least(shared.union, eps) * over_outer * over_outer * _share(shared.outer, eps)
        given = -given
    of_union *= _share(shared.union, eps)
    of_inner = given * (over_union - of_union)  # the union shrinks by the intersection
    of_union *= given
    of_outer *= given

    # 2. To the corners.
    x1, x2, target_x1, target_x2 = _axis_gradients(
        box.x1, box.x2, target.x1, target.x2, box.y2 - box.y1, target.y2 - target.y1,
        shared.inner_x, shared.inner_y, shared.outer_x, shared.outer_y, of_union, of_inner, of_outer,
    )  # fmt: skip
    y1, y2, target_y1, target_y2 = _axis_gradients(
        box.y1, box.y2, target.y1, target.y2, box.x2 - box.x1, target.x2 - target.x1,
        shared.inner_y, shared.inner_x, shared.outer_y, shared.outer_x, of_union, of_inner, of_outer,
    )  # fmt: skip
    return Corners(x1, y1, x2, y2), Corners(target_x1, target_y1, target_x2, target_y2)
