"""mmdet's Localization Distillation (arXiv 2102.12252): its loss on `gflv2.ops.distribution_kl`, and its head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet.models.dense_heads import LDHead as MmdetLDHead
from mmdet.models.losses import KnowledgeDistillationKLDivLoss as MmdetKnowledgeDistillationKLDivLoss
from mmengine.structures import InstanceData
from torch import Tensor

from gflv2 import nn
from gflv2.integrations.mmdet import fused, modules
from gflv2.nn.losses import AVERAGE_EPS
from gflv2.ops import distribution_kl
from gflv2.ops.levels import BINS_LIMITS
from gflv2.ops.reference.rows import box_rows

WEIGHT_OFFSET = 1e-6  # what LDHead adds to Σw, where GFLHead takes 1 at least


class KnowledgeDistillationKLDivLoss(nn.KnowledgeDistillationKLDivLoss, MmdetKnowledgeDistillationKLDivLoss):
    def forward(self, pred: Tensor, soft_label: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Arguments and result are mmdet's; of rows too long for the operation (classes, say), by mmdet's own code."""
        few = isinstance(pred, Tensor) and pred.dim() == 2 and BINS_LIMITS[0] <= pred.shape[1] <= BINS_LIMITS[1]
        if not few:
            return MmdetKnowledgeDistillationKLDivLoss.forward(self, pred, soft_label, *args, **kwargs)
        return nn.KnowledgeDistillationKLDivLoss.forward(self, pred, soft_label, *args, **kwargs)


def check_parts(head: Any) -> None:
    """What the operations compute is fixed.

    Raises:
        TypeError, ValueError: the head was built for something else; the message names the setting.
    """
    fused.check_parts(head)
    modules.check_losses(head, {"loss_ld": (MmdetKnowledgeDistillationKLDivLoss, KnowledgeDistillationKLDivLoss)})


class LDHead(MmdetLDHead):
    """The same head, its training losses as one operation and its distillation in one call for all levels.

    For unusual settings mmdet's own code goes on. Each loss is a list of one number for all levels. A class derived
    from it, or from mmdet's, keeps mmdet's code, which calls the methods that it may have replaced.
    """

    def loss_by_feat(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        batch_gt_instances: Sequence[InstanceData],
        batch_img_metas: Sequence[dict],
        soft_targets: Sequence[Tensor],
        batch_gt_instances_ignore: Sequence[InstanceData] | None = None,
    ) -> dict[str, list[Tensor]]:
        """Arguments are mmdet's; ``soft_targets``: the teacher's box logits, shaped as ``bbox_preds``."""
        if type(self) is not LDHead or not modules.covered(self, check_parts):
            return super().loss_by_feat(
                cls_scores, bbox_preds, batch_gt_instances, batch_img_metas, soft_targets, batch_gt_instances_ignore
            )
        found, targets = fused.losses(
            self,
            cls_scores,
            bbox_preds,
            batch_gt_instances,
            batch_img_metas,
            batch_gt_instances_ignore,
            weight_floor=1e-12,
            weight_offset=WEIGHT_OFFSET,
        )
        candidates = self.assigner.topk * len(cls_scores) * sum(len(image.bboxes) for image in batch_gt_instances)
        found["loss_ld"] = self.loss_ld.loss_weight * _divergence(
            bbox_preds, soft_targets, targets.weights, candidates, float(self.loss_ld.T)
        )
        return {name: [value] for name, value in found.items()}


def _divergence(
    student: Sequence[Tensor], teacher: Sequence[Tensor], weights: Tensor, most: int, temperature: float
) -> Tensor:
    """Sum over the positive points, each with its weight, of the mean of the four sides.

    Args:
        student, teacher: L levels (B, 4·R, H_l, W_l).
        weights: (B, A), 0 at points that are not positive.
        most: no more points than that are positive: which are need not be asked of the device.
    """
    weight, points = weights.flatten().topk(min(most, weights.numel()), sorted=False)
    # index_select: its backward adds at once, where that of indexing with a tensor would sort the points.
    mine, theirs = (
        box_rows(levels).flatten(0, 1).index_select(0, points).flatten(0, 1) for levels in (student, teacher)
    )
    sides = weight.repeat_interleave(4)
    return distribution_kl(mine, theirs, temperature=temperature, weight=sides, reduction="sum") / (4.0 + AVERAGE_EPS)
