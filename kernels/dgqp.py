"""``dgqp`` and ``dgqp_statistics`` in Triton (arXiv 2011.12885, section 3.2): how sharp the four sides of a box are.

A program takes STEPS × BLOCK cells of one level of one image, BLOCK at a time. The bins of a side form a tile with the
cells (``bins``); the k largest leave that tile one after the other, of equal ones the lower bin first, and each adds
its product with one column of weight1 to a tile of cells by hidden units. So no vector of statistics exists, and k is
the number of turns of a loop.

Backward goes through the sides twice: once for the hidden units, then, with a_h = g where unit h is active (g the
upstream gradient), for ∂L/∂statistic = Σ_h (w2·W1)_h·a_h and for the sums over points that make up the gradients of
the predictor. A program adds up its own cells; a second kernel adds up the programs. Both orders depend on the shapes
alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from gflv2.kernels.bins import (
    Tile,
    bins_of,
    hat,
    load_projection,
    load_softmax,
    store_bins,
    sum_bins,
    tile_of,
    wide,
)
from gflv2.kernels.launching import FUSED, INTERPRETED, OPTIONS, device_of, gapless, kernel
from gflv2.kernels.levels import cells_of, extent_of, find_block, level_arguments, level_table, open_map, scale_of
from gflv2.kernels.sums import level_slot, sum_level, sum_run
from gflv2.ops.box_losses import SavedBoxLoss

# Cells of a block, half of that from 64 bins on, and elements of the tile of cells by hidden units: 16 a thread of
# eight warps; with four warps ptxas needed all 255 registers. The register limit is explicit: without one ptxas
# spills a few words of some variants to stay below 128 or 80. These limits suffice from sm_80 to sm_120: 128 for two
# programs on a multiprocessor, and the higher one for a forward with the variance or a larger hidden tile.
_CELLS, _HIDDEN_TILE = 64, 4096
_FORWARD_REGISTERS, _MOST_REGISTERS = 128, 248
_CELLS_INTERPRETED = 32
_STEPS, _STEPS_INTERPRETED = 4, 2
# Partial sums, of programs, that one step of the second stage adds.
_PARTIALS = 32


class _Head(NamedTuple):
    """The constants of the statistics and of the predictor."""

    topk: Any
    mean: Any
    variance: Any
    side: Any  # statistics of a side
    places: Any  # of a tile that holds them: the next power of two
    hidden: Any
    units: Any  # places of a tile that holds the hidden units


@triton.jit
def _take_largest(body, tail, tile):
    """The largest value, where it stands (tile and last bin; the lowest bin that has it), and what is left."""
    largest = tl.max(body, axis=tile.axis)
    if tile.body < tile.bins:
        largest = tl.maximum(largest, tail)
    bins = bins_of(tile)
    first = tl.min(tl.where(body == wide(largest, tile), bins, tile.body), axis=tile.axis)
    here = bins == wide(first, tile)
    body = tl.where(here, -1.0, body)  # no exponential is negative
    tail_here = first == tile.body
    if tile.body < tile.bins:
        tail = tl.where(tail_here, -1.0, tail)
    return largest, here, tail_here, body, tail


@triton.jit
def _column(weight1, side, statistic, head):
    """The weights of one statistic of a side for every hidden unit, (1, units); 0 beyond the last unit."""
    units = tl.arange(0, head.units)
    at = weight1 + units * (4 * head.side) + (side * head.side + statistic)
    return tl.expand_dims(tl.load(at, mask=units < head.hidden, other=0.0), 0)


@triton.jit
def _side_statistics(body, tail, norm, head, tile):
    """The k largest probabilities as a tile (cells, places), their mean and their variance."""
    places = tl.expand_dims(tl.arange(0, head.places), 0)
    top = tl.expand_dims(tl.zeros_like(norm), 1) * places
    total = tl.zeros_like(norm)
    for rank in range(head.topk):
        value, here, tail_here, body, tail = _take_largest(body, tail, tile)
        value *= norm
        total += value
        top = tl.where(places == rank, tl.expand_dims(value, 1), top)
    mean = total * (1.0 / head.topk)
    off = tl.where(places < head.topk, top - tl.expand_dims(mean, 1), 0.0)
    return top, mean, tl.sum(off * off, axis=1) * (1.0 / head.topk)


@triton.jit
def _hidden_units(logits, live, scale, weight1, bias1, head, tile, BLOCK: tl.constexpr):
    """The first layer before its ReLU, (cells, units)."""
    units = tl.arange(0, head.units)
    bias = tl.load(bias1 + units, mask=units < head.hidden, other=0.0)
    hidden = tl.zeros((BLOCK, head.units), tl.float32)
    for side in range(4):
        body, tail, norm, _, _ = load_softmax(logits, side, live, scale, tile)
        if head.variance:
            top, mean, variance = _side_statistics(body, tail, norm, head, tile)
            hidden += tl.expand_dims(variance, 1) * _column(weight1, side, head.side - 1, head)
        total = tl.zeros_like(norm)
        for rank in range(head.topk):
            value, here, tail_here, body, tail = _take_largest(body, tail, tile)
            value *= norm
            total += value
            hidden += tl.expand_dims(value, 1) * _column(weight1, side, rank, head)
        if head.mean:
            hidden += tl.expand_dims(total * (1.0 / head.topk), 1) * _column(weight1, side, head.topk, head)
    return hidden + tl.expand_dims(bias, 0)


@triton.jit
def _steps_of(block, BLOCK: tl.constexpr, STEPS: tl.constexpr):
    """How many of a program's steps there are cells for: small levels, and the end of each, need fewer than all."""
    return tl.minimum((block.size - block.number * (BLOCK * STEPS) + BLOCK - 1) // BLOCK, STEPS).to(tl.int32)


@kernel
def dgqp_forward_kernel(
    out,  # (B, A) or (M,) float32, or the statistics (B, A, F) or (M, F); contiguous
    logits_0, logits_1, logits_2, logits_3, logits_4, logits_5, logits_6, logits_7,  # (B, 4·R, H_l, W_l) or (M, 4, R)
    levels,  # their table, see levels.level_arguments
    weight1, bias1, weight2, bias2,  # (hidden, F), (hidden,), (hidden,), (1,) float32; None: the statistics alone
    scales,  # (L,) float32, or None
    blocks: tl.int32,  # programs an image
    total: tl.int64,  # A
    TOPK: tl.constexpr, MEAN: tl.constexpr, VARIANCE: tl.constexpr,
    PLACES: tl.constexpr,  # of a tile that holds the statistics of a side
    HIDDEN: tl.constexpr,
    UNITS: tl.constexpr,  # places of a tile that holds the hidden units
    BINS: tl.constexpr, BODY: tl.constexpr, AXIS: tl.constexpr, TOUCHING: tl.constexpr, BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
):  # fmt: skip
    tile: tl.constexpr = Tile(BINS, BODY, AXIS)
    SIDE: tl.constexpr = TOPK + MEAN + VARIANCE
    head: tl.constexpr = _Head(TOPK, MEAN, VARIANCE, SIDE, PLACES, HIDDEN, UNITS)

    # 1. The block of this program.
    block = find_block(levels, blocks, BLOCK * STEPS)
    every = (logits_0, logits_1, logits_2, logits_3, logits_4, logits_5, logits_6, logits_7)
    scale = scale_of(scales, block.level)
    for step in range(_steps_of(block, BLOCK, STEPS)):
        cells, live, rows = cells_of(block, block.number * STEPS + step, total, BLOCK)
        logits = open_map(every, levels, block, cells, AXIS, TOUCHING)
        if weight1 is not None:
            # 2. The two layers.
            hidden = _hidden_units(logits, live, scale, weight1, bias1, head, tile, BLOCK)
            units = tl.arange(0, UNITS)
            second = tl.load(weight2 + units, mask=units < HIDDEN, other=0.0)
            active = tl.where(hidden < 0.0, 0.0, hidden)  # a NaN stays one
            quality = tl.sum(active * tl.expand_dims(second, 0), axis=1) + tl.load(bias2)
            tl.store(out + rows, quality, mask=live)
        else:
            # 2. The statistics of a side lie side by side.
            places = tl.expand_dims(tl.arange(0, PLACES), 0)
            for side in range(4):
                body, tail, norm, _, _ = load_softmax(logits, side, live, scale, tile)
                values, mean, variance = _side_statistics(body, tail, norm, head, tile)
                if MEAN:
                    values = tl.where(places == TOPK, tl.expand_dims(mean, 1), values)
                if VARIANCE:
                    values = tl.where(places == SIDE - 1, tl.expand_dims(variance, 1), values)
                target = out + tl.expand_dims(rows * (4 * SIDE) + side * SIDE, 1) + places
                tl.store(target, values, mask=tl.expand_dims(live, 1) & (places < SIDE))


@triton.jit
def _box_gradient(body, tail, norm, sides, weight, counts, of_giou, of_dfl, projection, tile):
    """What the box losses add to ∂L/∂t_b of one side: P·(u·(projection − d) + v) − v·hat; 0 where no box counts."""
    u = of_giou * tl.load(sides, mask=counts, other=0.0)
    target = tl.load(sides + 1, mask=counts, other=0.0)
    v = of_dfl * weight
    values, last = load_projection(projection, 1, tile)
    distance = sum_bins(body * values, tail * last, tile) * norm
    share, tail_share = hat(target, tile)
    found = wide(u, tile) * (values - wide(distance, tile)) + wide(v, tile)
    found = body * wide(norm, tile) * found - wide(v, tile) * share
    return found, tail * norm * (u * (last - distance) + v) - v * tail_share


@triton.jit
def _add(to, values, mask, step):
    """Add to a partial sum of this program; the first step overwrites it."""
    before = tl.load(to, mask=mask & (step > 0), other=0.0)
    tl.store(to, before + values, mask=mask)


@triton.jit
def _add_statistic(columns, value, active, side, statistic, step, head):
    """Add Σ over cells of a statistic times what reaches the hidden units, where that is wanted."""
    if columns is not None:
        found = tl.sum(active * tl.expand_dims(value, 1), axis=0)
        _add(
            columns + (side * head.side + statistic) * head.hidden, found, tl.arange(0, head.units) < head.hidden, step
        )


@triton.jit
def _of_statistic(upstream, rows, live, weight1, second, active, side, statistic, like, head):
    """∂L/∂(a statistic of a side): by way of the hidden units, or what is given where the statistics are the result."""
    if weight1 is not None:
        found = tl.sum(active * (_column(weight1, side, statistic, head) * second), axis=1)
    elif upstream is not None:
        at = upstream + (rows * (4 * head.side) + side * head.side)
        found = tl.load(at + statistic, mask=live, other=0.0)
    else:
        found = tl.zeros_like(like)
    return found


@kernel
def dgqp_backward_kernel(
    upstream,  # shaped as forward's output, float32, contiguous; without a predictor None: 0
    logits_0, logits_1, logits_2, logits_3, logits_4, logits_5, logits_6, logits_7, levels,
    grad_0, grad_1, grad_2, grad_3, grad_4, grad_5, grad_6, grad_7, grad_levels,  # shaped as the logits, or None
    weight1, bias1, weight2,  # as in forward
    scales,
    partials,  # (slots, F + 2, hidden) float32, or None: Σ a_h·F_f for each f, Σ a_h, Σ g·relu_h
    partial_upstream,  # (slots,) float32, or None: Σ g
    partial_scales,  # (slots,) float32, or None
    box_sides, box_weights, box_projection, normalisers, grad_giou, grad_dfl,  # see `SavedBoxLoss`; None: no box losses
    giou_factor: tl.float32, dfl_factor: tl.float32, blocks: tl.int32, batch: tl.int64,
    total: tl.int64,
    TOPK: tl.constexpr, MEAN: tl.constexpr, VARIANCE: tl.constexpr, PLACES: tl.constexpr, HIDDEN: tl.constexpr,
    UNITS: tl.constexpr, BINS: tl.constexpr, BODY: tl.constexpr, AXIS: tl.constexpr, TOUCHING: tl.constexpr,
    BLOCK: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    tile: tl.constexpr = Tile(BINS, BODY, AXIS)
    SIDE: tl.constexpr = TOPK + MEAN + VARIANCE
    SHARE: tl.constexpr = 1.0 / TOPK
    head: tl.constexpr = _Head(TOPK, MEAN, VARIANCE, SIDE, PLACES, HIDDEN, UNITS)

    # 1. The block of this program, as in forward.
    block = find_block(levels, blocks, BLOCK * STEPS)
    every = (logits_0, logits_1, logits_2, logits_3, logits_4, logits_5, logits_6, logits_7)
    every_grad = (grad_0, grad_1, grad_2, grad_3, grad_4, grad_5, grad_6, grad_7)
    scale = scale_of(scales, block.level)
    slot = level_slot(block, batch, BLOCK * STEPS)
    units = tl.arange(0, UNITS)
    unit_exists = units < HIDDEN
    columns = None
    if partials is not None:
        columns = partials + slot * ((4 * SIDE + 2) * HIDDEN) + units
    if box_sides is not None:
        divisor = tl.load(normalisers + 1)
        of_giou = tl.load(grad_giou) * giou_factor / divisor
        of_dfl = tl.load(grad_dfl) * dfl_factor / divisor

    sum_upstream = tl.zeros((BLOCK,), tl.float32)
    sum_scale = tl.zeros((BLOCK,), tl.float32)
    for step in range(_steps_of(block, BLOCK, STEPS)):
        cells, live, rows = cells_of(block, block.number * STEPS + step, total, BLOCK)
        logits = open_map(every, levels, block, cells, AXIS, TOUCHING)

        # 2. Which hidden units are active.
        active, second = None, None
        if weight1 is not None:
            hidden = _hidden_units(logits, live, scale, weight1, bias1, head, tile, BLOCK)
            second = tl.expand_dims(tl.load(weight2 + units, mask=unit_exists, other=0.0), 0)
            g = tl.load(upstream + rows, mask=live, other=0.0)
            active = tl.where(hidden > 0.0, tl.expand_dims(g, 1), 0.0)
            if partials is not None:
                sum_upstream += g
                _add(columns + 4 * SIDE * HIDDEN, tl.sum(active, axis=0), unit_exists, step)
                _add(columns + (4 * SIDE + 1) * HIDDEN, tl.sum(active * hidden, axis=0), unit_exists, step)

        for side in range(4):
            # 3. Mean and variance of the side, and their gradients, which every rank shares.
            body, tail, norm, raw, raw_tail = load_softmax(logits, side, live, scale, tile)
            of_mean = tl.zeros_like(norm)
            of_variance = tl.zeros_like(norm)
            mean = tl.zeros_like(norm)
            if VARIANCE:
                top, mean, variance = _side_statistics(body, tail, norm, head, tile)
                of_variance = _of_statistic(
                    upstream, rows, live, weight1, second, active, side, SIDE - 1, norm, head
                ) * (2.0 * SHARE)
                _add_statistic(columns, variance, active, side, SIDE - 1, step, head)
            if MEAN:
                of_mean = SHARE * _of_statistic(upstream, rows, live, weight1, second, active, side, TOPK, norm, head)

            # 4. Rank by rank: its gradient goes to the bin that holds it.
            left, left_tail = body, tail
            gradient = tl.zeros_like(body)
            gradient_tail = tl.zeros_like(norm)
            inner = tl.zeros_like(norm)
            sum_top = tl.zeros_like(norm)
            for rank in range(TOPK):
                value, here, tail_here, left, left_tail = _take_largest(left, left_tail, tile)
                value *= norm
                sum_top += value
                own = _of_statistic(upstream, rows, live, weight1, second, active, side, rank, norm, head)
                _add_statistic(columns, value, active, side, rank, step, head)
                own += of_mean + of_variance * (value - mean)
                inner += own * value
                gradient = tl.where(here, wide(own, tile), gradient)
                gradient_tail = tl.where(tail_here, own, gradient_tail)
            if MEAN:
                _add_statistic(columns, sum_top * SHARE, active, side, TOPK, step, head)

            # 5. ∂L/∂t_b = P_b (∂L/∂P_b − Σ_j T_j ∂L/∂T_j), rounded once on its way to memory.
            gradient = body * wide(norm, tile) * (gradient - wide(inner, tile))
            gradient_tail = tail * norm * (gradient_tail - inner)
            if box_sides is not None:
                weight = tl.load(box_weights + rows, mask=live, other=0.0)
                counts = weight > 0.0
                if tl.max(counts.to(tl.int32), axis=0) > 0:
                    at = box_sides + (rows * 8 + side * 2)
                    weight = tl.where(counts, weight, 0.0)
                    more, tail_more = _box_gradient(
                        body, tail, norm, at, weight, counts, of_giou, of_dfl, box_projection, tile
                    )
                    gradient += more
                    gradient_tail += tail_more
            if grad_0 is not None:
                grad = open_map(every_grad, grad_levels, block, cells, AXIS, TOUCHING)
                store_bins(grad, side, gradient * scale, gradient_tail * scale, live, tile)
            if partial_scales is not None:
                found = sum_bins(gradient * raw, gradient_tail * raw_tail, tile)
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


@kernel
def dgqp_reduce_kernel(
    partials, partial_upstream, partial_scales,  # as in backward
    weight2,  # (hidden,) float32, or None
    grad_weight1, grad_bias1, grad_weight2, grad_bias2,  # (hidden, F), (hidden,), (hidden,), (1,) float32, or None
    grad_scales,  # (L,) float32, or None
    levels,
    batch: tl.int64, slots: tl.int64,
    FEATURES: tl.constexpr, HIDDEN: tl.constexpr, UNITS: tl.constexpr,
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
            tl.store(grad_bias2, sum_run(partial_upstream, slots, ROWS))

    # 3. The others: one level each.
    if grad_scales is not None:
        if item >= sums:
            total = sum_level(partial_scales, levels, item - sums, batch, BLOCK, ROWS)
            tl.store(grad_scales + (item - sums), total)


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
    extent = extent_of(logits, shape["BLOCK"] * shape["STEPS"])
    with device_of(out):
        dgqp_forward_kernel[(extent.programs,)](
            out,
            *level_arguments(logits),
            *(predictor or [None] * 4),
            *(gapless(scales), extent.blocks, extent.points),
            **shape,
            maxnreg=_MOST_REGISTERS if variance or shape["UNITS"] > 256 else _FORWARD_REGISTERS,
        )


def dgqp_backward(
    grad: Tensor,
    logits: Sequence[Tensor],
    predictor: Sequence[Tensor],
    scales: Tensor | None,
    topk: int,
    mean: bool,
    variance: bool,
    grad_logits: Sequence[Tensor],
    grad_predictor: Sequence[Tensor],
    grad_scales: Tensor | None,
) -> None:
    """Write the gradients that are wanted.

    Args:
        grad: upstream gradient, shaped as forward's output, float32 contiguous. The other inputs as in forward.
        grad_logits: tensors shaped as ``logits``, in their dtype, any strides; empty: not wanted.
        grad_predictor: like ``predictor``; empty: not wanted.
        grad_scales: (L,) float32, or None: not wanted.
    """
    statistics = (topk, mean, variance)
    write_gradients(grad, logits, predictor, scales, statistics, grad_logits, grad_predictor, grad_scales, None)


def write_gradients(
    grad_out: Tensor | None,
    logits: Sequence[Tensor],
    predictor: Sequence[Tensor],
    scales: Tensor | None,
    statistics: tuple[int, bool, bool],
    grad_logits: Sequence[Tensor],
    grad_predictor: Sequence[Tensor],
    grad_scales: Tensor | None,
    box: SavedBoxLoss | None,
) -> None:
    """What ``dgqp_backward`` and ``gfl_loss.box_loss_backward`` share: the box logits' gradient is written once.

    Args:
        grad_out: None, without a predictor: 0.
        statistics: topk, mean, variance.
        box: the box losses, whose gradient joins in; None: there are none.
        The others: as ``dgqp_backward``.
    """
    shape = _shape(logits, [*logits, *grad_logits], predictor, *statistics)
    cells = shape["BLOCK"] * shape["STEPS"]
    extent = extent_of(logits, cells)
    slots = extent.programs
    features, hidden = 4 * sum(statistics), shape["HIDDEN"]
    wanted = bool(grad_predictor)
    partials = grad_out.new_empty(slots, features + 2, hidden) if wanted else None
    partial_upstream = grad_out.new_empty(slots) if wanted else None
    partial_scales = None if grad_scales is None else grad_scales.new_empty(slots)
    with device_of(logits[0]):
        dgqp_backward_kernel[(slots,)](
            grad_out,
            *level_arguments(logits),
            *level_arguments(grad_logits),
            *(*(predictor[:3] or [None] * 3), gapless(scales), partials, partial_upstream, partial_scales),
            *((None,) * 6 + (0.0, 0.0) if box is None else (*box[:6], *box.factors)),
            *extent,
            **shape,
            maxnreg=_MOST_REGISTERS,
        )
        sums = (features + 3 if wanted else 0) + (0 if grad_scales is None else len(logits))
        if sums == 0:
            return
        dgqp_reduce_kernel[(sums,)](
            *(partials, partial_upstream, partial_scales, predictor[2] if wanted else None),
            *(*(grad_predictor or [None] * 4), grad_scales, level_table(logits), extent.batch, slots),
            **{"FEATURES": features, "HIDDEN": hidden, "UNITS": shape["UNITS"], "BLOCK": cells, "ROWS": _PARTIALS},
            **OPTIONS,
        )


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
    tile = tile_of(logits, touched)
    body = tile["BODY"]
    hidden = predictor[0].shape[0] if predictor else 1
    units = triton.next_power_of_2(hidden)
    cells = max(min(_CELLS if body <= 32 else _CELLS // 2, _HIDDEN_TILE // units), 16)
    return {
        "TOPK": topk,
        "MEAN": int(mean),
        "VARIANCE": int(variance),
        "PLACES": triton.next_power_of_2(topk + mean + variance),
        "HIDDEN": hidden,
        "UNITS": units,
        **tile,
        "BLOCK": _CELLS_INTERPRETED if INTERPRETED else cells,
        "STEPS": _STEPS_INTERPRETED if INTERPRETED else _STEPS,
        "num_warps": 4 if body <= 16 and not predictor else 8,
        **FUSED,
    }
