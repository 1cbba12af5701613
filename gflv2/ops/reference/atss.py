"""Adaptive Training Sample Selection (arXiv 1912.02424): which point of the feature maps learns which box.

For each image and box:
 1. On every level the ``topk`` valid points nearest to the box centre are candidates (float32 dx² + dy²; equal
    distances: the lower flat index).
 2. Threshold = mean + unbiased standard deviation of the candidates' IoUs, computed in float64 in two passes over the
    candidates in a fixed order (level by level, in a level by distance, then by index), and rounded once, as a sum,
    to float32. With fewer than two candidates nothing is positive.
 3. Positive: a candidate with IoU ≥ threshold whose point lies more than 0.01 px inside every side of the box.
 4. A point claimed twice goes to the box of higher IoU; of equal ones to the lower box index.

IoU is between the box and a square anchor of side ``anchor_scale`` · stride centred on the point.
Points that an ignore box covers leave step 1 (their distance becomes 1e8) and get index −1, unless they are positive
all the same, which happens where a level has fewer than ``topk`` other cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gflv2.ops.reference.boxes import pad_boxes, points_of_levels, strides_of_points, valid_cells
from gflv2.ops.reference.giou import area, iou_rows, overlap

NOT_POSITIVE_IOU = -1e8
INSIDE = 0.01  # pixels
IGNORED_SQUARED_DISTANCE = 1e16
CHUNK = 1 << 23  # point-box pairs looked at together: bounds the memory, not the result


class Assignment(NamedTuple):
    """Targets of a batch, one entry a point.

    Attributes:
        index: (B, A) int64: 0 negative, −1 ignored, k > 0: box k − 1 of its image.
        iou: (B, A) float32: IoU of the point's anchor with its box; −1e8 where not positive, 0 in an image without
            boxes.
        labels: (B, A) int64: label of the box, −1 where not positive.
    """

    index: Tensor
    iou: Tensor
    labels: Tensor


def atss(
    boxes: Sequence[Tensor] | Tensor,
    labels: Sequence[Tensor] | Tensor,
    level_shapes: Sequence[tuple[int, int]] | None,
    strides: Sequence[float],
    *,
    topk: int = 9,
    padded_sizes: Sequence[tuple[float, float]] | None = None,
    ignore_boxes: Sequence[Tensor] | Tensor | None = None,
    ignore_iof_thr: float = 0.0,
    anchor_scale: float = 8.0,
    offset: float = 0.0,
    counts: Tensor | None = None,
    points: Sequence[Tensor] | None = None,
) -> Assignment:
    """Assign the boxes of a batch to the points of its feature maps.

    Args and result: as `gflv2.ops.atss`. Memory is bounded: boxes are worked off in chunks.
    """
    boxes, exists = pad_boxes(boxes, counts)
    boxes = boxes.detach().float()
    labels, _ = pad_boxes(labels)
    batch, slots = exists.shape
    device = boxes.device

    # The points, their anchors, and which of them count.
    if points is None:
        shapes = [(int(height), int(width)) for height, width in level_shapes]
        flat = points_of_levels(shapes, strides, offset=offset, device=device)
        sizes = [height * width for height, width in shapes]
    else:
        sizes = [len(level) for level in points]
        shapes = [(size, 1) for size in sizes]
        flat = torch.cat([level.float() for level in points]) if points else boxes.new_zeros(0, 2)
    half = strides_of_points(shapes, strides, device=device)[:, None] * (anchor_scale / 2)
    anchors = torch.cat([flat - half, flat + half], dim=1)
    total = len(flat)
    valid = valid_cells(shapes, strides, padded_sizes, batch=batch, device=device)
    ignored = torch.zeros_like(valid)
    if ignore_boxes is not None and ignore_iof_thr > 0:
        ignored = covered(anchors, ignore_boxes, ignore_iof_thr) & valid

    # One 64-bit maximum settles conflicts: IoU bits above (IoU ≥ 0, so their order is that of the floats), inverted
    # box below.
    claims = torch.full((batch, total + 1), -1, dtype=torch.int64, device=device)
    for chunk in chunks(slots, batch * max(sizes, default=0)):
        part = boxes[:, chunk]
        candidates, chosen = nearest(part, flat, sizes, valid, ignored, topk)
        ious = iou_rows(anchors[candidates], part[:, :, None])
        chosen = chosen & exists[:, chunk, None]
        threshold = threshold_of(ious, chosen)
        centre = flat[candidates]
        inside = torch.cat([centre - part[:, :, None, :2], part[:, :, None, 2:] - centre], dim=-1).amin(-1) > INSIDE
        positive = chosen & (ious >= threshold[..., None]) & inside
        number = torch.arange(chunk.start, chunk.stop, device=device)[:, None]
        key = (ious.contiguous().view(torch.int32).long() << 32) | (0x7FFFFFFF - number)
        # Claims that do not count land in an extra column behind the points.
        place = torch.where(positive, candidates, total)
        claims.scatter_reduce_(1, place.flatten(1), key.flatten(1), "amax")
    claims = claims[:, :total]

    positive = claims >= 0
    box = torch.where(positive, 0x7FFFFFFF - (claims & 0x7FFFFFFF), 0)
    has_boxes = exists.any(1, keepdim=True)
    # As in the authors' code, ignore boxes have no effect in an image without boxes.
    index = torch.where(positive, box + 1, -(ignored & has_boxes).long())
    iou = (claims >> 32).int().view(torch.float32)
    iou = torch.where(positive, iou, torch.where(has_boxes, NOT_POSITIVE_IOU, 0.0))
    if slots:
        label = torch.where(positive, labels.long().gather(1, box), -1)
    else:
        label = torch.full_like(index, -1)
    return Assignment(index, iou, label)


def chunks(slots: int, pairs_per_box: int) -> Iterator[slice]:
    """Ranges of boxes, so that a chunk looks at about ``CHUNK`` point-box pairs."""
    step = max(1, CHUNK // max(pairs_per_box, 1))
    for start in range(0, slots, step):
        yield slice(start, min(start + step, slots))


def nearest(
    boxes: Tensor, points: Tensor, sizes: Sequence[int], valid: Tensor, ignored: Tensor, topk: int
) -> tuple[Tensor, Tensor]:
    """Step 1: flat indices (B, G, K) of the candidates of every box, in the fixed order, and which of them count."""
    centre = (boxes[..., :2] + boxes[..., 2:]) * 0.5
    found, counted = [], []
    start = 0
    for size in sizes:
        level = slice(start, start + size)
        dx = centre[..., :1] - points[level, 0]
        dy = centre[..., 1:] - points[level, 1]
        squared = dx * dx + dy * dy
        squared = torch.where(ignored[:, None, level], IGNORED_SQUARED_DISTANCE, squared)
        # Distance bits above, index below: one integer order without ties (a squared distance is never negative).
        key = (squared.view(torch.int32).long() << 32) | torch.arange(start, start + size, device=boxes.device)
        never = torch.iinfo(torch.int64).max
        key = torch.where(valid[:, None, level], key, never)
        best = key.topk(min(topk, size), dim=-1, largest=False, sorted=True).values
        counted.append(best != never)
        found.append(torch.where(best != never, best & 0xFFFFFFFF, 0))
        start += size
    return torch.cat(found, dim=-1), torch.cat(counted, dim=-1)


def threshold_of(ious: Tensor, chosen: Tensor) -> Tensor:
    """Step 2: (B, G, K) IoUs of the candidates that count → (B, G) thresholds; NaN where there are fewer than two."""
    values = torch.where(chosen, ious.double(), 0.0)
    count = chosen.sum(-1).double()
    mean = sequential_sum(values) / count
    deviation = torch.where(chosen, values - mean[..., None], 0.0)
    variance = sequential_sum(deviation * deviation) / (count - 1)
    return torch.where(count > 1, mean + variance.sqrt(), torch.nan).float()


def sequential_sum(values: Tensor) -> Tensor:
    """Sum over the last dimension from left to right, the order that every backend keeps."""
    total = torch.zeros_like(values[..., 0]) if values.shape[-1] else values.sum(-1)
    for value in values.unbind(-1):
        total = total + value
    return total


def covered(anchors: Tensor, ignore_boxes: Sequence[Tensor] | Tensor, threshold: float) -> Tensor:
    """(B, A) bool: intersection / anchor area with some ignore box exceeds the threshold."""
    boxes, exists = pad_boxes(ignore_boxes)
    boxes = boxes.detach().float()
    hit = torch.zeros(len(boxes), len(anchors), dtype=torch.bool, device=anchors.device)
    for chunk in chunks(boxes.shape[1], hit.numel()):
        iof = overlap(anchors[:, None], boxes[:, None, chunk]) / area(anchors).clamp(min=1e-6)[:, None]
        hit |= ((iof > threshold) & exists[:, None, chunk]).any(-1)
    return hit
