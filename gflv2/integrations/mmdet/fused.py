"""The training head of GFLV1 and GFLV2 in mmdet's terms: assignment, targets and all losses on the fused operations.

And mmdet's own GFLHead with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.dense_heads.gfl_head import GFLHead as MmdetGFLHead
from mmdet.models.task_modules.coders import DistancePointBBoxCoder
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from mmdet.structures.bbox import get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor, nn

from gflv2.integrations.mmdet import modules
from gflv2.ops import GFLTargets, atss, gfl_loss, gfl_targets, normalisers
from gflv2.ops.checks import bad_type, bad_value
from gflv2.ops.levels import BINS_LIMITS, MAX_LEVELS

GIOU_EPS = 1e-6
# A class derived from one of these may compute something else, so only mmdet's own and ours count.
_LOSSES = {
    "loss_cls": (modules.MmdetQualityFocalLoss, modules.QualityFocalLoss),
    "loss_bbox": (modules.MmdetGIoULoss, modules.GIoULoss),
    "loss_dfl": (modules.MmdetDistributionFocalLoss, modules.DistributionFocalLoss),
}


def check_parts(head: nn.Module) -> None:
    """What the operations compute is fixed.

    Raises:
        TypeError, ValueError: the head was built for something else; the message names the setting.
    """
    modules.check_losses(head, _LOSSES)
    if head.loss_bbox.eps != GIOU_EPS:
        bad_value("loss_bbox.eps", str(GIOU_EPS), head.loss_bbox.eps)
    if type(head.integral) not in (modules.MmdetIntegral, modules.Integral):
        bad_type("integral", "an Integral, not a class derived from it", type(head.integral).__name__)
    least, most = (bins - 1 for bins in BINS_LIMITS)
    if not least <= head.reg_max <= most:
        bad_value("reg_max", f"{least} to {most}", head.reg_max)
    if type(head.bbox_coder) is not DistancePointBBoxCoder:
        bad_type("bbox_coder", "a DistancePointBBoxCoder", head.bbox_coder)
    grid = head.prior_generator
    square = type(grid) is AnchorGenerator and list(grid.num_base_priors) == [1] * grid.num_levels
    square = square and grid.ratios.numpy().tolist() == [1.0] and grid.centers is None
    square = square and list(grid.strides) == [(size, size) for size in grid.base_sizes]
    if not square:
        expected = "an AnchorGenerator of one square anchor a cell, its base size the stride"
        bad_value("anchor_generator", expected, grid)
    if grid.num_levels > MAX_LEVELS:
        bad_value("anchor_generator.strides", f"at most {MAX_LEVELS} levels", grid.num_levels)
    if not head.train_cfg:
        return
    assigner = head.assigner
    plain = type(assigner) in (modules.MmdetATSSAssigner, modules.ATSSAssigner) and assigner.alpha is None
    if not plain or not modules.plain_overlaps(assigner.iou_calculator):
        expected = "an ATSSAssigner, not a class derived from it, without alpha, on BboxOverlaps2D without dtype"
        bad_type("train_cfg.assigner", expected, assigner)
    modules.check_sampling(head)


def grid_of(head: nn.Module) -> dict[str, Any]:
    """Strides and point offset, as the operations take them."""
    grid = head.prior_generator
    return {"strides": [float(stride[0]) for stride in grid.strides], "offset": float(grid.center_offset)}


def losses(
    head: nn.Module,
    cls_scores: Sequence[Tensor],
    bbox_preds: Sequence[Tensor],
    batch_gt_instances: Sequence[InstanceData],
    batch_img_metas: Sequence[dict],
    batch_gt_instances_ignore: Sequence[InstanceData] | None = None,
    *,
    weight_floor: float,
    weight_offset: float = 0.0,
    **options: Any,
) -> tuple[dict[str, Tensor], GFLTargets]:
    """The three weighted losses of a batch by mmdet's names, and what the points learn.

    Arguments are those of mmdet's ``loss_by_feat``; the box losses are divided by max(Σw, ``weight_floor``) +
    ``weight_offset``; ``options`` are ``gfl_loss``'s scales, predictor, ….
    """
    options = {**grid_of(head), "projection": head.integral.project, **options}
    boxes = [get_box_tensor(image.bboxes) for image in batch_gt_instances]
    padded_sizes = [tuple(meta["pad_shape"][:2]) for meta in batch_img_metas]
    threshold = max(float(head.assigner.ignore_iof_thr), 0.0)
    ignore_boxes = None
    if batch_gt_instances_ignore is not None and threshold > 0:
        ignore_boxes = [get_box_tensor(image.bboxes) for image in batch_gt_instances_ignore]
    with torch.no_grad():
        assignment = atss(
            boxes,
            [image.labels for image in batch_gt_instances],
            [tuple(level.shape[2:]) for level in cls_scores],
            options["strides"],
            topk=head.assigner.topk,
            padded_sizes=padded_sizes,
            ignore_boxes=ignore_boxes,
            ignore_iof_thr=threshold,
            anchor_scale=float(head.prior_generator.scales.numpy()[0]),  # the generator's tensors stay on the host
            offset=options["offset"],
        )
    targets = gfl_targets(cls_scores, bbox_preds, assignment, boxes, padded_sizes=padded_sizes, **options)
    divisors = normalisers(targets.sums, weight_floor=weight_floor)
    if weight_offset:
        divisors = torch.stack([divisors[0], divisors[1] + weight_offset])
    found = gfl_loss(
        cls_scores,
        bbox_preds,
        targets,
        divisors,
        beta=head.loss_cls.beta,
        loss_weights=tuple(float(getattr(head, name).loss_weight) for name in _LOSSES),
        **options,
    )
    return dict(zip(_LOSSES, found, strict=True)), targets


class GFLHead(MmdetGFLHead):
    """The same head, its training losses as one operation; for unusual settings mmdet's own code goes on.

    Each loss is a list of one number for all levels. A class derived from it, or from mmdet's, keeps mmdet's code,
    which calls the methods that it may have replaced.
    """

    def loss_by_feat(self, *args: Any, **kwargs: Any) -> dict[str, list[Tensor]]:
        """Arguments are mmdet's."""
        if type(self) is not GFLHead or not modules.covered(self, check_parts):
            return super().loss_by_feat(*args, **kwargs)
        found, _ = losses(self, *args, **kwargs, weight_floor=1.0)
        return {name: [value] for name, value in found.items()}
