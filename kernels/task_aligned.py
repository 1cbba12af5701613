"""``task_aligned`` in Triton: which point learns which box, by its own predictions (TOOD, arXiv 2108.07755).

 1. ``task_aligned_claim``: a program takes one box, goes through the points and keeps a set of those of highest metric.
    Those inside the box are claimed. A claim is (overlap bits, inverted box) as one 64-bit integer; the largest wins:
    the highest overlap, then the lower box.
 2. ``task_aligned_settle``: the box of every point (where all boxes around it compete, it meets them one after the
    other), overlap and metric; and the highest of both among the points of a box.
 3. ``task_aligned_keep``, where a box keeps some of its points alone: a program takes one box, as in step 1.
 4. ``task_aligned_finish``: label and target of every point.

Comparisons hang on every bit: no launch may fuse a product with a sum (``enable_fp_fusion=False``), a division of
float32 must be ``div_rn``, a root ``sqrt_rn``. (Powers with other exponents than a half and whole numbers are left to
other backends: in double, Triton's library fuses.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gflv2.kernels.atss import BOXES, FIRST_BOX, image_table, numbers_of
from gflv2.kernels.boxes import load_corners
from gflv2.kernels.launching import INTERPRETED, device_of, kernel

_POINTS = 4096 if INTERPRETED else 256  # points looked at together
_COLUMNS = tl.constexpr(4)  # of the table of images
# The register limit is explicit: without one ptxas spills two words of a kernel on sm_90.
_OPTIONS: dict[str, Any] = {"num_warps": 4, "maxnreg": 128, "enable_fp_fusion": False}

_KEEPING: dict[str, Any] = {"maxnreg": 168}  # with 128, 32 candidates spill on sm_120

_MASK = tl.constexpr(0x7FFFFFFF)
_MOST = tl.constexpr(0x7FFFFFFFFFFFFFFF)
_NO_KEY = tl.constexpr(-0x8000000000000000)
_INFINITY = tl.constexpr(float("inf"))
_ROOT = tl.constexpr(-1)  # the exponent 0.5; whole numbers are themselves


@triton.jit
def _power(base, EXPONENT: tl.constexpr):
    """base^EXPONENT for base ≥ 0, as the definition forms it."""
    if EXPONENT == _ROOT:
        result = tl.sqrt_rn(base)
    else:
        result = tl.full(base.shape, 1.0, dtype=tl.float32)
        for bit in tl.static_range(5):
            if EXPONENT >> bit & 1:
                result = result * base
            base = base * base
    return result


@triton.jit
def _arctangent(x):
    size = tl.abs(x)
    far = size > 2.414213562373095
    middle = size > 0.4142135623730950
    top = tl.where(far, -1.0, tl.where(middle, size - 1.0, size))
    below = tl.where(far, size, tl.where(middle, size + 1.0, 1.0))
    start = tl.where(far, 1.57079632679489662, tl.where(middle, 0.78539816339744831, 0.0))
    t = tl.div_rn(top, below)
    z = t * t
    series = z * 8.05374449538e-2 - 1.38776856032e-1
    series = series * z + 1.99777106478e-1
    series = series * z - 3.33329491539e-1
    angle = start + (series * z * t + t)
    return tl.where(x < 0.0, -angle, angle)


@triton.jit
def _angle(box):
    return _arctangent(tl.div_rn(box.x2 - box.x1, box.y2 - box.y1 + 1e-7))


@triton.jit
def _align(pred, box, score, CIOU: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr):
    """Overlap and metric of predicted boxes and boxes, and which pairs count."""
    across = tl.minimum(pred.x2, box.x2) - tl.maximum(pred.x1, box.x1)
    down = tl.minimum(pred.y2, box.y2) - tl.maximum(pred.y1, box.y1)
    common = tl.where(across > 0.0, across, 0.0) * tl.where(down > 0.0, down, 0.0)
    if CIOU:
        area = (box.x2 - box.x1) * (box.y2 - box.y1 + 1e-7) + (pred.x2 - pred.x1) * (pred.y2 - pred.y1 + 1e-7)
        area = area - common + 1e-7
        iou = tl.div_rn(common, area)
        width = tl.maximum(pred.x2, box.x2) - tl.minimum(pred.x1, box.x1)
        height = tl.maximum(pred.y2, box.y2) - tl.minimum(pred.y1, box.y1)
        diagonal = width * width + height * height + 1e-7
        dx = pred.x1 + pred.x2 - box.x1 - box.x2
        dy = pred.y1 + pred.y2 - box.y1 - box.y2
        distance = (dx * dx + dy * dy) * 0.25
        turn = _angle(pred) - _angle(box)
        v = (turn * turn) * 0.405284734569351086
        weight = tl.div_rn(v, 1.0 - iou + v + 1e-7)
        overlap = iou - (tl.div_rn(distance, diagonal) + v * weight)
    else:
        area = (pred.x2 - pred.x1) * (pred.y2 - pred.y1) + (box.x2 - box.x1) * (box.y2 - box.y1) - common
        overlap = tl.div_rn(common, tl.where(area > 1e-6, area, 1e-6))
    counts = (area < _INFINITY) & (area > -_INFINITY) & (overlap == overlap)
    overlap = tl.where(counts & (overlap > 0.0), overlap, 0.0)
    counts = counts & (score >= 0.0) & (score < _INFINITY)
    metric = _power(tl.where(counts, score, 0.0), ALPHA) * _power(overlap, BETA)
    counts = counts & (metric < _INFINITY)
    return overlap, tl.where(counts & (metric > 0.0), metric, 0.0), counts


@triton.jit
def _inside(positions, point, live, box, margin, min_side):
    """Which points lie inside a box, whose sides are ``min_side`` at least where that is not negative."""
    x = tl.load(positions + point * 2, mask=live, other=0.0)
    y = tl.load(positions + point * 2 + 1, mask=live, other=0.0)
    centre_x = (box.x1 + box.x2) * 0.5
    centre_y = (box.y1 + box.y2) * 0.5
    width = box.x2 - box.x1
    height = box.y2 - box.y1
    half_width = tl.where(width < min_side, min_side, width) * 0.5
    half_height = tl.where(height < min_side, min_side, height) * 0.5
    rebuilt = min_side >= 0.0
    x1 = tl.where(rebuilt, centre_x - half_width, box.x1)
    y1 = tl.where(rebuilt, centre_y - half_height, box.y1)
    x2 = tl.where(rebuilt, centre_x + half_width, box.x2)
    y2 = tl.where(rebuilt, centre_y + half_height, box.y2)
    return live & (x - x1 > margin) & (y - y1 > margin) & (x2 - x > margin) & (y2 - y > margin)


@triton.jit
def _key(value, name):
    """Of two keys the larger is the higher value, then the lower name."""
    return (value.to(tl.int32, bitcast=True).to(tl.int64) << 32) | (_MASK - name.to(tl.int64))


@triton.jit
def _name(key):
    return _MASK - (key & _MASK)


@triton.jit
def _boxes_of(table, limits, image):
    """Row of the image's first box, and how many of its boxes exist."""
    row = table + image.to(tl.int64) * _COLUMNS
    count = tl.load(row + BOXES)
    if limits is not None:
        count = tl.minimum(tl.maximum(tl.load(limits + image), 0), count)
    return tl.load(row + FIRST_BOX), count


