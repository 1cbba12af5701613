"""Assignment by the cost of what the network predicts: RTMDet, NanoDet-Plus, SimOTA (YOLOX) and AlignOTA (DAMO-YOLO).

For each image:
 1. A point inside some box is a candidate of every box of its image (SimOTA, AlignOTA: also one near some centre).
 2. cost(point, box) = class_weight · class cost + iou_weight · −log(IoU + 1e-7) + a centre term.
 3. A box takes its k points of lowest cost (equal costs: the lower point), k = max(1, ⌊sum of its topk highest IoUs⌋),
    a float32 sum from the highest down.
 4. A point taken by several boxes goes to the one of lowest cost among all boxes of its image (equal costs: the lower
    box), also to one that did not take it.

Class cost of class values x and a box of label l, with y = IoU at l and 0 elsewhere (simota: 1 at l):
``rtmdet``, ``nanodet``: Σ BCE(σ(x), y)·(y − σ(x))²; ``align_ota``: Σ BCE(x, y)·(y − x)²; ``simota``: Σ BCE(x, y).
The sum over classes with y = 0 throughout is formed once a point, in float64; a box then exchanges one term of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gflv2.ops.reference.atss import sequential_sum
from gflv2.ops.reference.boxes import pad_boxes
from gflv2.ops.reference.giou import iou_rows

EPS = 1e-7  # beside an IoU under the logarithm
CHUNK = 1 << 20  # point-box pairs looked at together: bounds the memory, not the result


class Cost(NamedTuple):
    """What makes the costs of the packages differ."""

    probabilities: bool  # instead of logits
    soft: bool  # the label's target is the IoU, and terms are weighted by (y − p)²
    penalty: float  # of a point outside its box or the box's centre; 0: such points cost no more than others
    center_radius: (
        float | None
    )  # strides: of the soft prior 10^(distance − radius) where there is no penalty; None: none
    topk: int


COSTS = {
    "rtmdet": Cost(False, True, 0.0, 3.0, 13),
    "nanodet": Cost(False, True, 0.0, None, 13),
    "simota": Cost(True, False, 1e5, 2.5, 10),
    "align_ota": Cost(True, True, 1e8, 2.5, 10),
}


class DynamicAssignment(NamedTuple):
    """Targets of a batch, one entry a point.

    Attributes:
        index: (B, A) int64: 0 background, k > 0: box k − 1 of its image.
        iou: (B, A) float32: IoU of the predicted box with its box; 0 where not positive.
        labels: (B, A) int64: label of the box, −1 where not positive.
    """

    index: Tensor
    iou: Tensor
    labels: Tensor


def dynamic_soft_label(
    logits: Tensor,
    boxes: Tensor,
    points: Tensor,
    strides: Tensor,
    gt_boxes: Sequence[Tensor] | Tensor,
    gt_labels: Sequence[Tensor] | Tensor,
    *,
    counts: Tensor | None = None,
    topk: int | None = None,
    iou_weight: float = 3.0,
    class_weight: float = 1.0,
    center_radius: float | None = None,
    cost: str = "rtmdet",
) -> DynamicAssignment:
    """Assign the boxes of a batch to the points of its feature maps.

    Args and result: as `gflv2.ops.dynamic_soft_label`. Memory is bounded: boxes are worked off in chunks.
    """
    kind = COSTS[cost]
    kind = kind._replace(
        topk=kind.topk if topk is None else topk,
        center_radius=kind.center_radius if center_radius is None else center_radius,
    )
    targets, exists = pad_boxes(gt_boxes, counts)
    targets = targets.detach().float()
    labels = pad_boxes(gt_labels)[0].long()
    values, boxes = logits.detach().float(), boxes.detach().float()
    points, strides = points.detach().float(), strides.detach().float()
    batch, total = values.shape[:2]

    # What is not finite, or no class, takes no part.
    exists = exists & targets.isfinite().all(-1) & (labels >= 0) & (labels < values.shape[2])
    usable = (values >= 0) & (values <= 1) if kind.probabilities else values.isfinite()
    values = torch.where(usable, values, 0.0)
    candidates = torch.zeros(batch, total, dtype=torch.bool, device=values.device)
    for part in chunks(targets.shape[1], batch * total):
        inside, near = _position(points, strides, targets[:, part], kind)
        candidates |= ((inside | near if kind.penalty else inside) & exists[:, part, None]).any(1)
    candidates &= usable.all(-1) & boxes.isfinite().all(-1)
    base = _base(values, kind)

    taken = torch.zeros(batch, total + 1, dtype=torch.int64, device=values.device)
    number = torch.zeros_like(taken)
    never = torch.iinfo(torch.int64).max
    lowest = torch.full((batch, total), never, device=values.device)
    for part in chunks(targets.shape[1], batch * total):
        chunk = targets[:, part]
        play = candidates[:, None] & exists[:, part, None]
        ious = iou_rows(boxes[:, None], chunk[:, :, None])
        costs = _class_cost(values, base, labels[:, part], ious, kind) * class_weight
        costs = costs + -torch.log(ious + EPS) * iou_weight + _centre_term(points, strides, chunk, kind)
        play &= ~costs.isnan()

        # Of the k points; which of the topk count is a mask, so that nothing waits for k.
        most = min(kind.topk, total)
        best = torch.where(play & (ious > 0), ious, 0.0).topk(most, sorted=True).values
        k = sequential_sum(best).int().clamp(min=1)
        order = _ordered(costs) << 32
        key = torch.where(play, order | torch.arange(total, device=values.device), never)
        key = key.topk(most, largest=False, sorted=True).values
        chosen = (torch.arange(most, device=values.device) < k[..., None]) & (key != never)
        place = torch.where(chosen, key & 0xFFFFFFFF, total).flatten(1)  # what is not chosen: a column of its own
        taken.scatter_add_(1, place, torch.ones_like(place))
        box = torch.arange(part.start, part.stop, device=values.device)[:, None]
        number.scatter_add_(1, place, (box + 1).expand(chosen.shape).flatten(1))
        if part.stop > part.start:
            lowest = torch.minimum(lowest, torch.where(play, order | box, never).amin(1))

    taken, number = taken[:, :total], number[:, :total]
    index = torch.where(taken == 1, number, torch.where(taken > 1, (lowest & 0xFFFFFFFF) + 1, 0))
    if targets.shape[1] == 0:
        return DynamicAssignment(index, torch.zeros_like(boxes[..., 0]), torch.full_like(index, -1))
    own = (index - 1).clamp(min=0)
    positive = index > 0
    iou = iou_rows(boxes, targets.gather(1, own[..., None].expand(-1, -1, 4)))
    return DynamicAssignment(index, torch.where(positive, iou, 0.0), torch.where(positive, labels.gather(1, own), -1))


def chunks(slots: int, pairs_per_box: int) -> Iterator[slice]:
    """Ranges of boxes, so that a chunk looks at about ``CHUNK`` point-box pairs."""
    step = max(1, CHUNK // max(pairs_per_box, 1))
    for start in range(0, slots, step):
        yield slice(start, min(start + step, slots))


def _position(points: Tensor, strides: Tensor, targets: Tensor, kind: Cost) -> tuple[Tensor, Tensor]:
    """(B, G, A) bool: points inside each box, and those less than the radius from its centre on both axes."""
    inside = torch.cat([points - targets[:, :, None, :2], targets[:, :, None, 2:] - points], -1).amin(-1) > 0
    if not kind.penalty:
        return inside, inside
    centre, reach = _centre(targets), (kind.center_radius * strides)[:, None]
    near = torch.cat([points - (centre - reach), (centre + reach) - points], -1).amin(-1) > 0
    return inside, near


def _centre(targets: Tensor) -> Tensor:
    return ((targets[..., :2] + targets[..., 2:]) / 2.0)[:, :, None]


def _centre_term(points: Tensor, strides: Tensor, targets: Tensor, kind: Cost) -> Tensor | float:
    """Step 2's third term."""
    if kind.penalty:
        inside, near = _position(points, strides, targets, kind)
        return torch.where(inside & near, 0.0, kind.penalty)
    if kind.center_radius is None:
        return 0.0
    difference = points - _centre(targets)
    dx, dy = difference.unbind(-1)
    return torch.pow(10.0, (dx * dx + dy * dy).sqrt() / strides - kind.center_radius)


