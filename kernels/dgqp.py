"""``dgqp`` and ``dgqp_statistics`` in Triton (arXiv 2011.12885, section 3.2): how sharp the four sides of a box are.

A program takes STEPS × BLOCK cells of one level of one image, BLOCK at a time. The bins of a side form a tile with the
cells (``rows``); the k largest leave that tile one after the other, of equal ones the lower bin first, and each adds
its product with one column of weight1 to a tile of cells by hidden units. So no vector of statistics exists, and k is
the number of turns of a loop.

Backward goes through the sides twice: once for the hidden units, then, with a_h = g where unit h is active (g the
upstream gradient), for ∂L/∂statistic = Σ_h (w2·W1)_h·a_h and for the sums over points that make up the gradients of
the predictor. A program adds up its own cells; a second kernel adds up the programs. Both orders depend on the shapes
alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from gflv2.kernels import common
from gflv2.kernels.common import (
    BIN_STRIDE,
    COUNT,
    INTERPRETED,
    SEAL,
    SIDE_STRIDE,
    cell_offsets,
    find_level,
    pick,
    pick_column,
)
from gflv2.kernels.rows import body_of, expectation, hat, load_bins, load_projection, softmax_bins
from gflv2.ops.box_losses import BoxLossSlopes

# Cells of a block, half of that from 64 bins on, and elements of the tile of cells by hidden units: 16 a thread of
# eight warps; with four warps ptxas needed all 255 registers. The registers of a thread are said aloud: left alone,
# ptxas spills a few words of some variants to stay below 128 or 80. These numbers suffice from sm_80 to sm_120: 128
# for two programs on a multiprocessor, and the higher one for a forward with the variance or a larger hidden tile.
_CELLS, _HIDDEN_TILE = 64, 4096
_FORWARD_REGISTERS, _MOST_REGISTERS = 128, 248
_CELLS_INTERPRETED = 32  # the interpreter pays for each operation of a program, not for each element
_STEPS, _STEPS_INTERPRETED = 4, 2
# Partial sums, of programs, that one step of the second stage adds.
_PARTIALS = 32

# Nothing of these is compiled in: neither a size, nor a stride, nor the alignment of an input.
_RUN_TIME = [f"{name}_{level}" for name in ("logits", "grad") for level in range(common.MAX_LEVELS)]
_RUN_TIME += ["out", "upstream", "weight1", "bias1", "weight2", "bias2", "scales", "partials", "partial_upstream"]
_RUN_TIME += ["partial_scales", "grad_weight1", "grad_bias1", "grad_weight2", "grad_bias2", "grad_scales"]
_RUN_TIME += ["box_slopes", "box_weights", "box_projection", "grad_boxes", "normaliser", "giou_factor", "dfl_factor"]
_RUN_TIME += ["scale_step", "blocks", "batch", "total", "slots"]


@triton.jit
def _exponentials(
    pointer, offsets, live, bin_stride, scale, BINS: tl.constexpr, BODY: tl.constexpr, AXIS: tl.constexpr
):
    """exp(t − max t) of the side's bins, one over their sum, and the raw logits."""
    raw, body, raw_tail, tail = load_bins(pointer, offsets, live, bin_stride, scale, BINS, BODY, AXIS)
    body, tail, norm = softmax_bins(body, tail, BINS, BODY, AXIS)
    if BODY == BINS:
        tail = tl.zeros_like(norm)
        raw_tail = tail
    return body, tail, norm, raw, raw_tail


@triton.jit
def _take_largest(body, tail, BINS: tl.constexpr, BODY: tl.constexpr, AXIS: tl.constexpr):
    """The largest value, where it stands (tile and last bin; the lowest bin that has it), and what is left."""
    largest = tl.max(body, axis=AXIS)
    if BODY < BINS:
        largest = tl.maximum(largest, tail)
    bins = tl.expand_dims(tl.arange(0, BODY), 1 - AXIS)
    first = tl.min(tl.where(body == tl.expand_dims(largest, AXIS), bins, BODY), axis=AXIS)
    here = bins == tl.expand_dims(first, AXIS)
    body = tl.where(here, -1.0, body)  # no exponential is negative
    tail_here = first == BODY
    if BODY < BINS:
        tail = tl.where(tail_here, -1.0, tail)
    return largest, here, tail_here, body, tail


