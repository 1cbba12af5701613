"""mmdet's assigners by what the network predicts, on this project's operations; each a subclass of mmdet's.

Boxes that are no plain tensors (for them a point on a side is inside), masks, and another IoU calculator go to mmdet's
own code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.task_modules.assigners import AssignResult
from mmdet.models.task_modules.assigners import DynamicSoftLabelAssigner as MmdetDynamicSoftLabelAssigner
from mmdet.models.task_modules.assigners import SimOTAAssigner as MmdetSimOTAAssigner
from mmdet.models.task_modules.assigners import TaskAlignedAssigner as MmdetTaskAlignedAssigner
from mmdet.models.task_modules.assigners.dynamic_soft_label_assigner import INF
from mmdet.models.task_modules.assigners.sim_ota_assigner import INF as SIMOTA_INF
from mmdet.models.task_modules.assigners.task_aligned_assigner import INF as TASK_ALIGNED_INF
from torch import Tensor

from gflv2.integrations.mmdet.modules import plain_overlaps
from gflv2.ops import dynamic_soft_label, task_aligned
from gflv2.ops.dynamic_soft_label import DynamicAssignment


class _ByOperation:
    """``assign`` of one image: by the operation, or where that does not cover it by mmdet's own code.

    ``by_operation`` of a class gets (1, A, C) scores, (1, A, 4) boxes, (A, 4) priors, the boxes and labels of the one
    image, each in a list, and mmdet's further arguments.
    """

    def assign(
        self, pred_instances: Any, gt_instances: Any, gt_instances_ignore: Any = None, *args: Any, **kwargs: Any
    ) -> AssignResult:
        """Arguments and result are mmdet's."""
        if uncovered(self, gt_instances):
            return super().assign(pred_instances, gt_instances, gt_instances_ignore, *args, **kwargs)
        scores, predicted = pred_instances.scores[None], pred_instances.bboxes[None]
        truth = [gt_instances.bboxes], [gt_instances.labels]
        return self.by_operation(scores, predicted, pred_instances.priors, *truth, *args, **kwargs)


class DynamicSoftLabelAssigner(_ByOperation, MmdetDynamicSoftLabelAssigner):
    def by_operation(self, scores: Any, predicted: Any, priors: Any, boxes: Any, labels: Any, **_: Any) -> AssignResult:
        return result(assign_batch(self, scores, predicted, priors, boxes, labels), len(boxes[0]), -INF)


class SimOTAAssigner(_ByOperation, MmdetSimOTAAssigner):
    def by_operation(self, scores: Any, predicted: Any, priors: Any, boxes: Any, labels: Any, **_: Any) -> AssignResult:
        found = dynamic_soft_label(
            scores,
            predicted,
            priors[:, :2],
            priors[:, 2],
            boxes,
            labels,
            topk=self.candidate_topk,
            iou_weight=float(self.iou_weight),
            class_weight=float(self.cls_weight),
            center_radius=float(self.center_radius),
            cost="simota",
        )
        return result(found, len(boxes[0]), -SIMOTA_INF)


class TaskAlignedAssigner(_ByOperation, MmdetTaskAlignedAssigner):
    def by_operation(
        self, scores: Any, predicted: Any, priors: Any, boxes: Any, labels: Any, alpha: float = 1, beta: float = 6
    ) -> AssignResult:
        found = task_aligned(
            scores,
            predicted,
            (priors[:, :2] + priors[:, 2:4]) / 2.0,
            boxes,
            labels,
            topk=self.topk,
            alpha=float(alpha),
            beta=float(beta),
            overlap="iou",
            candidates="all",
            margin=0.01,
            zeros=False,
            contest="claiming",
            normalize=False,
        )
        count, index = len(boxes[0]), found.index[0]
        overlaps = torch.where(index > 0, found.iou[0], -TASK_ALIGNED_INF if count else 0.0)
        answer = AssignResult(count, index, overlaps, labels=found.labels[0])
        answer.assign_metrics = found.scores[0]
        return answer


def assign_batch(
    assigner: MmdetDynamicSoftLabelAssigner,
    logits: Tensor,
    predicted: Tensor,
    priors: Tensor,
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
) -> DynamicAssignment:
    """The whole batch with the settings of mmdet's assigner.

    Args:
        logits, predicted: (B, A, C) class logits and (B, A, 4) boxes of all points.
        priors: (A, 4) x, y and twice the stride.
        boxes, labels: B tensors (G_i, 4) and (G_i,).
    """
    return dynamic_soft_label(
        logits,
        predicted,
        priors[:, :2],
        priors[:, 2],
        boxes,
        labels,
        topk=assigner.topk,
        iou_weight=float(assigner.iou_weight),
        center_radius=float(assigner.soft_center_radius),
        cost="rtmdet",
    )


def uncovered(assigner: Any, *images: Any) -> str | None:
    """Why mmdet's own code assigns, for these settings and boxes; None: the operation does."""
    if not plain_overlaps(assigner.iou_calculator):
        return "another IoU than that of BboxOverlaps2D"
    for truth in images:
        if not isinstance(truth.bboxes, Tensor):
            return "boxes that are no plain tensors"
        if hasattr(truth, "masks") and isinstance(assigner, MmdetDynamicSoftLabelAssigner):
            return "the centres of masks"
    return None


def result(found: DynamicAssignment, boxes: int, background: float) -> AssignResult:
    """Of one image, in mmdet's terms: background has ``background`` as its overlap, or 0 where nothing is positive."""
    index, iou = found.index[0], found.iou[0]
    positive = index > 0
    overlaps = torch.where(positive, iou, torch.where(positive.any(), background, 0.0))
    return AssignResult(boxes, index, overlaps, labels=found.labels[0])
