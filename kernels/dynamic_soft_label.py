"""``dynamic_soft_label`` in Triton: the assignment of a whole batch by the cost of what the network predicts.

 1. ``dynamic_soft_label_points``: which points are candidates, and the sum over their classes, once a point (float64).
 2. ``dynamic_soft_label_boxes``: a program takes some boxes of one image and goes through all its points. It keeps the
    highest IoUs and the lowest costs as ascending lists of 64-bit keys, (number in the order of the value, point), so
    that of equal costs the lower point is taken. The first k of the costs claim their points: a counter a point, and
    the largest of ~(ordered cost, box), which is the lowest cost, then the lower box.
 3. ``dynamic_soft_label_finish``: from claims to index, IoU and label of every point. A point claimed more than once
    looks at all boxes of its image.

Comparisons hang on every bit: no launch may fuse a product with a sum (``enable_fp_fusion=False``), division and root
are the exact ones, and logarithm and powers those below, as in csrc/include/gflv2/dynamic_soft_label.hpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gflv2.kernels.atss import BOXES, FIRST_BOX, image_table, numbers_of
from gflv2.kernels.boxes import Corners, at_least, load_corners
from gflv2.kernels.launching import INTERPRETED, device_of, kernel
from gflv2.kernels.logarithm import minus_log

_POINTS = 4096 if INTERPRETED else 64  # points a program of the first kernel
_SUMMED = 16  # classes side by side
_BOXES = 64 if INTERPRETED else 4  # boxes a program
_CELLS = 512 if INTERPRETED else 128  # points that it looks at together
_SETTLED = 512 if INTERPRETED else 32  # points a program of the last kernel
_RIVALS = 64 if INTERPRETED else 8  # boxes that it looks at together
# The register limit is explicit: without one ptxas spills some words of two kernels on sm_90.
_OPTIONS: dict[str, Any] = {"num_warps": 4, "maxnreg": 128, "enable_fp_fusion": False}
_LISTS: dict[str, Any] = {"maxnreg": 144}  # Triton 3.6 spills the lists of a box with 128 and with 136
COSTS = ("rtmdet", "nanodet", "simota", "align_ota")

RTMDET = tl.constexpr(0)
NANODET = tl.constexpr(1)
SIMOTA = tl.constexpr(2)
ALIGN_OTA = tl.constexpr(3)
_COLUMNS = tl.constexpr(4)  # of the table of images
_NEVER = tl.constexpr(0x7FFFFFFFFFFFFFFF)
_LEAST = tl.constexpr(-0x8000000000000000)
_LOW = tl.constexpr(0xFFFFFFFF)
_HIGHEST = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _power_of_two(f, n):
    """2^(f + n) for |f| ≤ ½ and a whole n from −125 to 128."""
    p = f * 1.519680955e-4 + 1.339131733e-3
    p = p * f + 9.619002230e-3
    p = p * f + 5.550358817e-2
    p = p * f + 2.402264327e-1
    p = p * f + 6.931471825e-1
    p = p * f + 1.0
    return (p + p) * ((n.to(tl.int32) + 126) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _nearest_whole(x):
    return (x + 12582912.0) - 12582912.0


@triton.jit
def _power_of_e(x):
    """e^x for x ≤ 0; below −86: e^−86."""
    x = at_least(x, -86.0)
    n = _nearest_whole(x * 1.44269504)
    r = (x - n * 6.93145751953125e-1) - n * 1.42860682e-6
    return _power_of_two(r * 1.44269504, n)


@triton.jit
def _power_of_ten(x):
    within = at_least(x, -37.5)
    within = tl.where(within > 38.53, 38.53, within)
    n = _nearest_whole(within * 3.32192809)
    r = (within - n * 0.301025390625) - n * 4.60503898e-6
    return tl.where(x > 38.5318, float("inf"), _power_of_two(r * 3.32192809, n))


@triton.jit
def _natural_log(value, less):
    """log(value) for a normal positive number; ``less`` is value − 1 and serves where value lies near 1."""
    return -minus_log(value, -less)


@triton.jit
def _limited_log(value, less):
    """max(log(value), −100) for 0 ≤ value ≤ 1."""
    scaled = value * 16777216.0
    small = _natural_log(scaled, scaled - 1.0) - 16.63553233
    log = tl.where(value < 1.17549435e-38, small, _natural_log(value, less))
    return tl.where(value > 0.0, at_least(log, -100.0), -100.0)


@triton.jit
def _usable(x, COST: tl.constexpr):
    if COST >= SIMOTA:
        return (x >= 0.0) & (x <= 1.0)
    return x - x == 0.0


@triton.jit
def _logit_parts(x):
    """σ(x) and log σ(x)."""
    e = _power_of_e(tl.where(x < -x, x, -x))
    whole = e + 1.0
    inverse = tl.div_rn(tl.full(x.shape, 1.0, tl.float32), whole)
    score = tl.where(x > 0.0, inverse, e * inverse)
    return score, tl.where(x < 0.0, x, 0.0) - _natural_log(whole, e)


@triton.jit
def _background(x, COST: tl.constexpr):
    """The term of a class whose target is 0."""
    if COST >= SIMOTA:
        negative = -_limited_log(1.0 - x, -x)
        return negative if COST == SIMOTA else negative * (x * x)
    score, rest = _logit_parts(x)
    return (x - rest) * (score * score)


@triton.jit
def _class_cost(base, x, iou, COST: tl.constexpr):
    """``base``: sum of the background terms of all classes; x: value of the box's class."""
    if COST >= SIMOTA:
        negative = _limited_log(1.0 - x, -x)
        positive = _limited_log(x, x - 1.0)
        if COST == SIMOTA:
            background = -negative
            foreground = -positive
        else:
            difference = iou - x
            background = -negative * (x * x)
            foreground = ((iou - 1.0) * negative - iou * positive) * (difference * difference)
    else:
        score, rest = _logit_parts(x)
        difference = iou - score
        background = (x - rest) * (score * score)
        foreground = ((1.0 - iou) * x - rest) * (difference * difference)
    total = ((base - background.to(tl.float64)) + foreground.to(tl.float64)).to(tl.float32)
    return at_least(total, 0.0)


