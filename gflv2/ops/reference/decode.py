"""The inference head up to NMS: joint scores, the best points of each level, their boxes (arXiv 2011.12885)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gflv2.ops import backends
from gflv2.ops.checks import compute_dtype
from gflv2.ops.reference.boxes import distances_to_boxes, level_shapes_of, points_of_levels
from gflv2.ops.reference.dgqp import Predictor
from gflv2.ops.reference.gfl_loss import joint_probabilities, quality_from
from gflv2.ops.reference.rows import box_rows, class_rows, project


class Decoded(NamedTuple):
    """Candidates of a batch, in fixed shapes; level by level, N = Σ_l min(pre_topk, H_l·W_l).

    Attributes:
        boxes: (B, N, 4) in pixels.
        scores: (B, N, C) joint scores, 0 where they are not above the threshold.
        points: (B, N) int64, flat index of each candidate's point.
        counts: (B,) int64, number of rows with at least one score above the threshold. Rows are not moved together.
        distributions: (B, N, 4, R) probabilities of the sides' bins, or None.
        legacy_background: the last column of ``scores`` is the background class that is dropped after NMS.
    """

    boxes: Tensor
    scores: Tensor
    points: Tensor
    counts: Tensor
    distributions: Tensor | None = None
    legacy_background: bool = False


def decode(
    class_logits: Sequence[Tensor],
    box_logits: Sequence[Tensor],
    *,
    strides: Sequence[float],
    scales: Tensor | None = None,
    projection: Tensor | None = None,
    predictor: Predictor | None = None,
    quality_logits: Tensor | None = None,
    image_sizes: Tensor | None = None,
    scale_factors: Tensor | None = None,
    pre_topk: int = 1000,
    score_thr: float = 0.05,
    offset: float = 0.0,
    legacy_background: bool = False,
    return_distributions: bool = False,
) -> Decoded:
    """Scores, the ``pre_topk`` best points of each level, and their boxes.

    Args and result: as `gflv2.ops.decode`; ``image_sizes`` and ``scale_factors`` are tensors here.
    """
    found = []
    start = 0
    for level, (cls, box) in enumerate(zip(class_logits, box_logits, strict=True)):
        size = cls.shape[2] * cls.shape[3]
        probabilities = box_rows([box], None if scales is None else scales.reshape(-1)[level : level + 1]).softmax(-1)
        given = None if quality_logits is None else quality_logits[:, start : start + size]
        joint = joint_probabilities(class_rows([cls]), quality_from(probabilities, predictor, given))
        points, joint, best = choose(joint, pre_topk)
        if best:
            probabilities = probabilities.gather(1, points[..., None, None].expand(-1, -1, *probabilities.shape[2:]))
        positions = points_of_levels(
            level_shapes_of([cls]), [strides[level]], offset=offset, device=cls.device, dtype=compute_dtype(box.dtype)
        )
        boxes = distances_to_boxes(positions[points], project(probabilities, projection) * strides[level])
        found.append((boxes, joint, points + start, probabilities))
        start += size
    boxes, scores, points, distributions = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    if image_sizes is not None:
        limit = image_sizes.to(boxes.dtype).flip(1).repeat(1, 2)[:, None]  # (w, h, w, h)
        boxes = torch.minimum(boxes.clamp(min=0), limit)
    if scale_factors is not None:
        boxes = boxes / scale_factors.to(boxes.dtype).repeat(1, 2)[:, None]
    scores = torch.where(scores > score_thr, scores, 0.0)
    counts = (scores > 0).any(-1).sum(1)
    return Decoded(boxes, scores, points, counts, distributions if return_distributions else None, legacy_background)


def choose(joint: Tensor, count: int) -> tuple[Tensor, Tensor, bool]:
    """The points of one level that are kept.

    Args:
        joint: (B, n, C) joint scores of all its points.
        count: the most that are kept, by their best class.

    Returns:
        Flat indices (B, k) of the kept points, their scores (B, k, C), and whether they were chosen and sorted; else
        they are all points in raster order.
    """
    batch, size, classes = joint.shape
    if not isinstance(size, int) and backends.exporting():  # a graph for every size of image
        points, beyond = best_of_open_size(joint.amax(-1), count)
        kept = joint.gather(1, points[..., None].expand(-1, -1, classes))
        return points, torch.where(beyond[..., None], 0.0, kept), True
    if size <= count:  # levels that fit keep their raster order
        return torch.arange(size, device=joint.device).expand(batch, size), joint, False
    points = best_first(joint.amax(-1), count)
    return points, joint.gather(1, points[..., None].expand(-1, -1, classes)), True


def best_first(scores: Tensor, count: int) -> Tensor:
    """(B, n) → (B, count) indices of the highest scores, descending; of equal ones the lower index first."""
    if backends.exporting():
        return scores.topk(count, dim=1).indices  # ONNX has no stable sort; its TopK keeps this order of ties
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :count]


def best_of_open_size(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """``best_first`` where n is not known while the graph is traced, and may be less than ``count``.

    ``count`` has to be a constant of the graph (TensorRT takes no other top-k), so that many scores below all others
    are appended. Returns the indices, and which of them lie beyond the level: those repeat its last point.
    """
    size = scores.shape[1]
    points = F.pad(scores, (0, count), value=-1.0).topk(count, dim=1).indices
    return points.clamp(max=size - 1), points >= size
