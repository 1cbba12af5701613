"""``TaskAlignedAssigner.forward`` of Ultralytics, by `gflv2.ops.task_aligned`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gflv2.ops.task_aligned import TaskAlignment, task_aligned


def covered(assigner: Any) -> bool:
    """Whether the operation computes what the assigner does.

    A class derived from the package's has other overlaps, and the operation has no ``eps`` of 0.
    """
    from ultralytics.utils.tal import TaskAlignedAssigner

    return type(assigner) is TaskAlignedAssigner and assigner.eps > 0


def assign(
    assigner: Any, scores: Tensor, boxes: Tensor, points: Tensor, labels: Tensor, gt_boxes: Tensor, mask: Tensor
) -> TaskAlignment:
    """With the settings of the package's assigner.

    Args:
        scores: (B, A, C) probabilities.
        boxes, points: (B, A, 4) and (A, 2) in pixels.
        labels, gt_boxes, mask: (B, G, 1), (B, G, 4) and (B, G, 1); a box whose mask is 0 is padding.
    """
    return task_aligned(
        scores,
        boxes,
        points,
        gt_boxes.masked_fill(mask == 0, torch.nan),  # such a box has no points
        labels.squeeze(-1).long(),
        topk=assigner.topk,
        alpha=float(assigner.alpha),
        beta=float(assigner.beta),
        min_side=float(assigner.stride_val),
        final_topk=assigner.topk2 if assigner.topk2 != assigner.topk else None,
        eps=float(assigner.eps),
    )


def own_boxes(index: Tensor, gt_boxes: Tensor) -> Tensor:
    """(B, A, 4): the box of each point; of background the first of its image, as in the package."""
    return gt_boxes.gather(1, (index - 1).clamp(min=0)[..., None].expand(-1, -1, gt_boxes.shape[-1]))


def forward(original: Callable) -> Callable:
    """The method."""

    @torch.no_grad()
    def forward(
        self: Any,
        pd_scores: Tensor,
        pd_bboxes: Tensor,
        anc_points: Tensor,
        gt_labels: Tensor,
        gt_bboxes: Tensor,
        mask_gt: Tensor,
        **extra: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Arguments and the five results, their dtypes too, are the package's."""
        if extra or gt_bboxes.shape[1] == 0 or not covered(self):
            return original(self, pd_scores, pd_bboxes, anc_points, gt_labels, gt_bboxes, mask_gt, **extra)
        found = assign(self, pd_scores, pd_bboxes, anc_points, gt_labels, gt_bboxes, mask_gt)
        own = (found.index - 1).clamp(min=0)
        labels = gt_labels.squeeze(-1).long().gather(1, own).clamp(min=0)
        dtype = torch.promote_types(pd_scores.dtype, pd_bboxes.dtype)
        scores = torch.zeros(*labels.shape, self.num_classes, dtype=dtype, device=labels.device)
        scores.scatter_(2, labels[..., None], found.scores[..., None].to(dtype))
        return labels, own_boxes(found.index, gt_bboxes), scores, found.index > 0, own

    return forward