@triton.jit
def _empty_set(TOPK: tl.constexpr, ROOM: tl.constexpr):
    """Keys of no point, all different; places from TOPK on are never taken."""
    place = tl.arange(0, ROOM).to(tl.int64)
    return tl.where(place < TOPK, -1 - place, _MOST)


@triton.jit
def _insert(best, least, keys):
    """The set with those of ``keys`` that are above its least one."""
    top = tl.max(keys, axis=0)
    while top > least:
        best = tl.where(best == least, top, best)
        keys = tl.where(keys == top, _NO_KEY, keys)
        least = tl.min(best, axis=0)
        top = tl.max(keys, axis=0)
    return best, least


@triton.jit
def _ranks_of_zeros(best, points, ROOM: tl.constexpr):
    """Of points their ranks among those that are not in the set; −1 for those that are."""
    held = (best > 0) & (best < _MOST)
    names = tl.where(held, _name(best), _MASK).to(tl.int64)
    before = tl.sum((names[:, None] < points[None, :]).to(tl.int64), axis=0)
    taken = tl.max((names[:, None] == points[None, :]).to(tl.int64), axis=0)
    return tl.where(taken > 0, -1, points - before)


@kernel
def task_aligned_claim_kernel(
    index,  # (B, A) int64, in and out: the claims, −1 where there is none
    claims,  # (B, A) int32, in and out: how many
    scores,  # (B, A, C)
    image_stride: tl.int64, point_stride: tl.int64, class_stride: tl.int64,
    boxes,  # (B, A, 4) float32, predicted
    positions,  # (A, 2) float32
    gt_boxes,  # (ΣG, 4) float32
    gt_labels,  # (ΣG,) int64
    limits,  # (B,) int64, or None: boxes that exist
    table,  # (B, 4) int64
    slots: tl.int32,  # programs an image
    total: tl.int64,  # A
    classes: tl.int64,
    margin: tl.float32, min_side: tl.float32,
    CIOU: tl.constexpr, INSIDE: tl.constexpr, ZEROS: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr,
    TOPK: tl.constexpr,
    ROOM: tl.constexpr,  # a power of two, at least TOPK
    BLOCK: tl.constexpr,
):  # fmt: skip
    # 1. The box of this program.
    program = tl.program_id(0)
    image = program // slots
    number = program - image * slots
    first, count = _boxes_of(table, limits, image)
    if number < count:
        label = tl.load(gt_labels + first + number)
        if (label >= 0) & (label < classes):
            box = load_corners(gt_boxes, first + number, number >= 0, 4, 1)
            image_scores = scores + image.to(tl.int64) * image_stride + label * class_stride
            image_boxes = boxes + image.to(tl.int64) * total * 4

            # 2. Its candidates.
            best = _empty_set(TOPK, ROOM)
            least = tl.min(best, axis=0)
            for start in range(0, total, BLOCK):
                point = start + tl.arange(0, BLOCK).to(tl.int64)
                live = point < total
                if INSIDE:
                    live = _inside(positions, point, live, box, margin, min_side)
                if tl.max(live.to(tl.int32), axis=0) > 0:
                    pred = load_corners(image_boxes, point, live, 4, 1)
                    score = tl.load(image_scores + point * point_stride, mask=live, other=0.0).to(tl.float32)
                    _, metric, _ = _align(pred, box, score, CIOU, ALPHA, BETA)
                    keys = tl.where(live & (metric > 0.0), _key(metric, point), _NO_KEY)
                    best, least = _insert(best, least, keys)

            # 3. Those inside are claimed; where there are too few, points of metric 0 in their order.
            held = (best > 0) & (best < _MOST)
            point = tl.where(held, _name(best), 0)
            chosen = held & _inside(positions, point, held, box, margin, min_side)
            pred = load_corners(image_boxes, point, chosen, 4, 1)
            score = tl.load(image_scores + point * point_stride, mask=chosen, other=0.0).to(tl.float32)
            overlap, _, counted = _align(pred, box, score, CIOU, ALPHA, BETA)
            at = image.to(tl.int64) * total + point
            name = tl.full([ROOM], 0, dtype=tl.int64) + number
            tl.atomic_max(index + at, _key(overlap, name), mask=chosen & counted, sem="relaxed")
            tl.atomic_add(claims + at, 1, mask=chosen & counted, sem="relaxed")
            if ZEROS:
                found = tl.sum(held.to(tl.int64), axis=0)
                room = tl.minimum(total, TOPK)
                if found < room:
                    point = tl.arange(0, ROOM).to(tl.int64)
                    rank = _ranks_of_zeros(best, point, ROOM)
                    chosen = (point < room) & (rank >= 0) & (rank < room - found)
                    chosen = _inside(positions, point, chosen, box, margin, min_side)
                    pred = load_corners(image_boxes, point, chosen, 4, 1)
                    score = tl.load(image_scores + point * point_stride, mask=chosen, other=0.0).to(tl.float32)
                    overlap, _, counted = _align(pred, box, score, CIOU, ALPHA, BETA)
                    at = image.to(tl.int64) * total + point
                    tl.atomic_max(index + at, _key(overlap, name), mask=chosen & counted, sem="relaxed")
                    tl.atomic_add(claims + at, 1, mask=chosen & counted, sem="relaxed")