@triton.jit
def _column(weight1, column, FEATURES: tl.constexpr, HIDDEN: tl.constexpr, UNITS: tl.constexpr):
    """The weights of one statistic for every hidden unit; 0 beyond the last unit."""
    units = tl.arange(0, UNITS)
    return tl.load(weight1 + units * FEATURES + column, mask=units < HIDDEN, other=0.0)


@triton.jit
def _side_statistics(
    body, tail, norm, TOPK: tl.constexpr, WIDE: tl.constexpr, BINS: tl.constexpr, BODY: tl.constexpr, AXIS: tl.constexpr
):
    """The k largest probabilities as a tile (cells, WIDE), their mean and their variance."""
    places = tl.expand_dims(tl.arange(0, WIDE), 0)
    top = tl.expand_dims(tl.zeros_like(norm), 1) * places
    total = tl.zeros_like(norm)
    for rank in range(TOPK):
        value, here, tail_here, body, tail = _take_largest(body, tail, BINS, BODY, AXIS)
        value *= norm
        total += value
        top = tl.where(places == rank, tl.expand_dims(value, 1), top)
    mean = total * (1.0 / TOPK)
    off = tl.where(places < TOPK, top - tl.expand_dims(mean, 1), 0.0)
    return top, mean, tl.sum(off * off, axis=1) * (1.0 / TOPK)


