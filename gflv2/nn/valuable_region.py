"""The valuable localisation region (arXiv 2102.12252, algorithm 1): points that are not positive, but near a box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gflv2.ops import Assignment
from gflv2.ops.reference.atss import chunks, nearest, threshold_of
from gflv2.ops.reference.boxes import pad_boxes, points_of_levels, strides_of_points, valid_cells
from gflv2.ops.reference.giou import iou_rows


@torch.no_grad()
def valuable_region(
    assignment: Assignment,
    boxes: Sequence[Tensor] | Tensor,
    level_shapes: Sequence[tuple[int, int]],
    strides: Sequence[float],
    *,
    low: float = 0.25,
    topk: int = 9,
    padded_sizes: Sequence[tuple[float, float]] | None = None,
    counts: Tensor | None = None,
    offset: float = 0.0,
    anchor_scale: float = 8.0,
) -> Tensor:
    """How much each point of the valuable localisation region counts; 0 outside.

    With the ATSS threshold t of a box, a negative point is in its region where low·t ≤ DIoU < t, with the DIoU
    (arXiv 1911.08287) of the box and the point's anchor. It counts as much as the highest IoU of its anchor with such
    a box. Positive and ignored points have no part in it.

    Args:
        assignment: of `gflv2.ops.atss` with the same arguments.
        low: lower end in thresholds, in [0, 1].
        boxes, level_shapes, strides, topk, padded_sizes, counts, offset, anchor_scale: as `gflv2.ops.atss`.

    Returns:
        (B, A) float32 in [0, 1]; a constant. Boxes are worked off in chunks, so memory is bounded; nothing waits for
        the device.
    """
    padded, exists = pad_boxes(boxes, counts)
    padded = padded.detach().float()
    batch, slots = exists.shape
    kind: dict[str, Any] = {"device": padded.device}
    sizes = [height * width for height, width in level_shapes]
    points = points_of_levels(level_shapes, strides, offset=offset, **kind)
    half = strides_of_points(level_shapes, strides, **kind)[:, None] * (anchor_scale / 2)
    anchors = torch.cat([points - half, points + half], dim=1)
    valid = valid_cells(level_shapes, strides, padded_sizes, batch=batch, **kind)
    region = torch.zeros(batch, len(points), **kind)
    for chunk in chunks(slots, batch * len(points)):
        part = padded[:, chunk]
        candidates, chosen = nearest(part, points, sizes, valid, assignment.index < 0, topk)
        chosen = chosen & exists[:, chunk, None]
        threshold = threshold_of(iou_rows(anchors[candidates], part[:, :, None]), chosen)[..., None]
        iou = iou_rows(anchors, part[:, :, None])
        diou = iou - _centre_distance(anchors, part[:, :, None])
        # A NaN, of a box without a threshold or of a broken one, compares as false.
        inside = (diou >= low * threshold) & (diou < threshold)
        region = torch.maximum(region, torch.where(inside, iou, 0.0).amax(1))
    return torch.where(valid & (assignment.index == 0), region, 0.0)


def _centre_distance(a: Tensor, b: Tensor) -> Tensor:
    """Squared distance of the centres ÷ squared diagonal of the enclosing box, in [0, 1]."""
    between = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2
    diagonal = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    return between.square().sum(-1) / diagonal.square().sum(-1)
