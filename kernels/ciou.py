"""Complete IoU (arXiv 2005.03572) of two boxes in Triton, and its gradients: gflv2/ciou.hpp has the formulas."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from gflv2.kernels.boxes import Corners, _share


class Ciou(NamedTuple):
    """What value and gradients are made of."""

    over_union: Any
    between_x: Any  # twice the way from the box's centre to the target's
    between_y: Any
    distance: Any  # ρ²
    over_diagonal: Any  # 1/c²
    height: Any  # with its eps
    target_height: Any
    turn: Any  # the difference of the angles
    share: Any  # α
    value: Any  # CIoU, before mmdet's limit


@triton.jit
def _larger(x, y):
    return tl.where(x > y, x, y)


@triton.jit
def angle(y, x):
    """Of the point (x, y), from −π to π; not for (0, 0).

    atan(t) for 0 ≤ t ≤ 1 is t + t³·p(t²), with the polynomial of degree 7 that minimises the largest relative error
    (2e-8).
    """
    height, width = _larger(y, -y), _larger(x, -x)
    t = tl.where(height < width, height, width) / _larger(height, width)
    square = t * t
    p = square * 2.920654137e-3 - 1.636778563e-2
    p = p * square + 4.321164638e-2
    p = p * square - 7.552197576e-2
    p = p * square + 1.066599786e-1
    p = p * square - 1.421105415e-1
    p = p * square + 1.999377310e-1
    p = p * square - 3.333315253e-1
    turn = square * p * t + t
    turn = tl.where(height > width, 1.57079632679 - turn, turn)
    turn = tl.where(x < 0.0, 3.14159265359 - turn, turn)
    return tl.where(y < 0.0, -turn, turn)


@triton.jit
def ciou(box, target, shared, eps, MMDET: tl.constexpr):
    """Of two ``Corners`` and their ``Overlap``."""
    width, height = box.x2 - box.x1, box.y2 - box.y1 + eps
    target_width, target_height = target.x2 - target.x1, target.y2 - target.y1 + eps
    union = shared.union + eps
    if not MMDET:
        union += eps * (width + target_width)
    over_union = 1.0 / union
    iou = shared.inner / union

    # The differences of corners of boxes that lie near each other are exact.
    between_x = (target.x1 - box.x1) + (target.x2 - box.x2)
    between_y = (target.y1 - box.y1) + (target.y2 - box.y2)
    distance = 0.25 * (between_x * between_x + between_y * between_y)
    over_diagonal = 1.0 / (shared.outer_x * shared.outer_x + shared.outer_y * shared.outer_y + eps)

    a, b = target_width / target_height, width / height
    turn = angle(a - b, 1.0 + a * b)
    shape = 0.405284734569351 * turn * turn
    if MMDET:
        # Of equal shapes it is 0 (0/0 where the boxes are one).
        share = tl.where((iou > 0.5) & (shape > 0.0), shape / (1.0 - iou + shape), 0.0)
    else:
        share = shape / (1.0 - iou + shape + eps)
    value = iou - (distance * over_diagonal + shape * share)
    return Ciou(over_union, between_x, between_y, distance, over_diagonal, height, target_height, turn, share, value)


@triton.jit
def ciou_loss(pair, MMDET: tl.constexpr):
    """1 − CIoU."""
    value = pair.value
    if MMDET:
        value = tl.where(value < -1.0, -1.0, value)
    return 1.0 - value


@triton.jit
def _axis_gradients(low, high, target_low, target_high, by_inner, by_outer, size, target_size):
    """Along one axis, from ∂L/∂ of the widths of the intersection, the enclosing box and the two boxes to
    ∂L/∂(low, high) of box and of target.
    """
    left = _share(low, target_low)
    right = _share(target_high, high)
    grad_low = -(left * by_inner) - size - (1.0 - left) * by_outer
    grad_high = right * by_inner + size + (1.0 - right) * by_outer
    target_grad_low = -((1.0 - left) * by_inner) - target_size - left * by_outer
    target_grad_high = (1.0 - right) * by_inner + target_size + right * by_outer
    return grad_low, grad_high, target_grad_low, target_grad_high


@triton.jit
def ciou_gradients(box, target, shared, pair, given, eps, MMDET: tl.constexpr):
    """∂L/∂(corners) of box and of target, with ``given`` the upstream gradient of 1 − CIoU."""
    # 1. ∂L/∂(union, intersection, distance, diagonal, angle).
    if MMDET:
        given = tl.where(pair.value < -1.0, 0.0, given)
    of_union = given * shared.inner * pair.over_union * pair.over_union
    of_inner = -(given * pair.over_union) - of_union  # the union shrinks by the intersection
    of_distance = given * pair.over_diagonal
    of_diagonal = -2.0 * of_distance * pair.distance * pair.over_diagonal
    of_turn = 0.810569469138702 * given * pair.share * pair.turn

    # 2. ∂L/∂(width, height), by the area and by the shape.
    width, target_width = box.x2 - box.x1, target.x2 - target.x1
    turned = of_turn / (width * width + pair.height * pair.height)
    target_turned = of_turn / (target_width * target_width + pair.target_height * pair.target_height)
    side, target_side = pair.height, pair.target_height
    if MMDET:
        side, target_side = box.y2 - box.y1, target.y2 - target.y1
    of_width = of_union * side - turned * pair.height
    of_height = of_union * width + turned * width
    of_target_width = of_union * target_side + target_turned * pair.target_height
    of_target_height = of_union * target_width - target_turned * target_width

    # 3. To the corners.
    by_inner_x = tl.where(shared.inner_x > 0.0, of_inner * shared.inner_y, 0.0)
    by_inner_y = tl.where(shared.inner_y > 0.0, of_inner * shared.inner_x, 0.0)
    x1, x2, target_x1, target_x2 = _axis_gradients(
        box.x1, box.x2, target.x1, target.x2, by_inner_x, of_diagonal * shared.outer_x, of_width, of_target_width
    )
    y1, y2, target_y1, target_y2 = _axis_gradients(
        box.y1, box.y2, target.y1, target.y2, by_inner_y, of_diagonal * shared.outer_y, of_height, of_target_height
    )
    x, y = 0.5 * of_distance * pair.between_x, 0.5 * of_distance * pair.between_y
    return Corners(x1 - x, y1 - y, x2 - x, y2 - y), Corners(target_x1 + x, target_y1 + y, target_x2 + x, target_y2 + y)