@triton.jit
def _area(box):
    return (box.x2 - box.x1) * (box.y2 - box.y1)


@triton.jit
def _iou(own, box):
    """Of finite boxes."""
    width = tl.minimum(own.x2, box.x2) - tl.maximum(own.x1, box.x1)
    height = tl.minimum(own.y2, box.y2) - tl.maximum(own.y1, box.y1)
    common = at_least(width, 0.0) * at_least(height, 0.0)
    return tl.div_rn(common, at_least((_area(own) + _area(box)) - common, 1e-6))


@triton.jit
def _iou_cost(iou, weight):
    value = iou + 1e-7
    return -_natural_log(value, value - 1.0) * weight


@triton.jit
def _inside(x, y, box):
    return (x - box.x1 > 0.0) & (y - box.y1 > 0.0) & (box.x2 - x > 0.0) & (box.y2 - y > 0.0)


@triton.jit
def _central(x, y, box, reach):
    cx = (box.x1 + box.x2) * 0.5
    cy = (box.y1 + box.y2) * 0.5
    return (x - (cx - reach) > 0.0) & (y - (cy - reach) > 0.0) & ((cx + reach) - x > 0.0) & ((cy + reach) - y > 0.0)


@triton.jit
def _centre_term(x, y, stride, box, radius, like, COST: tl.constexpr):
    """``like``: a tile of the result's shape."""
    if COST >= SIMOTA:
        free = _inside(x, y, box) & _central(x, y, box, stride * radius)
        return tl.where(free, 0.0, 1e5 if COST == SIMOTA else 1e8)
    if COST == NANODET:
        return tl.zeros_like(like)
    dx = x - (box.x1 + box.x2) * 0.5
    dy = y - (box.y1 + box.y2) * 0.5
    return _power_of_ten(tl.div_rn(tl.sqrt_rn(dx * dx + dy * dy), stride + tl.zeros_like(like)) - radius)


