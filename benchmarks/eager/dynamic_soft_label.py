"""``dynamic_soft_label`` of a batch with RTMDet's costs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gflv2.ops import DynamicAssignment
from gflv2.ops.reference.giou import iou_rows

TOPK, RADIUS, IOU_WEIGHT = 13, 3.0, 3.0


def dense(logits, boxes, points, strides, gt_boxes, gt_labels) -> DynamicAssignment:
    """As the packages have it: image by image, the class cost of every candidate, box and class."""
    return _images(_class_cost_dense, logits, boxes, points, strides, gt_boxes, gt_labels)


def gathered(logits, boxes, points, strides, gt_boxes, gt_labels) -> DynamicAssignment:
    """The same without the classes that no box has: their sum is formed once a point."""
    return _images(_class_cost_gathered, logits, boxes, points, strides, gt_boxes, gt_labels)


def _images(class_cost, logits, boxes, points, strides, gt_boxes: Sequence[Tensor], gt_labels) -> DynamicAssignment:
    results = [
        _one_image(class_cost, logits[image], boxes[image], points, strides, truth, label)
        for image, (truth, label) in enumerate(zip(gt_boxes, gt_labels, strict=True))
    ]
    return DynamicAssignment(*(torch.stack(part) for part in zip(*results, strict=True)))


def _one_image(class_cost, logits, boxes, points, strides, truth, label):
    total = len(points)
    index = torch.zeros(total, dtype=torch.int64, device=points.device)
    iou, labels = torch.zeros(total, device=points.device), index - 1
    if len(truth) == 0:
        return index, iou, labels
    inside = torch.cat([points[:, None] - truth[:, :2], truth[:, 2:] - points[:, None]], -1).amin(-1) > 0
    valid = inside.any(1).nonzero().flatten()
    if len(valid) == 0:
        return index, iou, labels
    centre = (truth[:, :2] + truth[:, 2:]) / 2
    distance = (points[valid, None] - centre).square().sum(-1).sqrt() / strides[valid, None]
    ious = iou_rows(boxes[valid][:, None], truth)
    costs = class_cost(logits[valid].float(), label, ious)
    costs = costs - (ious + 1e-7).log() * IOU_WEIGHT + torch.pow(10, distance - RADIUS)

    k = ious.topk(min(TOPK, len(valid)), dim=0).values.sum(0).int().clamp(min=1)
    taken = torch.zeros_like(ious, dtype=torch.bool)
    for box, count in enumerate(k.tolist()):
        taken[costs[:, box].topk(count, largest=False).indices, box] = True
    several = taken.sum(1) > 1
    taken[several] = F.one_hot(costs[several].argmin(1), len(truth)).bool()
    positive = taken.any(1)
    own = taken.int().argmax(1)[positive]
    index[valid[positive]] = own + 1
    iou[valid[positive]] = ious[positive, own]
    labels[valid[positive]] = label[own]
    return index, iou, labels


def _class_cost_dense(logits: Tensor, label: Tensor, ious: Tensor) -> Tensor:
    target = F.one_hot(label, logits.shape[1]).float() * ious[..., None]
    spread = logits[:, None].expand_as(target)
    loss = F.binary_cross_entropy_with_logits(spread, target, reduction="none")
    return (loss * (target - spread.sigmoid()).square()).sum(-1)


def _class_cost_gathered(logits: Tensor, label: Tensor, ious: Tensor) -> Tensor:
    negative = F.softplus(logits) * logits.sigmoid().square()
    value = logits[:, label]
    loss = F.binary_cross_entropy_with_logits(value, ious, reduction="none")
    own = loss * (ious - value.sigmoid()).square()
    return negative.double().sum(1, keepdim=True).sub(negative[:, label]).add(own).float()


FORMS = {"dense": dense, "gathered": gathered}
