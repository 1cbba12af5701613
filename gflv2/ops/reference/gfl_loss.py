"""The training head in three steps: targets, normalisers (outside, one all-reduce), losses (arXiv 2011.12885 and
2006.04388).

With b̂ the decoded box of a positive point and g its box, both in units of the stride:

* y = IoU(b̂, g) is the target of the Quality Focal Loss at the box's class,
* w = max over classes of J weights the two box losses; both are constants for the gradient;
* QFL:  Σ over points and classes / N_pos,      N_pos = max(mean over ranks of Σ_images max(#positives, 1), 1)
* GIoU: Σ w·(1 − GIoU(b̂, g)) / W,              W = max(mean over ranks of Σ w, floor)
* DFL:  Σ w·(mean over the four sides) / W, on distances clamped to [0, n − 0.1] bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gflv2.ops.reference.atss import Assignment
from gflv2.ops.reference.boxes import (
    boxes_to_distances,
    cells_of_levels,
    distances_to_boxes,
    level_shapes_of,
    pad_boxes,
    strides_of_points,
    valid_cells,
)
from gflv2.ops.reference.dfl import dfl_rows
from gflv2.ops.reference.dgqp import Predictor, quality_of, statistics_of
from gflv2.ops.reference.giou import giou_rows, iou_rows
from gflv2.ops.reference.qfl import qfl_rows
from gflv2.ops.reference.rows import box_rows, class_rows, project

BACKGROUND = -1


class GFLTargets(NamedTuple):
    """What every point should learn; constants, without gradients.

    Attributes:
        index: (B, A) int64: 0 negative, −1 ignored, k > 0: box k − 1 of its image.
        labels: (B, A) int64: class of its box, −1 where not positive.
        boxes: (B, A, 4) its box in pixels, 0 where not positive.
        scores: (B, A) y, IoU of the predicted box with its box; 0 where not positive.
        weights: (B, A) w, highest joint score over the classes; 0 where not positive.
        label_weights: (B, A) weight in the QFL: 0 at ignored points and at cells outside the image's padded size,
            else 1.
        sums: (2,) Σ_images max(number of positives, 1) and Σ w: what the ranks exchange.
        quality: (B, A) the predictor's quality logits behind ``weights``, None without one. `gflv2.ops.gfl_loss` takes
            them instead of computing them again; None: it computes them.
    """

    index: Tensor
    labels: Tensor
    boxes: Tensor
    scores: Tensor
    weights: Tensor
    label_weights: Tensor
    sums: Tensor
    quality: Tensor | None = None


class GFLLosses(NamedTuple):
    """Three 0-d tensors, loss weights included."""

    qfl: Tensor
    giou: Tensor
    dfl: Tensor


def joint_probabilities(class_logits: Tensor, quality_logits: Tensor | None) -> Tensor:
    """J = σ(c)·σ(r): (B, A, C) and (B, A) → (B, A, C); σ(c) without a quality."""
    scores = class_logits.sigmoid()
    return scores if quality_logits is None else scores * quality_logits.sigmoid()[..., None]


def quality_from(probabilities: Tensor, predictor: Predictor | None, quality_logits: Tensor | None) -> Tensor | None:
    """(B, A) quality logits from the predictor, or those that were given, or None."""
    if predictor is None:
        return None if quality_logits is None else quality_logits.to(probabilities.dtype)
    statistics = statistics_of(probabilities, predictor.topk, predictor.mean, predictor.variance)
    return quality_of(statistics, predictor.weight1, predictor.bias1, predictor.weight2, predictor.bias2)


def gfl_targets(
    class_logits: Sequence[Tensor],
    box_logits: Sequence[Tensor],
    assignment: Assignment,
    boxes: Sequence[Tensor] | Tensor,
    *,
    strides: Sequence[float],
    scales: Tensor | None = None,
    projection: Tensor | None = None,
    predictor: Predictor | None = None,
    quality_logits: Tensor | None = None,
    counts: Tensor | None = None,
    offset: float = 0.0,
    padded_sizes: Sequence[tuple[float, float]] | None = None,
) -> GFLTargets:
    """Boxes, IoU targets and weights of all points.

    Args and result: as `gflv2.ops.gfl_targets`.
    """
    with torch.no_grad():
        probabilities = box_rows(box_logits, scales).softmax(-1)
        shapes = level_shapes_of(box_logits)
        kind = {"device": probabilities.device, "dtype": probabilities.dtype}
        stride = strides_of_points(shapes, strides, **kind)[:, None]
        cells = cells_of_levels(shapes, offset=offset, **kind)
        positive = assignment.index > 0

        # The box of every positive point.
        padded, _ = pad_boxes(boxes, counts)
        target = torch.zeros(*positive.shape, 4, **kind)
        if padded.shape[1]:
            number = (assignment.index - 1).clamp(0, padded.shape[1] - 1)
            found = padded.to(target.dtype).gather(1, number[..., None].expand(-1, -1, 4))
            target = torch.where(positive[..., None], found, target)

        # y and w.
        predicted = distances_to_boxes(cells, project(probabilities, projection))
        scores = torch.where(positive, iou_rows(predicted, target / stride), 0.0)
        quality = quality_from(probabilities, predictor, quality_logits)
        joint = joint_probabilities(class_rows(class_logits).to(target.dtype), quality)
        weights = torch.where(positive, joint.amax(-1), 0.0)

        valid = valid_cells(shapes, strides, padded_sizes, batch=len(positive), device=positive.device)
        label_weights = (valid & (assignment.index >= 0)).to(target.dtype)
        number_positive = positive.sum(1).clamp(min=1).sum().to(target.dtype)
        labels = torch.where(positive, assignment.labels, BACKGROUND)
        sums = torch.stack([number_positive, weights.sum()])
        known = None if predictor is None else quality
        return GFLTargets(assignment.index, labels, target, scores, weights, label_weights, sums, known)


def gfl_loss(
    class_logits: Sequence[Tensor],
    box_logits: Sequence[Tensor],
    targets: GFLTargets,
    normalisers: Tensor,
    *,
    strides: Sequence[float],
    scales: Tensor | None = None,
    projection: Tensor | None = None,
    predictor: Predictor | None = None,
    quality_logits: Tensor | None = None,
    beta: float = 2.0,
    loss_weights: tuple[float, float, float] = (1.0, 2.0, 0.25),
    offset: float = 0.0,
) -> GFLLosses:
    """Quality Focal Loss, GIoU loss and Distribution Focal Loss of a batch.

    Args and result: as `gflv2.ops.gfl_loss`.
    """
    logits = box_rows(box_logits, scales)
    probabilities = logits.softmax(-1)
    shapes = level_shapes_of(box_logits)
    kind = {"device": logits.device, "dtype": logits.dtype}
    stride = strides_of_points(shapes, strides, **kind)[:, None]
    cells = cells_of_levels(shapes, offset=offset, **kind)
    positive, weights = targets.weights > 0, targets.weights
    total_positive, total_weight = normalisers.to(logits.dtype).unbind()

    # 1. Quality Focal Loss over all points.
    quality = quality_from(probabilities, predictor, quality_logits)
    classes = class_rows(class_logits).to(logits.dtype)
    quality = None if quality is None else quality.flatten()
    rows = qfl_rows(classes.flatten(0, 1), quality, targets.labels.flatten(), targets.scores.flatten(), beta)
    loss_qfl = (rows * targets.label_weights.flatten()).sum() / total_positive

    # 2. The box losses count at positive points only; the others have weight 0, and their own box as a harmless target.
    predicted = distances_to_boxes(cells, project(probabilities, projection))
    target = torch.where(positive[..., None], targets.boxes.to(logits.dtype) / stride, predicted.detach())
    loss_giou = (weights * (1 - giou_rows(predicted, target))).sum() / total_weight

    # 3. Distribution Focal Loss on the clamped distances, in bins.
    bins = logits.shape[-1]
    distances = boxes_to_distances(cells, target)
    if projection is not None:
        projection = projection.detach().to(logits.dtype)
        distances = (distances - projection[0]) / (projection[1] - projection[0])
    distances = distances.clamp(0.0, bins - 1 - 0.1)
    loss_dfl = (weights * dfl_rows(logits, distances).mean(-1)).sum() / total_weight

    return GFLLosses(loss_qfl * loss_weights[0], loss_giou * loss_weights[1], loss_dfl * loss_weights[2])
