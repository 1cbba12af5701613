"""``task_aligned`` of a batch with CIoU, candidates inside the boxes, and all boxes around a point competing for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gflv2.ops import TaskAlignment
from gflv2.ops.reference.boxes import pad_boxes
from gflv2.ops.reference.task_aligned import ciou_and_union


def dense(
    scores: Tensor,
    boxes: Tensor,
    points: Tensor,
    gt_boxes: Sequence[Tensor],
    gt_labels: Sequence[Tensor],
    *,
    topk: int = 10,
    alpha: float = 0.5,
    beta: float = 6.0,
    eps: float = 1e-9,
) -> TaskAlignment:
    """As the packages have it: every box with every point, (B, G, A)."""
    corners, exists = pad_boxes(gt_boxes)
    labels, _ = pad_boxes(gt_labels)
    batch, total, _ = scores.shape
    if corners.shape[1] == 0:
        index = torch.zeros(batch, total, dtype=torch.int64, device=scores.device)
        return TaskAlignment(index, index.float(), index - 1, index.float())
    low, high = corners[:, :, None, :2], corners[:, :, None, 2:]
    inside = torch.cat([points - low, high - points], dim=-1).amin(-1) > eps
    inside &= exists[..., None]
    overlap = ciou_and_union(boxes[:, None], corners[:, :, None])[0].clamp(min=0) * inside
    score = scores.gather(2, labels[:, None].expand(-1, total, -1)).transpose(1, 2).float()
    metric = score.pow(alpha) * overlap.pow(beta)
    best = metric.topk(min(topk, total), dim=-1).indices
    chosen = torch.zeros_like(inside).scatter_(-1, best, True) & inside
    several = chosen.sum(1, keepdim=True) > 1
    highest = torch.zeros_like(chosen).scatter_(1, overlap.argmax(1, keepdim=True), True)
    chosen = torch.where(several, highest, chosen)
    metric, overlap = metric * chosen, overlap * chosen
    target = metric * overlap.amax(-1, keepdim=True) / (metric.amax(-1, keepdim=True) + eps)
    positive, box = chosen.max(1)
    return TaskAlignment(
        torch.where(positive, box + 1, 0),
        overlap.amax(1),
        torch.where(positive, labels.gather(1, box), -1),
        target.amax(1),
    )


FORMS = {"dense": dense}
