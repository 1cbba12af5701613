"""mmdet's classes on this project's operations, each a subclass of mmdet's: its heads ask with isinstance()."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet.models.dense_heads.gfl_head import GFLHead as MmdetGFLHead
from mmdet.models.dense_heads.gfl_head import Integral as MmdetIntegral
from mmdet.models.losses import DistributionFocalLoss as MmdetDistributionFocalLoss
from mmdet.models.losses import GIoULoss as MmdetGIoULoss
from mmdet.models.losses import QualityFocalLoss as MmdetQualityFocalLoss
from mmdet.models.task_modules.assigners import AssignResult, BboxOverlaps2D
from mmdet.models.task_modules.assigners import ATSSAssigner as MmdetATSSAssigner
from mmdet.structures.bbox import HorizontalBoxes
from torch import Tensor

from gflv2 import nn
from gflv2.integrations.mmdet import fused
from gflv2.nn.assigner import square_sides
from gflv2.ops.levels import MAX_LEVELS


class QualityFocalLoss(nn.QualityFocalLoss, MmdetQualityFocalLoss):
    pass


class DistributionFocalLoss(nn.DistributionFocalLoss, MmdetDistributionFocalLoss):
    pass


class GIoULoss(nn.GIoULoss, MmdetGIoULoss):
    pass


class Integral(nn.Integral, MmdetIntegral):
    pass


class GFLHead(MmdetGFLHead):
    """The same head, its training losses as one operation; for unusual settings mmdet's own code goes on.

    Each loss is a list of one number for all levels. Subclasses of mmdet's head, LDHead say, are not touched.
    """

    def loss_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        batch_gt_instances: list[Any],
        batch_img_metas: list[dict],
        batch_gt_instances_ignore: list[Any] | None = None,
    ) -> dict[str, list[Tensor]]:
        arguments = (cls_scores, bbox_preds, batch_gt_instances, batch_img_metas, batch_gt_instances_ignore)
        if not fused.covered(self):
            return super().loss_by_feat(*arguments)
        return {name: [value] for name, value in fused.losses(self, *arguments, weight_floor=1.0).items()}


class ATSSAssigner(MmdetATSSAssigner):
    def assign(
        self,
        pred_instances: Any,
        num_level_priors: Sequence[int],
        gt_instances: Any,
        gt_instances_ignore: Any = None,
    ) -> AssignResult:
        """Arguments and result are mmdet's; what the operation does not cover, mmdet does itself."""
        priors, counts = _tensor(pred_instances.priors), [int(count) for count in num_level_priors]
        boxes = _tensor(gt_instances.bboxes)
        ignored = None if gt_instances_ignore is None else _tensor(gt_instances_ignore.bboxes)
        sides = None
        if self._covered(priors, boxes, ignored if self.ignore_iof_thr > 0 else boxes, counts):
            sides = square_sides(priors, counts)
        if sides is None:
            return super().assign(pred_instances, num_level_priors, gt_instances, gt_instances_ignore)
        assigner = nn.ATSSAssigner(self.topk, self.ignore_iof_thr)
        index, overlaps, labels = assigner.assign_squares(priors, counts, sides, boxes, gt_instances.labels, ignored)
        return AssignResult(len(boxes), index, overlaps, labels=labels)

    def _covered(self, priors: Any, boxes: Any, ignored: Any, counts: Sequence[int]) -> bool:
        """Whether the operation computes what mmdet would with these settings."""
        plain = type(self.iou_calculator) is BboxOverlaps2D and self.iou_calculator.dtype is None
        tensors = isinstance(priors, Tensor) and isinstance(boxes, Tensor) and isinstance(ignored, (Tensor, type(None)))
        return self.alpha is None and plain and tensors and len(priors) > 0 and 1 <= len(counts) <= MAX_LEVELS


def _tensor(boxes: Any) -> Any:
    """Axis-parallel boxes as a tensor; other kinds as they are."""
    return boxes.tensor if isinstance(boxes, HorizontalBoxes) else boxes