@triton.jit
def _raise_most(most, box, metric, overlap, live):
    tl.atomic_max(most + box * 2, metric.to(tl.int32, bitcast=True), mask=live, sem="relaxed")
    tl.atomic_max(most + box * 2 + 1, overlap.to(tl.int32, bitcast=True), mask=live, sem="relaxed")


@kernel
def task_aligned_settle_kernel(
    index,  # (B, A) int64, in and out: claims become boxes, counted from 1
    iou,  # (B, A) float32, out
    targets,  # (B, A) float32, out: the metrics
    most,  # (ΣG, 2) int32, in and out: bits of the highest metric and overlap of a box
    claims, scores,
    image_stride: tl.int64, point_stride: tl.int64, class_stride: tl.int64,
    boxes, positions, gt_boxes, gt_labels, limits, table,
    blocks: tl.int32,  # programs an image
    total: tl.int64, classes: tl.int64,
    margin: tl.float32, min_side: tl.float32,
    CIOU: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, CONTAINING: tl.constexpr,
    RAISING: tl.constexpr,  # whether `most` is wanted
    BLOCK: tl.constexpr,
):  # fmt: skip
    # 1. The points of this program, and what claimed them.
    program = tl.program_id(0)
    image = program // blocks
    point = (program - image * blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = point < total
    at = image.to(tl.int64) * total + point
    first, count = _boxes_of(table, limits, image)
    claim = tl.load(index + at, mask=live, other=-1)
    positive = claim >= 0
    best = tl.where(positive, _name(claim), 0).to(tl.int64)
    image_scores = scores + image.to(tl.int64) * image_stride + point * point_stride
    pred = load_corners(boxes, at, positive, 4, 1)

    # 2. Where several boxes chose a point, all boxes around it compete.
    if CONTAINING:
        contested = positive & (tl.load(claims + at, mask=live, other=0) > 1)
        if tl.max(contested.to(tl.int32), axis=0) > 0:
            highest = tl.full([BLOCK], -1.0, dtype=tl.float32)
            for number in range(0, count.to(tl.int32)):
                label = tl.load(gt_labels + first + number)
                known = (label >= 0) & (label < classes)
                box = load_corners(gt_boxes, first + number, known, 4, 1)
                around = _inside(positions, point, contested & known, box, margin, min_side)
                if tl.max(around.to(tl.int32), axis=0) > 0:
                    score = tl.load(image_scores + label * class_stride, mask=around, other=0.0).to(tl.float32)
                    overlap, _, counted = _align(pred, box, score, CIOU, ALPHA, BETA)
                    better = around & counted & (overlap > highest)
                    highest = tl.where(better, overlap, highest)
                    best = tl.where(better, number, best)

    # 3. What a point is to its box.
    label = tl.load(gt_labels + first + best, mask=positive, other=0)
    box = load_corners(gt_boxes, first + best, positive, 4, 1)
    score = tl.load(image_scores + label * class_stride, mask=positive, other=0.0).to(tl.float32)
    overlap, metric, _ = _align(pred, box, score, CIOU, ALPHA, BETA)
    tl.store(index + at, tl.where(positive, best + 1, 0), mask=live)
    tl.store(iou + at, tl.where(positive, overlap, 0.0), mask=live)
    tl.store(targets + at, tl.where(positive, metric, 0.0), mask=live)
    if RAISING:
        _raise_most(most, first + best, metric, overlap, positive)


@kernel
def task_aligned_keep_kernel(
    claims,  # (B, A) int32, out: whether a point is kept
    most,  # (ΣG, 2) int32, in and out
    index, iou, targets, limits, table,
    slots: tl.int32,  # programs an image
    total: tl.int64,
    TOPK: tl.constexpr, ROOM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    image = program // slots
    number = program - image * slots
    first, count = _boxes_of(table, limits, image)
    if number < count:
        # 1. Its points of highest metric.
        best = _empty_set(TOPK, ROOM)
        least = tl.min(best, axis=0)
        for start in range(0, total, BLOCK):
            point = start + tl.arange(0, BLOCK).to(tl.int64)
            at = image.to(tl.int64) * total + point
            own = tl.load(index + at, mask=point < total, other=0) == number + 1
            if tl.max(own.to(tl.int32), axis=0) > 0:
                metric = tl.load(targets + at, mask=own, other=0.0)
                best, least = _insert(best, least, tl.where(metric > 0.0, _key(metric, point), _NO_KEY))

        # 2. Those are kept, and, where there are too few, points of metric 0 in their order.
        held = (best > 0) & (best < _MOST)
        found = tl.sum(held.to(tl.int64), axis=0)
        for start in range(0, total, BLOCK):
            point = start + tl.arange(0, BLOCK).to(tl.int64)
            at = image.to(tl.int64) * total + point
            own = tl.load(index + at, mask=point < total, other=0) == number + 1
            if tl.max(own.to(tl.int32), axis=0) > 0:
                metric = tl.load(targets + at, mask=own, other=0.0)
                overlap = tl.load(iou + at, mask=own, other=0.0)
                rank = _ranks_of_zeros(best, point, ROOM)
                kept = tl.where(metric > 0.0, _key(metric, point) >= least, rank < TOPK - found)
                tl.store(claims + at, kept.to(tl.int32), mask=own)
                _raise_most(most, first + number + tl.zeros([BLOCK], dtype=tl.int64), metric, overlap, own & kept)


@kernel
def task_aligned_finish_kernel(
    index,  # (B, A) int64, in and out: points that are not kept become background
    iou,  # (B, A) float32, in and out
    labels,  # (B, A) int64, out
    targets,  # (B, A) float32, in and out: metrics become targets
    most, claims, gt_labels, limits, table,
    blocks: tl.int32,  # programs an image
    total: tl.int64,
    eps: tl.float32,
    KEEPING: tl.constexpr,  # whether only points with a mark in `claims` are kept
    NORMALIZING: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    image = program // blocks
    point = (program - image * blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = point < total
    at = image.to(tl.int64) * total + point
    first, _ = _boxes_of(table, limits, image)
    number = tl.load(index + at, mask=live, other=0)
    positive = number > 0
    if KEEPING:
        positive = positive & (tl.load(claims + at, mask=live, other=0) > 0)
    box = first + tl.where(positive, number - 1, 0)
    tl.store(labels + at, tl.load(gt_labels + box, mask=positive, other=-1), mask=live)
    if KEEPING:
        tl.store(index + at, tl.where(positive, number, 0), mask=live)
        tl.store(iou + at, 0.0, mask=live & (number > 0) & (positive == 0))
    target = tl.load(targets + at, mask=positive, other=0.0)
    if NORMALIZING:
        metric = tl.load(most + box * 2, mask=positive, other=0).to(tl.float32, bitcast=True)
        overlap = tl.load(most + box * 2 + 1, mask=positive, other=0).to(tl.float32, bitcast=True)
        target = tl.where(positive, tl.div_rn(target * overlap, tl.where(positive, metric + eps, 1.0)), 0.0)
    tl.store(targets + at, target, mask=live)


def task_aligned(
    scores: Tensor,
    boxes: Tensor,
    points: Tensor,
    gt_boxes: Sequence[Tensor],
    gt_labels: Sequence[Tensor],
    counts: Tensor | None,
    topk: int,
    alpha: float,
    beta: float,
    ciou: bool,
    inside: bool,
    margin: float,
    min_side: float,
    zeros: bool,
    containing: bool,
    final_topk: int,
    normalize: bool,
    eps: float,
    index: Tensor,
    iou: Tensor,
    assigned_labels: Tensor,
    targets: Tensor,
) -> None:
    """Write the assignment of a batch into the last four. All tensors but ``scores`` are contiguous.

    Args:
        scores: (B, A, C), any strides. boxes: (B, A, 4) float32, predicted. points: (A, 2) float32.
        gt_boxes: B tensors (G_i, 4) float32, or one (B, G, 4), of which the first ``counts[i]`` of image i exist.
        gt_labels: shaped alike, int64. counts: (B,) int64 or None.
        alpha, beta: 0.5, or whole numbers to 16.
        min_side: negative where boxes stay as they are. final_topk: 0 where all points of a box remain.
        index, iou, assigned_labels, targets: (B, A) int64, float32, int64, float32.
    """
    batch, total = index.shape
    counted = numbers_of(gt_boxes, batch)
    slots = max(counted)
    table = image_table(batch, counted, [0] * batch, (), (), index.device)
    flat_labels = torch.cat([image.reshape(-1) for image in gt_labels])
    boxes_of_images = {"gt_labels": flat_labels, "limits": counts, "table": table}
    predicted: dict[str, Any] = {
        "scores": scores,
        **dict(zip(("image_stride", "point_stride", "class_stride"), scores.stride(), strict=True)),
        "boxes": boxes,
        "positions": points,
        "gt_boxes": torch.cat([image.reshape(-1, 4) for image in gt_boxes]),
        "classes": scores.shape[2],
        "margin": margin,
        "min_side": min_side,
        "CIOU": ciou,
        "ALPHA": _exponent(alpha),
        "BETA": _exponent(beta),
    }
    blocks = -(-total // _POINTS)
    shared: dict[str, Any] = {"total": total, "BLOCK": _POINTS, **_OPTIONS}
    index.fill_(-1)
    claims = torch.zeros_like(index, dtype=torch.int32)
    most = torch.zeros(len(flat_labels), 2, dtype=torch.int32, device=index.device)
    with device_of(index):
        if slots:
            task_aligned_claim_kernel[(batch * slots,)](
                *(index, claims),
                **boxes_of_images,
                **predicted,
                slots=slots,
                INSIDE=inside,
                ZEROS=zeros,
                TOPK=topk,
                ROOM=triton.next_power_of_2(topk),
                **shared,
            )
        task_aligned_settle_kernel[(batch * blocks,)](
            *(index, iou, targets, most, claims),
            **boxes_of_images,
            **predicted,
            blocks=blocks,
            CONTAINING=containing,
            RAISING=normalize and not final_topk,
            **shared,
        )
        if slots and final_topk:
            task_aligned_keep_kernel[(batch * slots,)](
                *(claims, most, index, iou, targets, counts, table),
                slots=slots,
                TOPK=final_topk,
                ROOM=triton.next_power_of_2(final_topk),
                **{**shared, **_KEEPING},
            )
        task_aligned_finish_kernel[(batch * blocks,)](
            *(index, iou, assigned_labels, targets, most, claims),
            **boxes_of_images,
            blocks=blocks,
            eps=eps,
            KEEPING=final_topk > 0,
            NORMALIZING=normalize,
            **shared,
        )


def _exponent(value: float) -> int:
    """0.5 or a whole number, as the kernels take it."""
    return _ROOT.value if value == 0.5 else int(value)
