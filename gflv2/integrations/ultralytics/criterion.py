"""The loss of Ultralytics' detectors around the task-aligned assigner, in as many passes as it needs.

The package makes a dense target of all points and classes, copies both maps of logits to points-first, and takes the
gradient of all boxes. Here the class loss reads its map where it lies, with one label and score a point, and only the
positive points' distributions get a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gflv2.integrations.ultralytics import assigner as tal
from gflv2.ops.integral import integral
from gflv2.ops.qfl import qfl
from gflv2.ops.task_aligned import TaskAlignment


def covered(criterion: Any) -> bool:
    """Whether the operations compute what the criterion was built for, and nobody has replaced a part of it."""
    from ultralytics.utils.loss import BboxLoss, DFLoss, v8DetectionLoss

    kind, bce = type(criterion), criterion.bce
    own = all(getattr(kind, name) is getattr(v8DetectionLoss, name) for name in ("bbox_decode", "preprocess"))
    plain = type(bce) is nn.BCEWithLogitsLoss and bce.weight is bce.pos_weight is None and bce.reduction == "none"
    boxes = criterion.use_dfl and type(criterion.bbox_loss) is BboxLoss and type(criterion.bbox_loss.dfl_loss) is DFLoss
    return own and plain and boxes and criterion.class_weights is None and tal.covered(criterion.assigner)


def get_assigned_targets_and_loss(original: Callable) -> Callable:
    """``v8DetectionLoss.get_assigned_targets_and_loss``."""

    def get_assigned_targets_and_loss(
        self: Any, preds: dict[str, Tensor], batch: dict[str, Any], **assign_kwargs: Any
    ) -> tuple[tuple[Tensor, ...], Tensor, dict[str, Tensor]]:
        """Arguments and results are the package's; for unusual settings its own code goes on."""
        if assign_kwargs or not covered(self):
            return original(self, preds, batch, **assign_kwargs)
        return _losses(self, preds, batch)

    return get_assigned_targets_and_loss


def _losses(
    criterion: Any, preds: dict[str, Tensor], batch: dict[str, Any]
) -> tuple[tuple[Tensor, ...], Tensor, dict[str, Tensor]]:
    from ultralytics.utils.metrics import bbox_iou
    from ultralytics.utils.tal import make_anchors

    boxes, logits = preds["boxes"], preds["scores"]  # (B, 4·R, A) and (B, C, A)
    points, strides = make_anchors(preds["feats"], criterion.stride, 0.5)  # (A, 2) in strides, (A, 1)
    points, strides = points.float(), strides.float()
    labels, truth, mask = _truth(criterion, preds, batch)
    with torch.no_grad():
        distances = integral([boxes.unsqueeze(2)], criterion.proj)
        predicted = torch.cat([points - distances[..., :2], points + distances[..., 2:]], -1) * strides
        found = _assigned(criterion.assigner, logits, predicted, points * strides, labels, truth, mask)
        total = found.scores.sum().clamp(min=1)

    # Binary cross entropy is the quality focal loss at β = 0.
    loss_classes = qfl((found.labels, found.scores), logits=[logits.unsqueeze(2)], beta=0.0, reduction="sum") / total

    image, place = (found.index > 0).nonzero(as_tuple=True)
    weight = found.scores[image, place][:, None]
    rows = boxes.unflatten(1, (4, -1))[image, :, :, place]  # (P, 4, R)
    centres = points[place]
    own = truth[image, found.index[image, place] - 1] / strides[place]
    positive = integral(rows, criterion.proj, points=centres, strides=torch.ones_like(centres[:, 0]))
    overlap = bbox_iou(positive, own, xywh=False, CIoU=True)
    loss_boxes = ((1.0 - overlap) * weight).sum() / total
    sides = torch.cat([centres - own[:, :2], own[:, 2:] - centres], -1)
    loss_sides = (criterion.bbox_loss.dfl_loss(rows.flatten(0, 1), sides) * weight).sum() / total

    gains = criterion.hyp
    loss = torch.stack([loss_boxes * gains.box, loss_classes * gains.cls, loss_sides * gains.dfl])
    index = (found.index - 1).clamp(min=0)
    own = tal.own_boxes(found.index, truth) if truth.shape[1] else torch.zeros_like(predicted)
    assigned = (found.index > 0, index, own, points, strides)
    return assigned, loss, dict(zip(criterion.loss_names, loss.detach(), strict=False))


def _truth(criterion: Any, preds: dict[str, Tensor], batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Labels (B, G, 1), boxes (B, G, 4) in pixels, and which of them are no padding, (B, G, 1)."""
    height, width = preds["feats"][0].shape[2:]
    device = preds["scores"].device
    size = torch.tensor([width, height, width, height], dtype=torch.float32, device=device) * criterion.stride[0]
    rows = [batch["batch_idx"].view(-1, 1), batch["cls"].view(-1, 1), batch["bboxes"]]
    padded = criterion.preprocess(torch.cat(rows, 1).to(device), len(preds["scores"]), scale_tensor=size)
    labels, boxes = padded.split((1, 4), 2)
    return labels, boxes, boxes.sum(2, keepdim=True) > 0


def _assigned(
    assigner: Any, logits: Tensor, predicted: Tensor, points: Tensor, labels: Tensor, truth: Tensor, mask: Tensor
) -> TaskAlignment:
    """The assignment; only the classes that some box has are turned into probabilities, where that is less work."""
    boxes, classes = truth.shape[1], logits.shape[1]
    if not 0 < boxes < classes:
        return tal.assign(assigner, logits.sigmoid().transpose(1, 2), predicted, points, labels, truth, mask)
    ids = labels.long()
    known = (ids >= 0) & (ids < classes)
    chosen = logits.gather(1, ids.clamp(0, classes - 1).expand(-1, -1, logits.shape[2])).sigmoid()
    numbers = torch.arange(boxes, device=ids.device)[:, None].expand_as(ids)
    found = tal.assign(assigner, chosen.transpose(1, 2), predicted, points, numbers, truth, mask * known)
    own = ids.squeeze(-1).gather(1, (found.index - 1).clamp(min=0))
    return found._replace(labels=torch.where(found.index > 0, own, -1))
