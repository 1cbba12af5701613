"""Ultralytics' distribution focal loss, CIoU and assigner."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.harness.cases import Case


def dfl(case: Case) -> Callable[..., Tensor]:
    try:
        from ultralytics.utils.loss import DFLoss
    except ImportError as error:
        raise peers.Absent("not installed: pip install ultralytics") from error
    loss = DFLoss(case.bins)

    def call(logits: Tensor, target: Tensor, *, weight: Tensor, avg_factor: float) -> Tensor:
        # It wants the four sides of a box beside each other, and clamps the target in place.
        rows = loss(logits, target.clone()[:, None]).squeeze(1)
        return (rows * weight).sum() / avg_factor

    return call


def ciou(case: Case) -> Callable[..., Tensor]:
    try:
        from ultralytics.utils.metrics import bbox_iou
    except ImportError as error:
        raise peers.Absent("not installed: pip install ultralytics") from error

    def call(pred: Tensor, target: Tensor, *, weight: Tensor, avg_factor: float) -> Tensor:
        values = bbox_iou(pred, target, xywh=False, CIoU=True).squeeze(-1)
        return ((1 - values) * weight).sum() / avg_factor

    return call


def task_aligned(case: Case) -> Callable[..., tuple[Tensor, ...]]:
    """Its TaskAlignedAssigner, which lengthens no box here."""
    try:
        from ultralytics.utils.tal import TaskAlignedAssigner
    except ImportError as error:
        raise peers.Absent("not installed: pip install ultralytics") from error
    assigner = TaskAlignedAssigner(10, case.classes, alpha=0.5, beta=6.0, stride=[0])

    def call(scores: Tensor, boxes: Tensor, points: Tensor, gt_boxes: list[Tensor], gt_labels: list[Tensor]):
        corners, labels = torch.stack(gt_boxes), torch.stack(gt_labels)[..., None].float()
        return assigner(scores, boxes, points, labels, corners, torch.ones_like(labels))

    return call
