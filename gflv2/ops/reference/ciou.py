"""Complete IoU loss (arXiv 2005.03572) in its two conventions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gflv2.ops.checks import compute_dtype
from gflv2.ops.reference.giou import area, overlap
from gflv2.ops.reference.reduction import reduce_loss


def ciou_rows(pred: Tensor, target: Tensor, eps: float = 1e-7, convention: str = "ultralytics") -> Tensor:
    """CIoU = IoU − ρ²/c² − α·v over (…, 4), with α a constant."""
    mmdet = convention == "mmdet"
    common = overlap(pred, target)
    union = area(pred) + area(target) - common + eps
    width, target_width = (boxes[..., 2] - boxes[..., 0] for boxes in (pred, target))
    height, target_height = (boxes[..., 3] - boxes[..., 1] + eps for boxes in (pred, target))
    if not mmdet:
        union = union + eps * (width + target_width)  # the areas have these heights, too
    iou = common / union

    sides = torch.relu(torch.maximum(pred[..., 2:], target[..., 2:]) - torch.minimum(pred[..., :2], target[..., :2]))
    diagonal = sides.square().sum(-1) + eps
    # Corner by corner: of boxes that lie near each other these differences are exact.
    between = (target[..., :2] - pred[..., :2]) + (target[..., 2:] - pred[..., 2:])
    distance = between.square().sum(-1) / 4

    shape = 4 / math.pi**2 * (torch.atan(target_width / target_height) - torch.atan(width / height)).square()
    with torch.no_grad():
        share = shape / (1 - iou + shape + (0.0 if mmdet else eps))
        if mmdet:
            share = torch.where((iou > 0.5) & (shape != 0), share, 0.0)
    value = iou - (distance / diagonal + share * shape)
    return value.clamp(min=-1) if mmdet else value


def ciou(
    pred: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    avg_factor: float | Tensor | None = None,
    reduction: str = "mean",
    eps: float = 1e-7,
    convention: str = "ultralytics",
) -> Tensor:
    """1 − CIoU of aligned pairs.

    Args and result: as `gflv2.ops.ciou`.
    """
    dtype = compute_dtype(pred.dtype)
    loss = 1 - ciou_rows(pred.to(dtype), target.to(dtype), eps, convention)
    return reduce_loss(loss, weight, avg_factor, reduction)