def _term(values: Tensor, target: Tensor, kind: Cost) -> Tensor:
    """Of one class."""
    loss = F.binary_cross_entropy if kind.probabilities else F.binary_cross_entropy_with_logits
    term = loss(values, target, reduction="none")
    if not kind.soft:
        return term
    difference = target - (values if kind.probabilities else values.sigmoid())
    return term * (difference * difference)


def _base(values: Tensor, kind: Cost) -> Tensor:
    """(B, A) float64: the sum over all classes of their terms for target 0."""
    step = max(1, CHUNK // max(values.shape[0] * values.shape[2], 1))
    parts = [_term(part, torch.zeros_like(part), kind).sum(-1, dtype=torch.float64) for part in values.split(step, 1)]
    return torch.cat(parts, 1)


def _class_cost(values: Tensor, base: Tensor, labels: Tensor, ious: Tensor, kind: Cost) -> Tensor:
    """(B, G, A): the sum in which the term of the box's label has its own target."""
    at = labels.clamp(0, values.shape[2] - 1)[:, :, None].expand(ious.shape)
    value = values.transpose(1, 2).gather(1, at)
    target = ious.nan_to_num(nan=0.0).clamp(0, 1) if kind.soft else torch.ones_like(ious)
    without = base[:, None] - _term(value, torch.zeros_like(value), kind).double()
    # Rounding may leave the sum a little below 0.
    return torch.relu((without + _term(value, target, kind).double()).float())


def _ordered(costs: Tensor) -> Tensor:
    """Floats as integers of the same order (a cost may be a little below 0)."""
    bits = costs.contiguous().view(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