@triton.jit
def _cost(class_cost, class_weight, iou_cost, centre):
    return (class_cost * class_weight + iou_cost) + centre


@triton.jit
def _ordered(value):
    """A float as an integer of the same order."""
    bits = value.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & _HIGHEST)


@triton.jit
def _is_finite(box):
    return (box.x1 - box.x1 == 0.0) & (box.y1 - box.y1 == 0.0) & (box.x2 - box.x2 == 0.0) & (box.y2 - box.y2 == 0.0)


@triton.jit
def _truths(targets, labels, row, number, live, classes):
    """Corners and labels of boxes, and which of them take part."""
    at = tl.load(row + FIRST_BOX) + number
    box = load_corners(targets, at, live, 4, 1)
    label = tl.load(labels + at, mask=live, other=-1)
    return box, label, live & _is_finite(box) & (label >= 0) & (label < classes)


@triton.jit
def _count_of(row, limits, image):
    """Number of the image's boxes that exist."""
    count = tl.load(row + BOXES)
    if limits is not None:
        count = tl.minimum(tl.maximum(tl.load(limits + image), 0), count)
    return count


@triton.jit
def _load_place(places, strides, point, live):
    x = tl.load(places + point * 2, mask=live, other=0.0)
    y = tl.load(places + point * 2 + 1, mask=live, other=0.0)
    return x, y, tl.load(strides + point, mask=live, other=1.0)


@triton.jit
def _merge(best, keys, TOPK: tl.constexpr, WIDE: tl.constexpr):
    """The TOPK smallest of both tiles (BLOCK, WIDE) and (BLOCK, …), ascending; _NEVER behind. No key comes twice."""
    place = tl.arange(0, WIDE)[None, :]
    merged = tl.full(best.shape, _NEVER, dtype=tl.int64)
    for n in range(0, TOPK):
        least = tl.minimum(tl.min(best, axis=1), tl.min(keys, axis=1))[:, None]
        best = tl.where(best == least, _NEVER, best)
        keys = tl.where(keys == least, _NEVER, keys)
        merged = tl.where(place == n, least, merged)
    return merged


