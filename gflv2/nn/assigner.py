"""ATSS as an object with mmdet's interface: one image at a time, priors given; and for a whole batch on a grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gflv2.ops import Assignment, atss
from gflv2.ops.checks import bad_type, bad_value, check_number, check_tensor

_ROUNDING = 1e-4  # relative difference of sides that may come from rounding alone


class AssignResult(NamedTuple):
    """The assignment of one image's priors, under mmdet's names.

    Attributes:
        num_gts: number of boxes.
        gt_inds: (A,) int64: 0 negative, −1 ignored, k > 0: box k − 1.
        max_overlaps: (A,) IoU with that box; −1e8 where not positive, 0 in an image without boxes.
        labels: (A,) int64, −1 where not positive.
    """

    num_gts: int
    gt_inds: Tensor
    max_overlaps: Tensor
    labels: Tensor


class ATSSAssigner:
    """Adaptive Training Sample Selection (arXiv 1912.02424).

    Candidates at equal distance: the lower index first (mmdet leaves it to topk). The threshold is formed in float64
    and rounded once (mmdet: in float32); an overlap within that rounding of it may fall on either side.

    Args:
        topk: candidates of a box on each level.
        ignore_iof_thr: priors that lie in an ignore box by more than this share are left out; not positive: none are.
    """

    def __init__(self, topk: int = 9, ignore_iof_thr: float = -1) -> None:
        self.topk, self.ignore_iof_thr = topk, check_number(ignore_iof_thr, "ignore_iof_thr")

    def __call__(
        self,
        boxes: Sequence[Tensor] | Tensor,
        labels: Sequence[Tensor] | Tensor,
        level_shapes: Sequence[tuple[int, int]],
        strides: Sequence[float],
        **options: Any,
    ) -> Assignment:
        """A whole batch on the grid of its levels; arguments and result as ``gflv2.ops.atss``."""
        options = {"topk": self.topk, "ignore_iof_thr": max(float(self.ignore_iof_thr), 0.0), **options}
        return atss(boxes, labels, level_shapes, strides, **options)

    def assign(
        self,
        pred_instances: Any,
        num_level_priors: Sequence[int],
        gt_instances: Any,
        gt_instances_ignore: Any = None,
    ) -> AssignResult:
        """Assign one image, with mmdet's arguments.

        Args:
            pred_instances: has ``priors``, (A, 4) squares (x1, y1, x2, y2), all of a level of one size (its side is
                read on the host).
            num_level_priors: priors of each level; their sum is A.
            gt_instances: has ``bboxes`` (G, 4) and ``labels`` (G,).
            gt_instances_ignore: has ``bboxes``, or is None.

        Raises:
            TypeError, ValueError: a wrong shape, dtype or device; priors that are not squares of one size.
        """
        priors = check_tensor(pred_instances.priors, "pred_instances.priors", shape=(None, None))[:, :4]
        if not isinstance(num_level_priors, Sequence) or isinstance(num_level_priors, str):
            bad_type("num_level_priors", "a list of the levels' numbers of priors", num_level_priors)
        counts = [int(count) for count in num_level_priors]
        if sum(counts) != len(priors):
            bad_value("num_level_priors", f"numbers whose sum is that of the priors, {len(priors)}", counts)
        sides = square_sides(priors, counts)
        if sides is None:
            bad_value("pred_instances.priors", "squares, of one size on each level", priors)
        ignored = None if gt_instances_ignore is None else gt_instances_ignore.bboxes
        found = self.assign_squares(priors, counts, sides, gt_instances.bboxes, gt_instances.labels, ignored)
        return AssignResult(len(gt_instances.bboxes), *found)

    def assign_squares(
        self,
        priors: Tensor,
        counts: Sequence[int],
        sides: Sequence[float],
        boxes: Tensor,
        labels: Tensor,
        ignore_boxes: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """gt_inds, max_overlaps and labels, (A,) each, of square priors whose sides are known."""
        centres = (priors[:, :2] + priors[:, 2:4]) / 2
        found = self(
            [boxes],
            [labels],
            None,
            sides,
            points=list(centres.split(list(counts))),
            anchor_scale=1.0,
            ignore_boxes=None if ignore_boxes is None else [ignore_boxes],
        )
        return found.index[0], found.iou[0], found.labels[0]


def square_sides(priors: Tensor, counts: Sequence[int]) -> list[float] | None:
    """The side of every level's priors (1 where it has none); None where they are not squares of one size."""
    sizes = priors[:, 2:4] - priors[:, :2]
    limits = [torch.stack(level.aminmax()) for level in sizes.split(list(counts)) if len(level)]
    if not limits:
        return [1.0] * len(counts)
    found = iter(torch.stack(limits).tolist())  # one wait for the device
    sides = []
    for count in counts:
        low, high = next(found) if count else (1.0, 1.0)
        if not 0 < high or high - low > _ROUNDING * high:
            return None
        sides.append((low + high) / 2)
    return sides
