"""RTMDet's heads in mmdet, with one assignment for the whole batch and each loss in one call for all levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.dense_heads import RTMDetHead as MmdetRTMDetHead
from mmdet.models.dense_heads import RTMDetSepBNHead as MmdetRTMDetSepBNHead
from mmdet.models.task_modules.prior_generators import MlvlPointGenerator
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor, nn

from gflv2.integrations.mmdet import assigners, modules
from gflv2.ops import giou, qfl
from gflv2.ops.checks import bad_type

_LOSSES = {
    "loss_cls": (modules.MmdetQualityFocalLoss, modules.QualityFocalLoss),
    "loss_bbox": (modules.MmdetGIoULoss, modules.GIoULoss),
}
_ASSIGNERS = (assigners.MmdetDynamicSoftLabelAssigner, assigners.DynamicSoftLabelAssigner)


def check_parts(head: nn.Module) -> None:
    """What the operations compute is fixed.

    Raises:
        TypeError, ValueError: the head was built for something else; the message names the setting.
    """
    modules.check_losses(head, _LOSSES)
    if type(head.prior_generator) is not MlvlPointGenerator:
        bad_type("anchor_generator", "a MlvlPointGenerator, not a class derived from it", head.prior_generator)
    if not head.train_cfg:
        return
    if type(head.assigner) not in _ASSIGNERS or assigners.uncovered(head.assigner):
        expected = "a DynamicSoftLabelAssigner, not a class derived from it, on BboxOverlaps2D without dtype"
        bad_type("train_cfg.assigner", expected, head.assigner)
    modules.check_sampling(head)


def losses(
    head: nn.Module,
    cls_scores: Sequence[Tensor],
    bbox_preds: Sequence[Tensor],
    batch_gt_instances: Sequence[InstanceData],
    batch_img_metas: Sequence[dict],
) -> dict[str, list[Tensor]]:
    """The two weighted losses of a batch by mmdet's names.

    The normaliser stays on the device, and all points go through the box loss with their weight, background with 0:
    nothing waits for a count of positives.

    Args:
        cls_scores: L levels (B, C, H_l, W_l) of class logits.
        bbox_preds: L levels (B, 4, H_l, W_l), distances in pixels.
    """
    shapes = [level.shape[2:] for level in cls_scores]
    priors = torch.cat(head.prior_generator.grid_priors(shapes, device=cls_scores[0].device, with_stride=True))
    distances = torch.cat([level.flatten(2) for level in bbox_preds], 2).transpose(1, 2).float()
    points = priors[:, :2]
    predicted = torch.cat([points - distances[..., :2], points + distances[..., 2:]], -1)
    valid = _valid(head, shapes, batch_img_metas, priors.device)
    boxes = [image.bboxes for image in batch_gt_instances]
    with torch.no_grad():
        # A box that is no number takes its point out of the assignment: it lies in the padding of its own image.
        seen = predicted if valid is None else torch.where(valid[..., None], predicted, torch.nan)
        logits = torch.cat([level.flatten(2) for level in cls_scores], 2).transpose(1, 2)
        labels = [image.labels for image in batch_gt_instances]
        found = assigners.assign_batch(head.assigner, logits, seen, priors, boxes, labels)
        targets = _own_boxes(found.index, boxes)
        total = reduce_mean(found.iou.sum()).clamp(min=1)
    weight = None if valid is None else valid.float()
    loss_cls = qfl(
        (found.labels, found.iou), logits=list(cls_scores), beta=head.loss_cls.beta, weight=weight, reduction="sum"
    )
    # Weight 0 is not enough where the box of background is infinite, as exp() in float16 makes it.
    own = torch.where((found.index > 0)[..., None], predicted, targets)
    loss_bbox = giou(
        own.flatten(0, 1),
        targets.flatten(0, 1),
        weight=found.iou.flatten(),
        eps=head.loss_bbox.eps,
        reduction="sum",
    )
    return {
        "loss_cls": [head.loss_cls.loss_weight * loss_cls / total],
        "loss_bbox": [head.loss_bbox.loss_weight * loss_bbox / total],
    }


def _valid(
    head: nn.Module, shapes: Sequence[tuple[int, int]], metas: Sequence[dict], device: torch.device
) -> Tensor | None:
    """(B, A): which points lie within each image's own padding; None: all do."""
    grid = head.prior_generator
    last = [
        ((rows - 1) * stride[1], (columns - 1) * stride[0])
        for (rows, columns), stride in zip(shapes, grid.strides, strict=True)
    ]
    sizes = [meta["pad_shape"][:2] for meta in metas]
    if all(height > y and width > x for height, width in sizes for y, x in last):
        return None
    return torch.stack([torch.cat(grid.valid_flags(shapes, size, device)) for size in sizes])


def _own_boxes(index: Tensor, boxes: Sequence[Tensor]) -> Tensor:
    """(B, A, 4): the box of each point; of background any finite one."""
    most = max(len(image) for image in boxes)
    if most == 0:
        return torch.zeros(*index.shape, 4, device=index.device)
    padded = nn.utils.rnn.pad_sequence(list(boxes), batch_first=True).float()
    return padded.gather(1, (index - 1).clamp(min=0)[..., None].expand(-1, -1, 4))


class _OnceForTheBatch:
    """``loss_by_feat`` of a head; for unusual settings, boxes or masks mmdet's own code goes on.

    Each loss is a list of one number for all levels. A class derived from it, or from mmdet's, keeps mmdet's code,
    which calls the methods that it may have replaced.
    """

    def loss_by_feat(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        batch_gt_instances: Sequence[InstanceData],
        batch_img_metas: Sequence[dict],
        batch_gt_instances_ignore: Any = None,
    ) -> dict[str, list[Tensor]]:
        """Arguments are mmdet's; like mmdet's assigner, it does not look at boxes to be ignored."""
        own = type(self) in HEADS and modules.covered(self, check_parts)
        if not own or assigners.uncovered(self.assigner, *batch_gt_instances):
            return super().loss_by_feat(
                cls_scores, bbox_preds, batch_gt_instances, batch_img_metas, batch_gt_instances_ignore
            )
        return losses(self, cls_scores, bbox_preds, batch_gt_instances, batch_img_metas)


class RTMDetHead(_OnceForTheBatch, MmdetRTMDetHead):
    pass


class RTMDetSepBNHead(_OnceForTheBatch, MmdetRTMDetSepBNHead):
    pass


HEADS = (RTMDetHead, RTMDetSepBNHead)