@kernel
def dynamic_soft_label_points_kernel(
    base,  # (B, A) float64, out: sum over the classes, or NaN: no candidate
    index,  # (B, A) int64, out: no claim
    taken,  # (B, A) int32, out: 0 claims
    values,  # (B, A, C)
    boxes,  # (B, A, 4) float32
    places,  # (A, 2) float32
    strides,  # (A,) float32
    targets,  # (ΣG, 4) float32
    labels,  # (ΣG,) int64
    limits,  # (B,) int64, or None: boxes that exist
    table,
    radius: tl.float32,
    blocks: tl.int32,  # programs an image
    total_points: tl.int64,
    value_image: tl.int64,
    value_point: tl.int64,
    value_class: tl.int64,
    classes: tl.int32,
    COST: tl.constexpr,
    SUMMED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # 1. The points of this program.
    program = tl.program_id(0)
    image = program // blocks
    row = table + image.to(tl.int64) * _COLUMNS
    point = (program - image * blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = point < total_points
    at = image.to(tl.int64) * total_points + point
    x, y, stride = _load_place(places, strides, point, live)

    # 2. Which are candidates.
    candidate = tl.zeros([BLOCK], dtype=tl.int32)
    for number in range(0, _count_of(row, limits, image)):
        box, _, playing = _truths(targets, labels, row, number, number >= 0, classes)
        near = _inside(x, y, box)
        if COST >= SIMOTA:
            near = near | _central(x, y, box, stride * radius)
        candidate = candidate | (near & playing).to(tl.int32)
    candidate = live & (candidate != 0)
    candidate = candidate & _is_finite(load_corners(boxes, at, candidate, 4, 1))

    # 3. The sum over their classes: SUMMED chains.
    sums = tl.zeros([BLOCK, SUMMED], dtype=tl.float64)
    unusable = tl.zeros([BLOCK, SUMMED], dtype=tl.int32)
    first = values + image.to(tl.int64) * value_image + point[:, None] * value_point
    for start in range(0, classes, SUMMED):
        column = start + tl.arange(0, SUMMED)[None, :]
        read = candidate[:, None] & (column < classes)
        value = tl.load(first + column.to(tl.int64) * value_class, mask=read, other=0.0).to(tl.float32)
        unusable = unusable | (read & ~_usable(value, COST)).to(tl.int32)
        sums += tl.where(read, _background(value, COST), 0.0).to(tl.float64)
    candidate = candidate & (tl.max(unusable, axis=1) == 0)
    tl.store(base + at, tl.where(candidate, tl.sum(sums, axis=1), float("nan")), mask=live)
    tl.store(index + at, tl.full([BLOCK], _LEAST, dtype=tl.int64), mask=live)
    tl.store(taken + at, tl.zeros([BLOCK], dtype=tl.int32), mask=live)


@kernel
def dynamic_soft_label_boxes_kernel(
    index,  # (B, A) int64, in and out: the claims
    taken,  # (B, A) int32, in and out
    base, values, boxes, places, strides, targets, labels, limits, table,
    radius: tl.float32, iou_weight: tl.float32, class_weight: tl.float32,
    blocks: tl.int32,  # programs an image
    total_points: tl.int64,
    value_image: tl.int64, value_point: tl.int64, value_class: tl.int64,
    classes: tl.int32,
    COST: tl.constexpr, TOPK: tl.constexpr,
    WIDE: tl.constexpr,  # a power of two, at least TOPK
    CELLS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # 1. The boxes of this program.
    program = tl.program_id(0)
    image = program // blocks
    row = table + image.to(tl.int64) * _COLUMNS
    number = (program - image * blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    flat, label, playing = _truths(targets, labels, row, number, number < _count_of(row, limits, image), classes)
    box = Corners(flat.x1[:, None], flat.y1[:, None], flat.x2[:, None], flat.y2[:, None])
    of_label = values + image.to(tl.int64) * value_image + tl.where(playing, label, 0)[:, None] * value_class
    first = image.to(tl.int64) * total_points

    # 2. All points of the image: the highest IoUs and the lowest costs.
    highest = tl.full([BLOCK, WIDE], _NEVER, dtype=tl.int64)
    lowest = tl.full([BLOCK, WIDE], _NEVER, dtype=tl.int64)
    place = tl.arange(0, WIDE)[None, :]
    for start in range(0, total_points, CELLS):
        point = start + tl.arange(0, CELLS).to(tl.int64)
        live = point < total_points
        sum_of = tl.load(base + first + point, mask=live, other=float("nan"))
        live = live & (sum_of == sum_of)
        if tl.max(live.to(tl.int32), axis=0) > 0:
            own = load_corners(boxes, first + point, live, 4, 1)
            iou = _iou(Corners(own.x1[None, :], own.y1[None, :], own.x2[None, :], own.y2[None, :]), box)
            pair = playing[:, None] & live[None, :]
            bits = iou.to(tl.int32, bitcast=True) ^ _HIGHEST  # the highest IoU first
            keys = tl.where(pair & (iou > 0.0), (bits.to(tl.int64) << 32) | point[None, :], _NEVER)
            worst = tl.max(tl.where(place < TOPK, highest, _LEAST), axis=1)
            if tl.max((tl.min(keys, axis=1) < worst).to(tl.int32), axis=0) > 0:
                highest = _merge(highest, keys, TOPK, WIDE)

            x, y, stride = _load_place(places, strides, point, live)
            of_iou = _iou_cost(iou, iou_weight)
            centre = _centre_term(x[None, :], y[None, :], stride[None, :], box, radius, iou, COST)
            worst = tl.max(tl.where(place < TOPK, lowest, _LEAST), axis=1)
            # Without the class cost: a lower bound.
            pair = pair & (_ordered(of_iou + centre) <= (worst >> 32).to(tl.int32)[:, None])
            if tl.max(tl.max(pair.to(tl.int32), axis=1), axis=0) > 0:
                value = tl.load(of_label + point[None, :] * value_point, mask=pair, other=0.0).to(tl.float32)
                cost = _cost(_class_cost(sum_of[None, :], value, iou, COST), class_weight, of_iou, centre)
                keys = (_ordered(cost).to(tl.int64) << 32) | point[None, :]
                keys = tl.where(pair & (cost == cost), keys, _NEVER)
                if tl.max((tl.min(keys, axis=1) < worst).to(tl.int32), axis=0) > 0:
                    lowest = _merge(lowest, keys, TOPK, WIDE)

    # 3. k: the IoUs are added from the highest down.
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for n in range(0, TOPK):
        key = tl.sum(tl.where(place == n, highest, 0), axis=1)
        found = ((key >> 32).to(tl.int32) ^ _HIGHEST).to(tl.float32, bitcast=True)
        total += tl.where(key == _NEVER, 0.0, found)
    k = tl.maximum(total.to(tl.int32), 1)

    # 4. Its claims.
    claiming = playing[:, None] & (place < k[:, None]) & (lowest != _NEVER)
    at = first + tl.where(claiming, lowest & _LOW, 0)
    claim = ~(((lowest >> 32) << 32) | number[:, None])
    tl.atomic_add(taken + at, tl.full(at.shape, 1, dtype=tl.int32), mask=claiming, sem="relaxed")
    tl.atomic_max(index + at, claim, mask=claiming, sem="relaxed")


@kernel
def dynamic_soft_label_finish_kernel(
    index,  # (B, A) int64, in and out: claims become indices
    iou,  # (B, A) float32, out
    label,  # (B, A) int64, out
    taken, base, values, boxes, places, strides, targets, labels, limits, table,
    radius: tl.float32, iou_weight: tl.float32, class_weight: tl.float32,
    blocks: tl.int32,  # programs an image
    total_points: tl.int64,
    value_image: tl.int64, value_point: tl.int64, value_class: tl.int64,
    classes: tl.int32,
    COST: tl.constexpr,
    RIVALS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # 1. The points of this program, and who claims them.
    program = tl.program_id(0)
    image = program // blocks
    row = table + image.to(tl.int64) * _COLUMNS
    point = (program - image * blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = point < total_points
    at = image.to(tl.int64) * total_points + point
    claims = tl.load(taken + at, mask=live, other=0)
    positive = claims > 0
    best = ~tl.load(index + at, mask=positive, other=-1)
    own = load_corners(boxes, at, positive, 4, 1)

    # 2. Those that several claim: all boxes of the image.
    contested = claims > 1
    if tl.max(contested.to(tl.int32), axis=0) > 0:
        x, y, stride = _load_place(places, strides, point, contested)
        sum_of = tl.load(base + at, mask=contested, other=0.0)
        wide = Corners(own.x1[:, None], own.y1[:, None], own.x2[:, None], own.y2[:, None])
        of_point = values + image.to(tl.int64) * value_image + point[:, None] * value_point
        count = _count_of(row, limits, image)
        for start in range(0, count, RIVALS):
            number = start + tl.arange(0, RIVALS).to(tl.int64)
            flat, name, playing = _truths(targets, labels, row, number, number < count, classes)
            box = Corners(flat.x1[None, :], flat.y1[None, :], flat.x2[None, :], flat.y2[None, :])
            other = _iou(wide, box)
            of_iou = _iou_cost(other, iou_weight)
            centre = _centre_term(x[:, None], y[:, None], stride[:, None], box, radius, other, COST)
            pair = contested[:, None] & playing[None, :]
            pair = pair & (_ordered(of_iou + centre) <= (best >> 32).to(tl.int32)[:, None])
            if tl.max(tl.max(pair.to(tl.int32), axis=1), axis=0) > 0:
                value = tl.load(of_point + name[None, :] * value_class, mask=pair, other=0.0).to(tl.float32)
                cost = _cost(_class_cost(sum_of[:, None], value, other, COST), class_weight, of_iou, centre)
                keys = (_ordered(cost).to(tl.int64) << 32) | number[None, :]
                best = tl.minimum(best, tl.min(tl.where(pair & (cost == cost), keys, _NEVER), axis=1))

    # 3. The results.
    number = tl.where(positive, best & _LOW, 0)
    to = tl.load(row + FIRST_BOX) + number
    box = load_corners(targets, to, positive, 4, 1)
    tl.store(index + at, tl.where(positive, number + 1, 0), mask=live)
    tl.store(iou + at, tl.where(positive, _iou(own, box), 0.0), mask=live)
    tl.store(label + at, tl.load(labels + to, mask=positive, other=-1), mask=live)


def dynamic_soft_label(
    logits: Tensor,
    boxes: Tensor,
    points: Tensor,
    strides: Tensor,
    gt_boxes: Sequence[Tensor],
    gt_labels: Sequence[Tensor],
    counts: Tensor | None,
    topk: int,
    iou_weight: float,
    class_weight: float,
    center_radius: float,
    cost: str,
    index: Tensor,
    iou: Tensor,
    labels: Tensor,
) -> None:
    """Write the assignment of a batch into the last three. All tensors but ``logits`` are contiguous.

    Args:
        logits: (B, A, C), any strides.
        boxes: (B, A, 4), points: (A, 2), strides: (A,); float32.
        gt_boxes: B tensors (G_i, 4) float32, or one (B, G, 4), of which the first ``counts[i]`` of image i exist.
        gt_labels: shaped alike, int64. counts: (B,) int64 or None.
        index, iou, labels: (B, A) int64, float32, int64.
    """
    batch, total, classes = logits.shape
    counted = numbers_of(gt_boxes, batch)
    image, point, of_class = logits.stride()
    kind = COSTS.index(cost)
    base = index.new_empty(index.shape, dtype=torch.float64)
    taken = index.new_empty(index.shape, dtype=torch.int32)
    truths = (
        torch.cat([part.reshape(-1, 4) for part in gt_boxes]),
        torch.cat([part.reshape(-1) for part in gt_labels]),
        counts,
        image_table(batch, counted, [0] * batch, [], [], index.device),
    )
    shared = {
        "radius": center_radius,
        "total_points": total,
        "value_image": image,
        "value_point": point,
        "value_class": of_class,
        "classes": classes,
        "COST": kind,
        **_OPTIONS,
    }
    weights = {"iou_weight": iou_weight, "class_weight": class_weight}
    with device_of(index):
        blocks = -(-total // _POINTS)
        dynamic_soft_label_points_kernel[(batch * blocks,)](
            *(base, index, taken, logits, boxes, points, strides, *truths),
            blocks=blocks,
            SUMMED=_SUMMED,
            BLOCK=_POINTS,
            **shared,
        )
        if max(counted):
            blocks = -(-max(counted) // _BOXES)
            dynamic_soft_label_boxes_kernel[(batch * blocks,)](
                *(index, taken, base, logits, boxes, points, strides, *truths),
                blocks=blocks,
                TOPK=topk,
                WIDE=triton.next_power_of_2(topk),
                CELLS=_CELLS,
                BLOCK=_BOXES,
                **weights,
                **{**shared, **_LISTS},
            )
        blocks = -(-total // _SETTLED)
        dynamic_soft_label_finish_kernel[(batch * blocks,)](
            *(index, iou, labels, taken, base, logits, boxes, points, strides, *truths),
            blocks=blocks,
            RIVALS=_RIVALS,
            BLOCK=_SETTLED,
            **weights,
            **shared,
        )