@triton.jit
def _hidden_units(
    logits, offsets, live, side_stride, bin_stride, scale, weight1, bias1,
    TOPK: tl.constexpr, MEAN: tl.constexpr, VARIANCE: tl.constexpr, WIDE: tl.constexpr, HIDDEN: tl.constexpr,
    UNITS: tl.constexpr, BINS: tl.constexpr, BODY: tl.constexpr, AXIS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The first layer before its ReLU, (cells, UNITS)."""
    SIDE: tl.constexpr = TOPK + MEAN + VARIANCE
    units = tl.arange(0, UNITS)
    bias = tl.load(bias1 + units, mask=units < HIDDEN, other=0.0)
    hidden = tl.zeros((BLOCK, UNITS), tl.float32)
    for side in range(4):
        at = offsets + side * side_stride
        body, tail, norm, raw, raw_tail = _exponentials(logits, at, live, bin_stride, scale, BINS, BODY, AXIS)
        if VARIANCE:
            top, mean, variance = _side_statistics(body, tail, norm, TOPK, WIDE, BINS, BODY, AXIS)
            weights = _column(weight1, side * SIDE + SIDE - 1, 4 * SIDE, HIDDEN, UNITS)
            hidden += tl.expand_dims(variance, 1) * tl.expand_dims(weights, 0)
        total = tl.zeros_like(norm)
        for rank in range(TOPK):
            value, here, tail_here, body, tail = _take_largest(body, tail, BINS, BODY, AXIS)
            value *= norm
            total += value
            weights = _column(weight1, side * SIDE + rank, 4 * SIDE, HIDDEN, UNITS)
            hidden += tl.expand_dims(value, 1) * tl.expand_dims(weights, 0)
        if MEAN:
            weights = _column(weight1, side * SIDE + TOPK, 4 * SIDE, HIDDEN, UNITS)
            hidden += tl.expand_dims(total * (1.0 / TOPK), 1) * tl.expand_dims(weights, 0)
    return hidden + tl.expand_dims(bias, 0)


@triton.jit
def _steps(count, first_cell, BLOCK: tl.constexpr, STEPS: tl.constexpr):
    """How many of a program's steps there are cells for: small levels, and the end of each, need fewer than all."""
    return tl.minimum((count - first_cell + BLOCK - 1) // BLOCK, STEPS).to(tl.int32)


@triton.jit(do_not_specialize=_RUN_TIME)
def dgqp_forward_kernel(
    out,  # (B, A) or (M,) float32, or the statistics (B, A, F) or (M, F); contiguous
    logits_0, logits_1, logits_2, logits_3, logits_4, logits_5, logits_6, logits_7,  # (B, 4·R, H_l, W_l) or (M, 4, R)
    levels,  # table of the levels, see common.level_table
    weight1, bias1, weight2, bias2,  # (hidden, F), (hidden,), (hidden,), (1,) float32; None: the statistics alone
    scales,  # (L,) float32, or None
    scale_step: tl.int64,
    blocks: tl.int32,  # programs an image
    total: tl.int64,  # A
    TOPK: tl.constexpr,
    MEAN: tl.constexpr,
    VARIANCE: tl.constexpr,
    WIDE: tl.constexpr,  # places of a tile that holds the statistics of a side
    HIDDEN: tl.constexpr,
    UNITS: tl.constexpr,  # places of a tile that holds the hidden units
    BINS: tl.constexpr,
    BODY: tl.constexpr,
    AXIS: tl.constexpr,
    TOUCHING: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
):  # fmt: skip
    LEVELS: tl.constexpr = len(levels)
    SIDE: tl.constexpr = TOPK + MEAN + VARIANCE

    # 1. The image, the level and the cells of this program.
    program = tl.program_id(0)
    image = program // blocks
    level, first_block, first_point = find_level(levels, program - image * blocks, BLOCK * STEPS)
    first_cell = (program - image * blocks - first_block) * BLOCK * STEPS
    count = pick_column(levels, level, COUNT)
    steps = _steps(count, first_cell, BLOCK, STEPS)
    every = (logits_0, logits_1, logits_2, logits_3, logits_4, logits_5, logits_6, logits_7)
    logits = pick(every, level, LEVELS)
    side_stride = pick_column(levels, level, SIDE_STRIDE)
    bin_stride = 1
    if AXIS == 0 or not TOUCHING:
        bin_stride = pick_column(levels, level, BIN_STRIDE)
    scale = 1.0
    if scales is not None:
        scale = tl.load(scales + level * scale_step)

    for step in range(steps):
        cells = first_cell + step * BLOCK + tl.arange(0, BLOCK)
        live = cells < count
        offsets, y, x = cell_offsets(levels, level, image, cells, TOUCHING and AXIS == 0)
        rows = image.to(tl.int64) * total + first_point + cells
        if weight1 is not None:
            # 2. The two layers.
            hidden = _hidden_units(
                logits, offsets, live, side_stride, bin_stride, scale, weight1, bias1,
                TOPK, MEAN, VARIANCE, WIDE, HIDDEN, UNITS, BINS, BODY, AXIS, BLOCK,
            )  # fmt: skip
            units = tl.arange(0, UNITS)
            second = tl.load(weight2 + units, mask=units < HIDDEN, other=0.0)
            active = tl.where(hidden < 0.0, 0.0, hidden)  # a NaN stays one
            quality = tl.sum(active * tl.expand_dims(second, 0), axis=1) + tl.load(bias2)
            tl.store(out + rows, quality, mask=live)
        else:
            # 2. The statistics of a side lie side by side.
            places = tl.expand_dims(tl.arange(0, WIDE), 0)
            for side in range(4):
                at = offsets + side * side_stride
                body, tail, norm, raw, raw_tail = _exponentials(logits, at, live, bin_stride, scale, BINS, BODY, AXIS)
                values, mean, variance = _side_statistics(body, tail, norm, TOPK, WIDE, BINS, BODY, AXIS)
                if MEAN:
                    values = tl.where(places == TOPK, tl.expand_dims(mean, 1), values)
                if VARIANCE:
                    values = tl.where(places == SIDE - 1, tl.expand_dims(variance, 1), values)
                target = out + tl.expand_dims(rows * (4 * SIDE) + side * SIDE, 1) + places
                tl.store(target, values, mask=tl.expand_dims(live, 1) & (places < SIDE))


@triton.jit
def _box_slope(
    body, tail, norm, slopes, weight, counts, of_giou, of_dfl, projection,
    BINS: tl.constexpr, BODY: tl.constexpr, AXIS: tl.constexpr,
):  # fmt: skip
    """What the box losses add to ∂L/∂t_b of one side: P·(u·(projection − d) + v) − v·hat; 0 where no box counts."""
    u = of_giou * tl.load(slopes, mask=counts, other=0.0)
    target = tl.load(slopes + 1, mask=counts, other=0.0)
    v = of_dfl * weight
    values, last = load_projection(projection, 1, BINS, BODY, AXIS)
    distance = expectation(body, tail, values, last, BINS, BODY, AXIS) * norm
    bins = tl.expand_dims(tl.arange(0, BODY), 1 - AXIS)
    share = hat(bins, tl.expand_dims(target, AXIS))
    wide_v = tl.expand_dims(v, AXIS)
    found = tl.expand_dims(u, AXIS) * (values - tl.expand_dims(distance, AXIS)) + wide_v
    found = body * tl.expand_dims(norm, AXIS) * found - wide_v * share
    return found, tail * norm * (u * (last - distance) + v) - v * hat(BINS - 1, target)


@triton.jit
def _add(to, values, mask, step):
    """Add to a partial sum of this program; the first step finds nothing there."""
    before = tl.load(to, mask=mask & (step > 0), other=0.0)
    tl.store(to, before + values, mask=mask)


@triton.jit(do_not_specialize=_RUN_TIME)
def dgqp_backward_kernel(
    upstream,  # shaped as forward's output, float32, contiguous; without a predictor None: 0
    logits_0, logits_1, logits_2, logits_3, logits_4, logits_5, logits_6, logits_7,
    levels,
    grad_0, grad_1, grad_2, grad_3, grad_4, grad_5, grad_6, grad_7,  # shaped as the logits, or None
    grad_levels,  # their table
    weight1, bias1, weight2,  # as in forward
    scales,
    partials,  # (slots, F + 2, hidden) float32, or None: Σ a_h·F_f for each f, Σ a_h, Σ g·relu_h
    partial_upstream,  # (slots,) float32, or None: Σ g
    partial_scales,  # (slots,) float32, or None
    box_slopes, box_weights, box_projection, grad_boxes, normaliser,  # see `BoxLossSlopes`; None: no box losses
    giou_factor: tl.float32,
    dfl_factor: tl.float32,
    scale_step: tl.int64,
    blocks: tl.int32,
    batch: tl.int64,
    total: tl.int64,
    TOPK: tl.constexpr,
    MEAN: tl.constexpr,
    VARIANCE: tl.constexpr,
    WIDE: tl.constexpr,
    HIDDEN: tl.constexpr,
    UNITS: tl.constexpr,
    BINS: tl.constexpr,
    BODY: tl.constexpr,
    AXIS: tl.constexpr,
    TOUCHING: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
):  # fmt: skip
    LEVELS: tl.constexpr = len(levels)
    SIDE: tl.constexpr = TOPK + MEAN + VARIANCE
    SHARE: tl.constexpr = 1.0 / TOPK

    # 1. The image, the level and the cells of this program, as in forward.
    program = tl.program_id(0)
    image = program // blocks
    level, first_block, first_point = find_level(levels, program - image * blocks, BLOCK * STEPS)
    block = program - image * blocks - first_block
    count = pick_column(levels, level, COUNT)
    steps = _steps(count, block * BLOCK * STEPS, BLOCK, STEPS)
    every = (logits_0, logits_1, logits_2, logits_3, logits_4, logits_5, logits_6, logits_7)
    logits = pick(every, level, LEVELS)
    side_stride = pick_column(levels, level, SIDE_STRIDE)
    bin_stride = 1
    if AXIS == 0 or not TOUCHING:
        bin_stride = pick_column(levels, level, BIN_STRIDE)
    scale = 1.0
    if scales is not None:
        scale = tl.load(scales + level * scale_step)
    if grad_0 is not None:
        every = (grad_0, grad_1, grad_2, grad_3, grad_4, grad_5, grad_6, grad_7)
        grad = pick(every, level, LEVELS)
        grad_side = pick_column(grad_levels, level, SIDE_STRIDE)
        grad_bin = 1
        if AXIS == 0 or not TOUCHING:
            grad_bin = pick_column(grad_levels, level, BIN_STRIDE)
    bins = tl.expand_dims(tl.arange(0, BODY), 1 - AXIS)
    # Partial sums: one slot a program, level-major, so that the second stage reads runs.
    slot = first_block * batch + image * ((count + BLOCK * STEPS - 1) // (BLOCK * STEPS)) + block
    units = tl.arange(0, UNITS)
    unit_exists = units < HIDDEN
    if partials is not None:
        columns = partials + slot * ((4 * SIDE + 2) * HIDDEN) + units

    if box_slopes is not None:
        of_giou = tl.load(grad_boxes) * giou_factor / tl.load(normaliser)
        of_dfl = tl.load(grad_boxes + 1) * dfl_factor / tl.load(normaliser)

    sum_upstream = tl.zeros((BLOCK,), tl.float32)
    sum_scale = tl.zeros((BLOCK,), tl.float32)
    for step in range(steps):
        cells = (block * STEPS + step) * BLOCK + tl.arange(0, BLOCK)
        live = cells < count
        offsets, y, x = cell_offsets(levels, level, image, cells, TOUCHING and AXIS == 0)
        rows = image.to(tl.int64) * total + first_point + cells

        # 2. Which hidden units are active.
        if weight1 is not None:
            hidden = _hidden_units(
                logits, offsets, live, side_stride, bin_stride, scale, weight1, bias1,
                TOPK, MEAN, VARIANCE, WIDE, HIDDEN, UNITS, BINS, BODY, AXIS, BLOCK,
            )  # fmt: skip
            second = tl.load(weight2 + units, mask=unit_exists, other=0.0)
            g = tl.load(upstream + rows, mask=live, other=0.0)
            active = tl.where(hidden > 0.0, tl.expand_dims(g, 1), 0.0)
            if partials is not None:
                sum_upstream += g
                _add(columns + 4 * SIDE * HIDDEN, tl.sum(active, axis=0), unit_exists, step)
                _add(columns + (4 * SIDE + 1) * HIDDEN, tl.sum(active * hidden, axis=0), unit_exists, step)

        for side in range(4):
            # 3. Mean and variance of the side, and their gradients, which every rank shares.
            at = offsets + side * side_stride
            body, tail, norm, raw, raw_tail = _exponentials(logits, at, live, bin_stride, scale, BINS, BODY, AXIS)
            of_mean = tl.zeros_like(norm)
            of_variance = tl.zeros_like(norm)
            mean = tl.zeros_like(norm)
            given = upstream
            if upstream is not None:
                given = upstream + (rows * (4 * SIDE) + side * SIDE)  # where the statistics are the result
            if VARIANCE:
                top, mean, variance = _side_statistics(body, tail, norm, TOPK, WIDE, BINS, BODY, AXIS)
                if weight1 is not None:
                    weights = _column(weight1, side * SIDE + SIDE - 1, 4 * SIDE, HIDDEN, UNITS) * second
                    of_variance = tl.sum(active * tl.expand_dims(weights, 0), axis=1)
                    if partials is not None:
                        found = tl.sum(active * tl.expand_dims(variance, 1), axis=0)
                        _add(columns + (side * SIDE + SIDE - 1) * HIDDEN, found, unit_exists, step)
                else:
                    of_variance = tl.load(given + (SIDE - 1), mask=live, other=0.0)
                of_variance *= 2.0 * SHARE
            if MEAN:
                if weight1 is not None:
                    weights = _column(weight1, side * SIDE + TOPK, 4 * SIDE, HIDDEN, UNITS) * second
                    of_mean = tl.sum(active * tl.expand_dims(weights, 0), axis=1)
                else:
                    of_mean = tl.load(given + TOPK, mask=live, other=0.0)
                of_mean *= SHARE

            # 4. Rank by rank: its gradient goes to the bin that holds it.
            left, left_tail = body, tail
            slope = tl.zeros_like(body)
            slope_tail = tl.zeros_like(norm)
            inner = tl.zeros_like(norm)
            sum_top = tl.zeros_like(norm)
            for rank in range(TOPK):
                value, here, tail_here, left, left_tail = _take_largest(left, left_tail, BINS, BODY, AXIS)
                value *= norm
                sum_top += value
                if weight1 is not None:
                    weights = _column(weight1, side * SIDE + rank, 4 * SIDE, HIDDEN, UNITS) * second
                    own = tl.sum(active * tl.expand_dims(weights, 0), axis=1)
                    if partials is not None:
                        found = tl.sum(active * tl.expand_dims(value, 1), axis=0)
                        _add(columns + (side * SIDE + rank) * HIDDEN, found, unit_exists, step)
                elif upstream is not None:
                    own = tl.load(given + rank, mask=live, other=0.0)
                else:
                    own = tl.zeros_like(norm)
                own += of_mean + of_variance * (value - mean)
                inner += own * value
                slope = tl.where(here, tl.expand_dims(own, AXIS), slope)
                slope_tail = tl.where(tail_here, own, slope_tail)
            if MEAN and partials is not None:
                found = tl.sum(active * tl.expand_dims(sum_top * SHARE, 1), axis=0)
                _add(columns + (side * SIDE + TOPK) * HIDDEN, found, unit_exists, step)

            # 5. ∂L/∂t_b = P_b (∂L/∂P_b − Σ_j T_j ∂L/∂T_j), rounded once on its way to memory.
            slope = body * tl.expand_dims(norm, AXIS) * (slope - tl.expand_dims(inner, AXIS))
            slope_tail = tail * norm * (slope_tail - inner)
            if box_slopes is not None:
                box_weight = tl.load(box_weights + rows, mask=live, other=0.0)
                counts = box_weight > 0.0
                if tl.max(counts.to(tl.int32), axis=0) > 0:
                    body_more, tail_more = _box_slope(
                        body, tail, norm, box_slopes + (rows * 8 + side * 2), tl.where(counts, box_weight, 0.0), counts,
                        of_giou, of_dfl, box_projection, BINS, BODY, AXIS,
                    )  # fmt: skip
                    slope += body_more
                    slope_tail += tail_more
            if grad_0 is not None:
                grad_offsets, y, x = cell_offsets(grad_levels, level, image, cells, TOUCHING and AXIS == 0)
                to = grad_offsets + side * grad_side
                mask = (bins < BINS) & tl.expand_dims(live, AXIS)
                target = grad + (tl.expand_dims(to, AXIS) + bins * grad_bin)
                tl.store(target, (slope * scale).to(grad.dtype.element_ty), mask=mask)
                if BODY < BINS:
                    target = grad + (to + BODY * grad_bin)
                    tl.store(target, (slope_tail * scale).to(grad.dtype.element_ty), mask=live)
            if partial_scales is not None:
                found = tl.sum(slope * raw, axis=AXIS) + slope_tail * raw_tail
                sum_scale += tl.where(live, found, 0.0)

    # 6. The program's own sums.
    if partials is not None:
        tl.store(partial_upstream + slot, tl.sum(sum_upstream, axis=0))
    if partial_scales is not None:
        tl.store(partial_scales + slot, tl.sum(sum_scale, axis=0))


@triton.jit
def _sum_slots(values, count, pitch, mask, ROWS: tl.constexpr, PLACES: tl.constexpr):
    """Sums over ``count`` slots that lie ``pitch`` apart, in an order that depends on the count only."""
    lanes = tl.expand_dims(tl.arange(0, ROWS), 1)
    places = tl.expand_dims(tl.arange(0, PLACES), 0)
    total = tl.zeros((ROWS, PLACES), tl.float32)
    for start in range(0, count, ROWS):
        slots = (start + lanes).to(tl.int64)
        total += tl.load(values + slots * pitch + places, mask=(slots < count) & tl.expand_dims(mask, 0), other=0.0)
    return tl.sum(total, axis=0)


@triton.jit(do_not_specialize=_RUN_TIME)
def dgqp_reduce_kernel(
    partials, partial_upstream, partial_scales,  # as in backward
    weight2,  # (hidden,) float32, or None
    grad_weight1, grad_bias1, grad_weight2, grad_bias2,  # (hidden, F), (hidden,), (hidden,), (1,) float32, or None
    grad_scales,  # (L,) float32, or None
    levels,
    scale_step: tl.int64,
    batch: tl.int64,
    slots: tl.int64,
    FEATURES: tl.constexpr,
    HIDDEN: tl.constexpr,
    UNITS: tl.constexpr,
    BLOCK: tl.constexpr,  # cells a slot
    ROWS: tl.constexpr,
):  # fmt: skip
    item = tl.program_id(0)
    sums = 0
    if partials is not None:
        # 1. The first F + 2 programs: a column of weight1, its bias (both lack the factor w2), the second layer.
        sums = FEATURES + 3
        units = tl.arange(0, UNITS)
        exists = units < HIDDEN
        if item < FEATURES + 2:
            pitch = (FEATURES + 2) * HIDDEN
            total = _sum_slots(partials + item * HIDDEN, slots, pitch, exists, ROWS, UNITS)
            second = tl.load(weight2 + units, mask=exists, other=0.0)
            if item < FEATURES:
                tl.store(grad_weight1 + units * FEATURES + item, second * total, mask=exists)
            elif item == FEATURES:
                tl.store(grad_bias1 + units, second * total, mask=exists)
            else:
                tl.store(grad_weight2 + units, total, mask=exists)

        # 2. The second bias.
        if item == FEATURES + 2:
            one = tl.arange(0, 1)
            tl.store(grad_bias2 + one, _sum_slots(partial_upstream, slots, 1, one == 0, ROWS, 1))

    # 3. The others: one level each, whose slots lie in one run.
    if grad_scales is not None:
        if item >= sums:
            level = item - sums
            first = batch * 0
            for candidate in tl.static_range(len(levels)):
                blocks = (((levels[candidate][COUNT] - SEAL) >> 1) + BLOCK - 1) // BLOCK
                first += tl.where(candidate < level, blocks * batch, 0)
            count = (pick_column(levels, level, COUNT) + BLOCK - 1) // BLOCK * batch
            one = tl.arange(0, 1)
            total = _sum_slots(partial_scales + first, count, 1, one == 0, ROWS, 1)
            tl.store(grad_scales + level * scale_step + one, total)


def dgqp_forward(
    logits: Sequence[Tensor],
    predictor: Sequence[Tensor],
    scales: Tensor | None,
    topk: int,
    mean: bool,
    variance: bool,
    out: Tensor,
) -> None:
    """Write quality logits, or the statistics alone, into ``out``, float32 contiguous.

    Args:
        logits: L levels (B, 4·R, H_l, W_l) or [rows (M, 4, R)]; float32, float16 or bfloat16, any strides.
        predictor: weight1 (hidden, F), bias1 (hidden,), weight2 (hidden,), bias2 (1,), float32 contiguous; empty: the
            statistics are wanted.
        scales: (L,) float32 or None.
        topk, mean, variance: F = 4·(topk + mean + variance).
    """
    shape = _shape(logits, logits, predictor, topk, mean, variance)
    blocks = common.blocks_of(logits, shape["BLOCK"] * shape["STEPS"])
    points = out.shape[-1] if predictor else out.shape[-2]
    with common.device_of(out):
        dgqp_forward_kernel[(blocks * _batch(logits),)](
            out,
            *common.pointers(logits),
            common.level_table(logits),
            *(predictor or [None] * 4),
            scales,
            0 if scales is None else scales.stride(0),
            blocks,
            points,
            **shape,
            maxnreg=_MOST_REGISTERS if variance or shape["UNITS"] > 256 else _FORWARD_REGISTERS,
        )


def dgqp_backward(
    grad: Tensor | None,
    logits: Sequence[Tensor],
    predictor: Sequence[Tensor],
    scales: Tensor | None,
    topk: int,
    mean: bool,
    variance: bool,
    grad_logits: Sequence[Tensor],
    grad_predictor: Sequence[Tensor],
    grad_scales: Tensor | None,
    box: BoxLossSlopes | None = None,
) -> None:
    """Write the gradients that are wanted.

    Args:
        grad: upstream gradient, shaped as forward's output, float32 contiguous; without a predictor None: 0. The other
            inputs as in forward.
        grad_logits: tensors shaped as ``logits``, in their dtype, any strides; empty: not wanted.
        grad_predictor: like ``predictor``; empty: not wanted.
        grad_scales: (L,) float32, or None: not wanted.
        box: the box losses, whose gradient joins in.
    """
    shape = _shape(logits, [*logits, *grad_logits], predictor, topk, mean, variance)
    cells, batch = shape["BLOCK"] * shape["STEPS"], _batch(logits)
    blocks = common.blocks_of(logits, cells)
    slots = blocks * batch
    features, hidden = 4 * (topk + mean + variance), shape["HIDDEN"]
    wanted = bool(grad_predictor)
    points = logits[0].shape[0] if logits[0].dim() == 3 else sum(level.shape[2] * level.shape[3] for level in logits)
    partials = grad.new_empty(slots, features + 2, hidden) if wanted else None
    partial_upstream = grad.new_empty(slots) if wanted else None
    partial_scales = None if grad_scales is None else grad_scales.new_empty(slots)
    with common.device_of(logits[0]):
        dgqp_backward_kernel[(slots,)](
            grad,
            *common.pointers(logits),
            common.level_table(logits),
            *common.pointers(grad_logits),
            common.level_table(grad_logits) if grad_logits else None,
            *(predictor[:3] if predictor else [None] * 3),
            scales,
            partials,
            partial_upstream,
            partial_scales,
            *(box or [None] * 5)[:5],
            *(box.factors if box else (0.0, 0.0)),
            0 if scales is None else scales.stride(0),
            blocks,
            batch,
            points,
            **shape,
            maxnreg=_MOST_REGISTERS,
        )
        sums = (features + 3 if wanted else 0) + (0 if grad_scales is None else len(logits))
        if sums == 0:
            return
        dgqp_reduce_kernel[(sums,)](
            partials,
            partial_upstream,
            partial_scales,
            predictor[2] if wanted else None,
            *(grad_predictor or [None] * 4),
            grad_scales,
            common.level_table(logits),
            0 if grad_scales is None else grad_scales.stride(0),
            batch,
            slots,
            FEATURES=features,
            HIDDEN=hidden,
            UNITS=shape["UNITS"],
            BLOCK=cells,
            ROWS=_PARTIALS,
            num_warps=4,
            enable_fp_fusion=True,
        )


def _batch(logits: Sequence[Tensor]) -> int:
    return 1 if logits[0].dim() == 3 else logits[0].shape[0]


def _shape(
    logits: Sequence[Tensor],
    touched: Sequence[Tensor],
    predictor: Sequence[Tensor],
    topk: int,
    mean: bool,
    variance: bool,
) -> dict[str, Any]:
    """Constants and options of the kernels: they depend on R, k, the predictor and the memory layout, never on a size.

    Args:
        touched: every tensor that is read or written in tiles.
    """
    bins = logits[0].shape[2] if logits[0].dim() == 3 else logits[0].shape[1] // 4
    body = body_of(bins)
    bins_last = common.bins_are_last(logits)
    hidden = predictor[0].shape[0] if predictor else 1
    units = triton.next_power_of_2(hidden)
    cells = max(min(_CELLS if body <= 32 else _CELLS // 2, _HIDDEN_TILE // units), 16)
    return {
        "TOPK": topk,
        "MEAN": int(mean),
        "VARIANCE": int(variance),
        "WIDE": triton.next_power_of_2(topk + mean + variance),
        "HIDDEN": hidden,
        "UNITS": units,
        "BINS": bins,
        "BODY": body,
        "AXIS": int(bins_last),
        "TOUCHING": common.neighbours_touch(touched, bins_last),
        "BLOCK": _CELLS_INTERPRETED if INTERPRETED else cells,
        "STEPS": _STEPS_INTERPRETED if INTERPRETED else _STEPS,
        "num_warps": 4 if body <= 16 and not predictor else 8,
        "enable_fp_fusion": True,  # said aloud: Triton's default for it differs between versions
    }
