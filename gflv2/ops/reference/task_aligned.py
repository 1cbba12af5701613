"""Task-aligned assignment (TOOD, arXiv 2108.07755): which point learns which box, by its own predictions.

 1. Alignment of a point with a box: metric = score^α · overlap^β, with the point's score for the box's class and the
    overlap of the point's predicted box with it.
 2. The ``topk`` points of highest metric are the candidates of a box; of equal ones the lower point. Those that lie
    inside it are its own.
 3. A point that is several boxes' own goes to the highest overlap; of equal ones to the lower box.
 4. The target of a positive point: metric · (highest overlap of its box's points) / (highest metric of them + eps).

Every step has a fixed order of operations in float32, so that every backend gives the same bits: powers with whole
exponents by squaring, the arctangent of CIoU by a polynomial of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gflv2.ops.reference.atss import chunks
from gflv2.ops.reference.boxes import pad_boxes
from gflv2.ops.reference.giou import area, at_least
from gflv2.ops.reference.giou import overlap as intersection

CIOU_EPS = 1e-7
IOU_EPS = 1e-6
LARGEST_WHOLE_POWER = 16
_LAST = 0x7FFFFFFF  # names of points and boxes are inverted in keys, so that the lower one is the larger
_MASK = 0xFFFFFFFF


class TaskAlignment(NamedTuple):
    """Targets of a batch, one entry a point.

    Attributes:
        index: (B, A) int64: 0 background, k > 0: box k − 1 of its image.
        iou: (B, A) float32: overlap of the point's predicted box with its box; 0 where not positive.
        labels: (B, A) int64: label of the box, −1 where not positive.
        scores: (B, A) float32: the target of the class score, or the metric where it is not normalised; 0 where not
            positive.
    """

    index: Tensor
    iou: Tensor
    labels: Tensor
    scores: Tensor


def task_aligned(
    scores: Tensor,
    boxes: Tensor,
    points: Tensor,
    gt_boxes: Sequence[Tensor] | Tensor,
    gt_labels: Sequence[Tensor] | Tensor,
    *,
    counts: Tensor | None = None,
    topk: int = 10,
    alpha: float = 0.5,
    beta: float = 6.0,
    overlap: str = "ciou",
    candidates: str = "inside",
    margin: float = 1e-9,
    min_side: float | None = None,
    zeros: bool = True,
    contest: str = "containing",
    final_topk: int | None = None,
    normalize: bool = True,
    eps: float = 1e-9,
) -> TaskAlignment:
    """Assign the boxes of a batch to the points of its feature maps.

    Args and result: as `gflv2.ops.task_aligned`. Memory is bounded: boxes are worked off in chunks.
    """
    gt_boxes, exists = pad_boxes(gt_boxes, counts)
    gt_labels = pad_boxes(gt_labels)[0].long()
    gt_boxes, boxes, points = gt_boxes.detach().float(), boxes.detach().float(), points.detach().float()
    batch, total, classes = scores.shape
    slots = exists.shape[1]
    exists = exists & (gt_labels >= 0) & (gt_labels < classes)  # a box of an unknown class has no score
    safe_labels = torch.where(exists, gt_labels, 0)
    limits = _limits(gt_boxes, min_side)
    device = scores.device
    if total == 0 or slots == 0 or classes == 0:
        return _background(batch, total, device)

    def pairs(chunk: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of some boxes (B, g) and all points: metric, overlap, which pairs count, which points lie inside."""
        index = safe_labels[:, None, chunk].expand(-1, total, -1)
        values = scores.detach().gather(2, index).transpose(1, 2).float()
        metric, value, counted = align(values, boxes[:, None], gt_boxes[:, chunk, None], alpha, beta, overlap)
        low, high = limits[:, chunk, None, :2], limits[:, chunk, None, 2:]
        inside = torch.cat([points - low, high - points], dim=-1).amin(-1) > margin
        return metric, value, counted & exists[:, chunk, None], inside

    # 1. and 2. The candidates of every box; what they claim; and, of all boxes around a point, the best one.
    best_claim = torch.full((batch, total), -1, dtype=torch.int64, device=device)
    best_around = torch.full_like(best_claim, -1)
    claims = torch.zeros_like(best_claim)
    for chunk in chunks(slots, batch * total):
        metric, value, counted, inside = pairs(chunk)
        own = counted & inside
        chosen = own & _top(torch.where(own if candidates == "inside" else counted, metric, 0.0), topk)
        if not zeros:
            chosen = chosen & (metric > 0)
        number = torch.arange(chunk.start, chunk.stop, device=device)[:, None]
        key = (value.view(torch.int32).long() << 32) | (_LAST - number)
        best_claim = torch.maximum(best_claim, torch.where(chosen, key, -1).amax(1))
        best_around = torch.maximum(best_around, torch.where(own, key, -1).amax(1))
        claims += chosen.sum(1)

    # 3. One box a point.
    if contest == "containing":
        best_claim = torch.where(claims > 1, best_around, best_claim)
    positive = best_claim >= 0
    owner = torch.where(positive, _LAST - (best_claim & _MASK), slots)

    # The metric of each point with its box; a further column stands for "no box".
    safe = owner.clamp(max=slots - 1)
    own_label = safe_labels.gather(1, safe)
    values = scores.detach().gather(2, own_label[..., None])[..., 0].float()
    own_box = gt_boxes.gather(1, safe[..., None].expand(-1, -1, 4))
    metric, value, _ = align(values, boxes, own_box, alpha, beta, overlap)
    metric, value = torch.where(positive, metric, 0.0), torch.where(positive, value, 0.0)

    if final_topk is not None:
        kept = torch.zeros_like(positive)
        for chunk in chunks(slots, batch * total):
            number = torch.arange(chunk.start, chunk.stop, device=device)[:, None]
            own = owner[:, None] == number
            chosen = own & _top(torch.where(own, metric[:, None], 0.0), final_topk)
            kept |= chosen.any(1)
        positive = kept
        owner = torch.where(positive, owner, slots)
        metric, value = torch.where(positive, metric, 0.0), torch.where(positive, value, 0.0)

    # 4. The targets.
    target = metric
    if normalize:
        most = torch.zeros(2, batch, slots + 1, device=device)
        most[0].scatter_reduce_(1, owner, metric, "amax")
        most[1].scatter_reduce_(1, owner, value, "amax")
        target = torch.where(positive, metric * most[1].gather(1, owner) / (most[0].gather(1, owner) + eps), 0.0)
    return TaskAlignment(torch.where(positive, owner + 1, 0), value, torch.where(positive, own_label, -1), target)


