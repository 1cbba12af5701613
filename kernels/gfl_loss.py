"""``gfl_targets`` and the box losses of ``gfl_loss`` in Triton (arXiv 2006.04388 and 2011.12885).

A program takes a block of cells of one level of one image. Few cells are positive: a program without one reads an index
(or a weight) a cell and is done. Of the others only the positive cells' logits are read.

Sums go in two stages: a slot a program, then one program over the slots. The gradient of the box losses joins that of
the statistics in ``gflv2.kernels.dgqp``; `box_loss_forward` leaves the slopes that it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gflv2.kernels import common, dgqp
from gflv2.kernels.atss import BOXES, FIRST_BOX, VALID, image_table, numbers_of
from gflv2.kernels.common import (
    BIN_STRIDE,
    COUNT,
    INTERPRETED,
    SIDE_STRIDE,
    cell_offsets,
    find_level,
    pick,
    pick_column,
)
from gflv2.kernels.logarithm import minus_log
from gflv2.kernels.reduction import PARTIALS, sum_run
from gflv2.kernels.rows import body_of, expectation, hat, load_bins, load_projection

# Cells of a program by AXIS; with the cells last half of them from 64 bins on. With the bins last 64 cells spilled. The
# interpreter pays for each operation of a program, not for each element.
_CELLS = (512, 512) if INTERPRETED else (64, 16)
_CLASSES = 16  # looked at together
# The registers of a thread are said aloud: left alone, ptxas spills a few words of some variants to stay below 128 or
# 72. Within this bound R = 17 takes at most 123, and R = 33 up to 206.
_OPTIONS: dict[str, Any] = {"num_warps": 4, "maxnreg": 248, "enable_fp_fusion": True}

_MAPS = ("box", "cls")
# Nothing of these is compiled in: neither a size, nor a stride, nor the alignment of an input.
_RUN_TIME = [f"{name}_{level}" for name in _MAPS for level in range(common.MAX_LEVELS)]
_RUN_TIME += ["index", "assigned", "boxes", "table", "quality", "projection", "scales", "labels", "target_boxes"]
_RUN_TIME += ["scores", "weights", "label_weights", "partial_counts", "partial_weights", "sums", "slopes", "losses"]
_RUN_TIME += ["normaliser", "partial_giou", "partial_dfl", "classes", "blocks", "total", "batch", "slots", "columns"]
_RUN_TIME += ["giou_factor", "dfl_factor", "offset"]


@triton.jit
def _pick_stride(strides, level):
    """The stride of a level, in pixels."""
    chosen = strides[0]
    for candidate in tl.static_range(1, len(strides)):
        chosen = tl.where(level == candidate, strides[candidate], chosen)
    return chosen


@triton.jit
def _side(
    logits, offsets, live, bin_stride, scale, projection, target,
    BINS: tl.constexpr, BODY: tl.constexpr, AXIS: tl.constexpr,
):  # fmt: skip
    """The distance of one side, and its DFL for a target in bins."""
    values, last = load_projection(projection, 1, BINS, BODY, AXIS)
    _, body, _, tail = load_bins(logits, offsets, live, bin_stride, scale, BINS, BODY, AXIS)
    peak = tl.max(body, axis=AXIS)
    if BODY < BINS:
        peak = tl.maximum(peak, tail)
    body -= tl.expand_dims(peak, AXIS)
    powers = tl.exp(body)
    sum_powers = tl.sum(powers, axis=AXIS)
    share = hat(tl.expand_dims(tl.arange(0, BODY), 1 - AXIS), tl.expand_dims(target, AXIS))
    # Not a product alone: a logit of −∞ outside the two bins must not spoil the loss.
    chosen = tl.sum(tl.where(share == 0.0, 0.0, share * body), axis=AXIS)
    tail_power = peak * 0.0
    if BODY < BINS:
        tail -= peak
        tail_power = tl.exp(tail)
        sum_powers += tail_power
        tail_share = hat(BODY, target)
        chosen += tl.where(tail_share == 0.0, 0.0, tail_share * tail)
    distance = expectation(powers, tail_power, values, last, BINS, BODY, AXIS) / sum_powers
    return distance, -minus_log(sum_powers, 1.0 - sum_powers) - chosen


@triton.jit
def _at_least(x, low):
    return tl.where(x < low, low, x)


@triton.jit
def _share(a, b):
    """∂max(a, b)/∂a: 1 where a > b, a half where they are equal."""
    return tl.where(a > b, 1.0, tl.where(a == b, 0.5, 0.0))


@triton.jit
def _overlap(low, high, target_low, target_high):
    """Sides of the intersection and of the enclosing box along one axis."""
    common_side = tl.minimum(high, target_high) - tl.maximum(low, target_low)
    whole = tl.maximum(high, target_high) - tl.minimum(low, target_low)
    return _at_least(common_side, 0.0), _at_least(whole, 0.0)


@triton.jit
def _axis_slopes(
    low, high, target_low, target_high, other_side, inner, other_inner, outer, other_outer,
    of_union, of_common, of_whole,
):  # fmt: skip
    """∂/∂(distance to the low side, distance to the high side) along one axis."""
    # A side of the intersection or of the enclosing box that is 0 has derivative 0.
    common_slope = tl.where(inner > 0.0, of_common * other_inner, 0.0)
    whole_slope = tl.where(outer > 0.0, of_whole * other_outer, 0.0)
    left = _share(low, target_low)
    right = _share(target_high, high)
    area = of_union * other_side
    return (
        left * common_slope + area + (1.0 - left) * whole_slope,
        right * common_slope + area + (1.0 - right) * whole_slope,
    )


@triton.jit(do_not_specialize=_RUN_TIME)
def gfl_targets_kernel(
    labels,  # (B, A) int64
    target_boxes,  # (B, A, 4) float32
    scores, weights, label_weights,  # (B, A) float32
    partial_counts, partial_weights,  # (programs,) float32
    index, assigned,  # (B, A) int64
    boxes,  # (ΣG, 4) float32
    table,  # of images, see gflv2.kernels.atss
    box_0, box_1, box_2, box_3, box_4, box_5, box_6, box_7,  # (B, 4·R, H_l, W_l)
    levels,
    cls_0, cls_1, cls_2, cls_3, cls_4, cls_5, cls_6, cls_7,  # (B, C, H_l, W_l)
    class_levels,
    quality,  # (B, A) float32, or None
    projection,  # (R,) float32
    scales,  # (L,) float32, or None
    strides,  # L floats
    offset: tl.float32,
    classes: tl.int32,
    columns: tl.int32,  # of the table
    blocks: tl.int32,  # programs an image
    total: tl.int64,  # A
    BINS: tl.constexpr,
    BODY: tl.constexpr,
    AXIS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    LEVELS: tl.constexpr = len(levels)

    # 1. The image, the level and the cells of this program.
    program = tl.program_id(0)
    image = program // blocks
    level, first_block, first_point = find_level(levels, program - image * blocks, BLOCK)
    cells = (program - image * blocks - first_block) * BLOCK + tl.arange(0, BLOCK)
    live = cells < pick_column(levels, level, COUNT)
    offsets, y, x = cell_offsets(levels, level, image, cells, False)
    rows = image.to(tl.int64) * total + first_point + cells
    number = tl.load(index + rows, mask=live, other=0)
    positive = number > 0
    line = table + image.to(tl.int64) * columns
    y_valid = tl.load(line + VALID + 2 * level)
    x_valid = tl.load(line + VALID + 2 * level + 1)
    counts = live & (number >= 0) & (y < y_valid) & (x < x_valid)
    tl.store(label_weights + rows, tl.where(counts, 1.0, 0.0), mask=live)

    label = tl.full((BLOCK,), -1, tl.int64)
    x1 = tl.zeros((BLOCK,), tl.float32)
    y1 = tl.zeros((BLOCK,), tl.float32)
    x2 = tl.zeros((BLOCK,), tl.float32)
    y2 = tl.zeros((BLOCK,), tl.float32)
    score = tl.zeros((BLOCK,), tl.float32)
    weight = tl.zeros((BLOCK,), tl.float32)
    if tl.max(positive.to(tl.int32), axis=0) > 0:
        # 2. The predicted boxes, in units of the stride.
        every = (box_0, box_1, box_2, box_3, box_4, box_5, box_6, box_7)
        logits = pick(every, level, LEVELS)
        side_stride = pick_column(levels, level, SIDE_STRIDE)
        bin_stride = pick_column(levels, level, BIN_STRIDE)
        scale = 1.0
        if scales is not None:
            scale = tl.load(scales + level)
        distances = ()
        for side in tl.static_range(4):
            at = offsets + side * side_stride
            distance, _ = _side(logits, at, positive, bin_stride, scale, projection, weight, BINS, BODY, AXIS)
            distances = distances + (distance,)
        left, top, right, bottom = distances
        cx = x.to(tl.float32) + offset
        cy = y.to(tl.float32) + offset
        left, top, right, bottom = cx - left, cy - top, cx + right, cy + bottom

        # 3. Their targets. A number that no box has must not read beyond them.
        box = tl.minimum(number, tl.load(line + BOXES)) - 1
        exists = positive & (box >= 0)
        at_box = boxes + (tl.load(line + FIRST_BOX) + box) * 4
        x1 = tl.load(at_box, mask=exists, other=0.0)
        y1 = tl.load(at_box + 1, mask=exists, other=0.0)
        x2 = tl.load(at_box + 2, mask=exists, other=0.0)
        y2 = tl.load(at_box + 3, mask=exists, other=0.0)
        stride = _pick_stride(strides, level)
        u1, v1, u2, v2 = x1 / stride, y1 / stride, x2 / stride, y2 / stride
        inner_x, _ = _overlap(left, right, u1, u2)
        inner_y, _ = _overlap(top, bottom, v1, v2)
        inner = inner_x * inner_y
        union = (right - left) * (bottom - top) + (u2 - u1) * (v2 - v1) - inner
        score = tl.where(positive, inner / _at_least(union, 1e-6), 0.0)

        # 4. Their weights.
        every = (cls_0, cls_1, cls_2, cls_3, cls_4, cls_5, cls_6, cls_7)
        values = pick(every, level, LEVELS)
        class_step = pick_column(class_levels, level, BIN_STRIDE)
        class_offsets, _, _ = cell_offsets(class_levels, level, image, cells, False)
        largest = tl.full((BLOCK,), float("-inf"), tl.float32)
        for start in range(0, classes, TILE):
            names = tl.expand_dims(start + tl.arange(0, TILE), 1)
            mask = (names < classes) & tl.expand_dims(positive, 0)
            at_class = values + (tl.expand_dims(class_offsets, 0) + names.to(tl.int64) * class_step)
            found = tl.load(at_class, mask=mask, other=float("-inf")).to(tl.float32)
            largest = tl.maximum(largest, tl.max(found, axis=0))
        weight = 1.0 / (1.0 + tl.exp(-largest))
        if quality is not None:
            weight *= 1.0 / (1.0 + tl.exp(-tl.load(quality + rows, mask=positive, other=0.0)))
        weight = tl.where(positive, weight, 0.0)
        label = tl.load(assigned + rows, mask=positive, other=-1)
    tl.store(labels + rows, label, mask=live)
    tl.store(target_boxes + rows * 4, x1, mask=live)
    tl.store(target_boxes + rows * 4 + 1, y1, mask=live)
    tl.store(target_boxes + rows * 4 + 2, x2, mask=live)
    tl.store(target_boxes + rows * 4 + 3, y2, mask=live)
    tl.store(scores + rows, score, mask=live)
    tl.store(weights + rows, weight, mask=live)

    # 5. The program's own sums; programs are image-major.
    tl.store(partial_counts + program, tl.sum(positive.to(tl.float32), axis=0))
    tl.store(partial_weights + program, tl.sum(weight, axis=0))


@triton.jit(do_not_specialize=_RUN_TIME)
def gfl_targets_sums_kernel(
    partial_counts, partial_weights,  # as above
    sums,  # (2,) float32
    batch: tl.int32,
    blocks: tl.int32,
    WIDE: tl.constexpr,
):  # fmt: skip
    number = 0.0
    counts = partial_counts
    for _ in range(batch):
        number += tl.maximum(sum_run(counts, blocks, WIDE), 1.0)
        counts += blocks
    tl.store(sums, number)
    tl.store(sums + 1, sum_run(partial_weights, batch * blocks, WIDE))


@triton.jit(do_not_specialize=_RUN_TIME)
def box_loss_kernel(
    slopes,  # (B, A, 4, 2) float32
    partial_giou, partial_dfl,  # (programs,) float32
    target_boxes,  # (B, A, 4) float32
    weights,  # (B, A) float32
    box_0, box_1, box_2, box_3, box_4, box_5, box_6, box_7,
    levels, projection, scales, strides,  # as in gfl_targets_kernel
    offset: tl.float32,
    blocks: tl.int32,
    total: tl.int64,
    BINS: tl.constexpr,
    BODY: tl.constexpr,
    AXIS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    LEVELS: tl.constexpr = len(levels)

    # 1. The image, the level and the cells of this program.
    program = tl.program_id(0)
    image = program // blocks
    level, first_block, first_point = find_level(levels, program - image * blocks, BLOCK)
    cells = (program - image * blocks - first_block) * BLOCK + tl.arange(0, BLOCK)
    live = cells < pick_column(levels, level, COUNT)
    rows = image.to(tl.int64) * total + first_point + cells
    weight = tl.load(weights + rows, mask=live, other=0.0)
    counts = weight > 0.0
    weight = tl.where(counts, weight, 0.0)
    to = slopes + rows * 8
    nothing = tl.zeros((BLOCK,), tl.float32)
    giou = nothing
    dfl = nothing
    if tl.max(counts.to(tl.int32), axis=0) > 0:
        # 2. Targets, in units of the stride; cells that do not count have the unit box round them.
        offsets, y, x = cell_offsets(levels, level, image, cells, False)
        cx = x.to(tl.float32) + offset
        cy = y.to(tl.float32) + offset
        stride = _pick_stride(strides, level)
        at_box = target_boxes + rows * 4
        u1 = tl.load(at_box, mask=counts, other=0.0) / stride
        v1 = tl.load(at_box + 1, mask=counts, other=0.0) / stride
        u2 = tl.load(at_box + 2, mask=counts, other=0.0) / stride
        v2 = tl.load(at_box + 3, mask=counts, other=0.0) / stride

        # 3. Side by side: the target in bins, DFL, the distance.
        every = (box_0, box_1, box_2, box_3, box_4, box_5, box_6, box_7)
        logits = pick(every, level, LEVELS)
        side_stride = pick_column(levels, level, SIDE_STRIDE)
        bin_stride = pick_column(levels, level, BIN_STRIDE)
        scale = 1.0
        if scales is not None:
            scale = tl.load(scales + level)
        first = tl.load(projection)
        step = tl.load(projection + 1) - first
        wanted = (cx - u1, cy - v1, u2 - cx, v2 - cy)
        distances = ()
        for side in tl.static_range(4):
            bin_target = _at_least((wanted[side] - first) / step, 0.0)
            bin_target = tl.where(bin_target > BINS - 1.1, BINS - 1.1, bin_target)
            at = offsets + side * side_stride
            distance, loss = _side(logits, at, counts, bin_stride, scale, projection, bin_target, BINS, BODY, AXIS)
            dfl += tl.where(counts, weight * loss, 0.0)
            distances = distances + (distance,)
            tl.store(to + 2 * side + 1, tl.where(counts, bin_target, 0.0), mask=live)

        # 4. 1 − GIoU, and ∂/∂(union, intersection, enclosing box).
        left, top, right, bottom = distances
        left, top, right, bottom = cx - left, cy - top, cx + right, cy + bottom
        inner_x, outer_x = _overlap(left, right, u1, u2)
        inner_y, outer_y = _overlap(top, bottom, v1, v2)
        inner = inner_x * inner_y
        raw_union = (right - left) * (bottom - top) + (u2 - u1) * (v2 - v1) - inner
        raw_whole = outer_x * outer_y
        union = _at_least(raw_union, 1e-6)
        whole = _at_least(raw_whole, 1e-6)
        giou = tl.where(counts, weight * (1.0 - (inner / union - (whole - union) / whole)), 0.0)
        of_union = (-inner / (union * union) + 1.0 / whole) * _share(raw_union, 1e-6)
        of_common = -weight * (1.0 / union - of_union)  # the union shrinks by the intersection
        of_union = -weight * of_union
        of_whole = weight * (union / (whole * whole)) * _share(raw_whole, 1e-6)

        # 5. To the distances.
        slope_left, slope_right = _axis_slopes(
            left, right, u1, u2, bottom - top, inner_x, inner_y, outer_x, outer_y, of_union, of_common, of_whole
        )
        slope_top, slope_bottom = _axis_slopes(
            top, bottom, v1, v2, right - left, inner_y, inner_x, outer_y, outer_x, of_union, of_common, of_whole
        )
        tl.store(to, tl.where(counts, slope_left, 0.0), mask=live)
        tl.store(to + 2, tl.where(counts, slope_top, 0.0), mask=live)
        tl.store(to + 4, tl.where(counts, slope_right, 0.0), mask=live)
        tl.store(to + 6, tl.where(counts, slope_bottom, 0.0), mask=live)
    else:
        for place in tl.static_range(8):
            tl.store(to + place, nothing, mask=live)
    tl.store(partial_giou + program, tl.sum(giou, axis=0))
    tl.store(partial_dfl + program, tl.sum(dfl, axis=0))


@triton.jit(do_not_specialize=_RUN_TIME)
def box_loss_sums_kernel(
    partial_giou, partial_dfl,  # as above
    normaliser,  # () float32
    losses,  # (2,) float32
    giou_factor: tl.float32,
    dfl_factor: tl.float32,
    slots: tl.int64,
    WIDE: tl.constexpr,
):  # fmt: skip
    divisor = tl.load(normaliser)
    tl.store(losses, sum_run(partial_giou, slots, WIDE) * giou_factor / divisor)
    tl.store(losses + 1, sum_run(partial_dfl, slots, WIDE) * dfl_factor / divisor)


def gfl_targets(
    class_logits: Sequence[Tensor],
    box_logits: Sequence[Tensor],
    index: Tensor,
    assigned: Tensor,
    boxes: Sequence[Tensor],
    valid: Sequence[int],
    strides: Sequence[float],
    scales: Tensor | None,
    projection: Tensor,
    quality: Tensor | None,
    offset: float,
    labels: Tensor,
    target_boxes: Tensor,
    scores: Tensor,
    weights: Tensor,
    label_weights: Tensor,
    sums: Tensor,
) -> None:
    """Write what every point should learn into the last six; arguments as ``gflv2.ops.native.gfl_loss`` has them."""
    shape = _shape(box_logits)
    batch, total = index.shape
    blocks = common.blocks_of(box_logits, shape["BLOCK"])
    shapes = [size for level in box_logits for size in level.shape[2:]]
    table = image_table(batch, numbers_of(boxes, batch), [0] * batch, shapes, valid, index.device)
    flat = [image.reshape(-1, 4) for image in boxes]
    partials = weights.new_empty(2, batch * blocks)
    with common.device_of(index):
        gfl_targets_kernel[(batch * blocks,)](
            *(labels, target_boxes, scores, weights, label_weights, *partials, index, assigned),
            flat[0] if len(flat) == 1 else torch.cat(flat),
            table,
            *common.pointers(box_logits),
            common.level_table(box_logits),
            *common.pointers(class_logits),
            common.level_table(class_logits),
            quality,
            projection,
            scales,
            tuple(strides),
            offset,
            class_logits[0].shape[1],
            table.shape[1],
            blocks,
            total,
            TILE=_CLASSES,
            **shape,
        )
        gfl_targets_sums_kernel[(1,)](*partials, sums, batch, blocks, WIDE=PARTIALS, **_OPTIONS)


def box_loss_forward(
    box_logits: Sequence[Tensor],
    boxes: Tensor,
    weights: Tensor,
    normaliser: Tensor,
    strides: Sequence[float],
    scales: Tensor | None,
    projection: Tensor,
    offset: float,
    factors: tuple[float, float],
    slopes: Tensor,
    losses: Tensor,
) -> None:
    """Write GIoU loss and DFL into ``losses``, and what their gradient needs into ``slopes``; arguments as
    ``gflv2.ops.native.gfl_loss`` has them."""
    shape = _shape(box_logits)
    batch, total = weights.shape
    blocks = common.blocks_of(box_logits, shape["BLOCK"])
    partials = weights.new_empty(2, batch * blocks)
    with common.device_of(weights):
        box_loss_kernel[(batch * blocks,)](
            slopes,
            *partials,
            boxes,
            weights,
            *common.pointers(box_logits),
            common.level_table(box_logits),
            projection,
            scales,
            tuple(strides),
            offset,
            blocks,
            total,
            **shape,
        )
        box_loss_sums_kernel[(1,)](*partials, normaliser, losses, *factors, batch * blocks, WIDE=PARTIALS, **_OPTIONS)


# Takes the box losses as its last argument.
box_loss_backward = dgqp.dgqp_backward


def _shape(box_logits: Sequence[Tensor]) -> dict[str, Any]:
    """Constants and options of the kernels: they depend on R and on the memory layout, never on a size."""
    bins = box_logits[0].shape[1] // 4
    body, axis = body_of(bins), int(common.bins_are_last(box_logits))
    cells = _CELLS[axis]
    return {
        "BINS": bins,
        "BODY": body,
        "AXIS": axis,
        "BLOCK": cells // 2 if axis == 0 and body > 32 else cells,
        **_OPTIONS,
    }
