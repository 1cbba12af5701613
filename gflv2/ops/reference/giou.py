"""Generalised IoU loss (arXiv 1902.09630) and the IoU of aligned boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from gflv2.ops.checks import compute_dtype
from gflv2.ops.reference.reduction import reduce_loss


def area(boxes: Tensor) -> Tensor:
    """(…, 4) → (…): (x2 − x1)·(y2 − y1), not clamped."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Area of the intersection, broadcasting over (…, 4)."""
    # relu and not clamp: at a width of exactly 0 the gradient is 0.
    size = torch.relu(torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2]))
    return size[..., 0] * size[..., 1]


def at_least(areas: Tensor, eps: float) -> Tensor:
    """max(areas, eps)."""
    # maximum and not clamp, as the authors have it: at equality half of the gradient passes, in every version of torch.
    return torch.maximum(areas, areas.new_full((), eps))


def iou_rows(a: Tensor, b: Tensor, eps: float = 1e-6) -> Tensor:
    """IoU, broadcasting over (…, 4): intersection / max(union, eps)."""
    common = overlap(a, b)
    return common / at_least(area(a) + area(b) - common, eps)


def giou_rows(pred: Tensor, target: Tensor, eps: float = 1e-6) -> Tensor:
    """GIoU = IoU − (enclosing − union) / enclosing over (…, 4), with max(union, eps) and max(enclosing, eps)."""
    common = overlap(pred, target)
    union = at_least(area(pred) + area(target) - common, eps)
    # Equal corners share the gradient half and half (minimum and maximum of torch do so).
    sides = torch.relu(torch.maximum(pred[..., 2:], target[..., 2:]) - torch.minimum(pred[..., :2], target[..., :2]))
    enclosing = at_least(sides[..., 0] * sides[..., 1], eps)
    return common / union - (enclosing - union) / enclosing


def iou(pred: Tensor, target: Tensor, *, eps: float = 1e-6) -> Tensor:
    """IoU of aligned pairs, (N,).

    Args and result: as `gflv2.ops.iou`.
    """
    dtype = compute_dtype(pred.dtype)
    return iou_rows(pred.to(dtype), target.to(dtype), eps)


def giou(
    pred: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    avg_factor: float | Tensor | None = None,
    reduction: str = "mean",
    eps: float = 1e-6,
) -> Tensor:
    """1 − GIoU of aligned pairs.

    Args and result: as `gflv2.ops.giou`.
    """
    dtype = compute_dtype(pred.dtype)
    loss = 1 - giou_rows(pred.to(dtype), target.to(dtype), eps)
    return reduce_loss(loss, weight, avg_factor, reduction)