def align(
    scores: Tensor, pred: Tensor, target: Tensor, alpha: float, beta: float, overlap: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Metric and overlap of pairs of boxes (…, 4), broadcasting, and which pairs count.

    A pair with a NaN, with a side or area beyond float32, with a score below 0, or with an infinite metric does not
    count; its metric and overlap are 0.
    """
    value, union = (ciou_and_union if overlap == "ciou" else iou_and_union)(pred, target)
    counted = (union.abs() < math.inf) & (value == value) & (scores >= 0) & (scores < math.inf)
    value = torch.where(counted & (value > 0), value, 0.0)
    metric = power(scores, alpha) * power(value, beta)
    counted = counted & (metric < math.inf)
    # Comparisons instead of maxima: a negative zero becomes a positive one.
    return torch.where(counted & (metric > 0), metric, 0.0), torch.where(counted, value, 0.0), counted


def power(base: Tensor, exponent: float) -> Tensor:
    """base^exponent of float32 ≥ 0: 0.5 a square root, whole numbers to 16 products, others in float64."""
    if exponent == 0.5:
        return base.double().sqrt().float()  # torch's own of float32 is not rounded correctly everywhere
    if not is_simple(exponent):
        return base.double().pow(exponent).float()
    result = torch.ones_like(base)
    for bit in range(int(exponent).bit_length()):
        if int(exponent) >> bit & 1:
            result = result * base
        base = base * base
    return result


def is_simple(exponent: float) -> bool:
    """Whether a power with it is a root or products."""
    return exponent == 0.5 or (exponent == int(exponent) and 0 <= exponent <= LARGEST_WHOLE_POWER)


def iou_and_union(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    common = intersection(pred, target)
    union = area(pred) + area(target) - common
    return common / at_least(union, IOU_EPS), union


def ciou_and_union(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Complete IoU (arXiv 1911.08287): IoU − centre distance² / diagonal² − v·α of the aspect ratios."""
    px1, py1, px2, py2 = pred.unbind(-1)
    tx1, ty1, tx2, ty2 = target.unbind(-1)
    width, height = px2 - px1, py2 - py1 + CIOU_EPS
    target_width, target_height = tx2 - tx1, ty2 - ty1 + CIOU_EPS
    common = intersection(pred, target)
    union = target_width * target_height + width * height - common + CIOU_EPS
    iou = common / union
    enclosing_width = torch.maximum(px2, tx2) - torch.minimum(px1, tx1)
    enclosing_height = torch.maximum(py2, ty2) - torch.minimum(py1, ty1)
    diagonal = enclosing_width * enclosing_width + enclosing_height * enclosing_height + CIOU_EPS
    dx, dy = px1 + px2 - tx1 - tx2, py1 + py2 - ty1 - ty2
    distance = (dx * dx + dy * dy) * 0.25
    turn = arctangent(width / height) - arctangent(target_width / target_height)
    v = (turn * turn) * (4 / math.pi**2)
    weight = v / (1 - iou + v + CIOU_EPS)
    return iou - (distance / diagonal + v * weight), union


def arctangent(x: Tensor) -> Tensor:
    """atan of float32 within 3 units in the last place, by the same operations on every backend.

    The argument is brought into ±tan(π/8) by atan(x) = π/4 + atan((x − 1)/(x + 1)) = π/2 + atan(−1/x), and there an odd
    polynomial serves (S. Moshier's coefficients, Cephes).
    """
    size = x.abs()
    far, middle = size > 2.414213562373095, size > 0.4142135623730950
    top = torch.where(far, -1.0, torch.where(middle, size - 1, size))
    below = torch.where(far, size, torch.where(middle, size + 1, 1.0))
    start = torch.where(far, math.pi / 2, torch.where(middle, math.pi / 4, 0.0))
    t = top / below
    z = t * t
    series = ((8.05374449538e-2 * z - 1.38776856032e-1) * z + 1.99777106478e-1) * z - 3.33329491539e-1
    angle = start + (series * z * t + t)
    return torch.where(x < 0, -angle, angle)


def _limits(boxes: Tensor, min_side: float | None) -> Tensor:
    """The boxes that points must lie in. With ``min_side``: rebuilt from centre and sides, none of them shorter."""
    if min_side is None:
        return boxes
    centre = (boxes[..., :2] + boxes[..., 2:]) * 0.5
    sides = boxes[..., 2:] - boxes[..., :2]
    half = torch.where(sides < min_side, min_side, sides) * 0.5
    return torch.cat([centre - half, centre + half], dim=-1)


def _top(metric: Tensor, topk: int) -> Tensor:
    """Which of the last dimension are its ``topk`` highest; of equal ones the lower place."""
    place = torch.arange(metric.shape[-1], device=metric.device)
    key = (metric.contiguous().view(torch.int32).long() << 32) | (_LAST - place)
    best = key.topk(min(topk, metric.shape[-1]), dim=-1, sorted=False).indices
    return torch.zeros_like(metric, dtype=torch.bool).scatter_(-1, best, True)


def _background(batch: int, total: int, device: torch.device) -> TaskAlignment:
    index = torch.zeros(batch, total, dtype=torch.int64, device=device)
    nothing = torch.zeros(batch, total, device=device)
    return TaskAlignment(index, nothing, torch.full_like(index, -1), nothing.clone())
