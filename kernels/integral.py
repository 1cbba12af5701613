"""``integral`` in Triton: softmax over the bins of a side, expectation, optionally the box (2006.04388, equation 5).

A program takes BLOCK cells of one level of one image and goes through their four sides. The bins of a side form a tile
with the cells; whichever of the two lies closer together in memory is the tile's last dimension, so that neighbouring
threads read neighbouring elements in NCHW as well as in channels_last and in rows.
How a tile holds the bins: kernels/bins.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from gflv2.kernels.bins import Tile, load_distance, load_projection, load_softmax, store_bins, sum_bins, tile_of, wide
from gflv2.kernels.launching import FUSED, INTERPRETED, OPTIONS, device_of, gapless, kernel
from gflv2.kernels.levels import (
    cells_of,
    extent_of,
    find_block,
    has_pairs,
    level_arguments,
    level_table,
    open_map,
    open_pairs,
    pick,
    place_of,
    scale_of,
)
from gflv2.kernels.sums import PARTIALS, level_slot, sum_level, sum_run

# Most bins of the tile, cells and warps of a program, by AXIS. Chosen so that ptxas never spills, from sm_80 to sm_120:
# with 128 cells and 4 warps throughout it did from R = 33 on.
# NCHW: a thread holds one cell with its bins in registers, a softmax without exchange between threads; from 32 bins on
# two warps share a cell, from 64 on four. Bins last: 16 or 32 threads share a cell's bins and go through four cells.
_SHAPES = ((16, 128, 4), (32, 128, 8), (64, 64, 8)), ((16, 64, 8), (32, 32, 8), (64, 32, 8))
_CELLS_INTERPRETED = 512


@triton.jit
def _stride_of(strides, point_strides, level, cells, live):
    """Pixels a unit of distance: of the level, or of each row."""
    if strides is not None:
        stride = pick(strides, level, len(strides))
    else:
        stride = tl.load(point_strides + cells, mask=live, other=0.0)
    return stride


@triton.jit
def _distances(logits, live, scale, values, last, tile):
    """Of the four sides."""
    distances = ()
    for side in tl.static_range(4):
        distances = distances + (load_distance(logits, side, live, scale, values, last, tile),)
    return distances


@kernel(aligned="out")
def integral_forward_kernel(
    out,  # (B, A, 4) or (M, 4) float32, contiguous
    logits_0, logits_1, logits_2, logits_3, logits_4, logits_5, logits_6, logits_7,  # (B, 4·R, H_l, W_l) or (M, 4, R)
    levels,  # their table, see levels.level_arguments
    projection,  # (R,) float32
    scales,  # (L,) float32, or None
    points,  # (M, 2) float32, or None
    point_strides,  # (M,) float32, or None
    strides,  # L floats, or None
    offset: tl.float32,
    projection_step: tl.int64,  # a constant 1 costs ptxas 16 registers
    blocks: tl.int32,  # programs an image
    total: tl.int64,  # A
    BINS: tl.constexpr, BODY: tl.constexpr,
    AXIS: tl.constexpr,  # of the bins in the tile: 0 with the cells last (NCHW), 1 with the bins last
    TOUCHING: tl.constexpr,  # neighbours in the tile's last dimension are neighbours in memory
    BLOCK: tl.constexpr,
):  # fmt: skip
    tile: tl.constexpr = Tile(BINS, BODY, AXIS)

    # 1. The cells of this program.
    block = find_block(levels, blocks, BLOCK)
    cells, live, rows = cells_of(block, block.number, total, BLOCK)
    every = (logits_0, logits_1, logits_2, logits_3, logits_4, logits_5, logits_6, logits_7)
    scale = scale_of(scales, block.level)
    values, last = load_projection(projection, projection_step, tile)

    # 2. Softmax and expectation, side after side.
    if has_pairs(every, levels, (None,), None, block, AXIS, TOUCHING):
        pairs, exist = open_pairs(every, levels, block, cells)
        left, top, right, bottom = _distances(pairs, exist, scale, values, last, tile)
    else:
        logits = open_map(every, levels, block, cells, AXIS, TOUCHING)
        left, top, right, bottom = _distances(logits, live, scale, values, last, tile)

    # 3. From distances to the box.
    if strides is not None or points is not None:
        stride = _stride_of(strides, point_strides, block.level, cells, live)
        if points is not None:
            px = tl.load(points + cells.to(tl.int64) * 2, mask=live, other=0.0)
            py = tl.load(points + cells.to(tl.int64) * 2 + 1, mask=live, other=0.0)
        else:
            y, x = place_of(levels, block.level, cells)
            px = (x + offset) * stride
            py = (y + offset) * stride
        left, top = px - left * stride, py - top * stride
        right, bottom = px + right * stride, py + bottom * stride

    # 4. The four sides of a cell lie side by side: one 16-byte store a cell.
    sides = tl.reshape(tl.join(tl.join(left, right), tl.join(top, bottom)), (BLOCK, 4))
    tl.store(out + rows[:, None] * 4 + tl.arange(0, 4)[None, :], sides, mask=live[:, None])


@triton.jit
def _write_sides(
    logits, grad, live, upstream, stride, scale, values, last, SUMS: tl.constexpr, GRAD: tl.constexpr, tile
):  # fmt: skip
    """Write the gradient of the logits, where it is wanted (GRAD), side after side.

    ``upstream``: where the gradient of the cells' first side stands; ``stride``: pixels a unit, or None. Returns what
    this program adds to the gradients of scale and projection, where SUMS says so, else 0.
    """
    nothing = tl.where(live, 0.0, 0.0)
    sum_scale = nothing
    sum_bins_of = wide(nothing, tile) * values
    sum_last = nothing
    for side in range(4):
        # 1. The softmax once more.
        body, tail, norm, raw, raw_tail = load_softmax(logits, side, live, scale, tile)
        body *= wide(norm, tile)
        tail *= norm
        distance = sum_bins(body * values, tail * last, tile)

        # 2. Upstream gradient of this side's distance.
        g = tl.load(upstream + side, mask=live, other=0.0)
        if stride is not None:
            g *= tl.where(side < 2, -stride, stride)

        # 3. ∂d/∂z_b = P_b (projection_b − d), rounded once on its way to memory.
        gradient = wide(g, tile) * body * (values - wide(distance, tile))
        gradient_tail = g * tail * (last - distance)
        if GRAD:
            store_bins(grad, side, gradient * scale, gradient_tail * scale, live, tile)

        # 4. What this program adds to the gradients of scale and projection.
        if SUMS[0]:
            sum_scale += sum_bins(gradient * raw, gradient_tail * raw_tail, tile)
        if SUMS[1]:
            sum_bins_of += wide(g, tile) * body
            sum_last += g * tail
    return tl.sum(sum_scale, axis=0), tl.sum(sum_bins_of, axis=1 - tile.axis), tl.sum(sum_last, axis=0)


@kernel
def integral_backward_kernel(
    upstream,  # (B, A, 4) or (M, 4) float32, contiguous
    logits_0, logits_1, logits_2, logits_3, logits_4, logits_5, logits_6, logits_7, levels,
    grad_0, grad_1, grad_2, grad_3, grad_4, grad_5, grad_6, grad_7, grad_levels,  # shaped as the logits, or None
    projection, scales, point_strides, strides,  # as in forward
    partial_projection,  # (R, slots) float32, or None
    partial_scales,  # (slots,) float32, or None
    projection_step: tl.int64, blocks: tl.int32, batch: tl.int64, total: tl.int64,
    slots: tl.int64,  # programs of the launch
    BINS: tl.constexpr, BODY: tl.constexpr, AXIS: tl.constexpr, TOUCHING: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    tile: tl.constexpr = Tile(BINS, BODY, AXIS)

    # 1. The cells of this program, as in forward.
    block = find_block(levels, blocks, BLOCK)
    cells, live, rows = cells_of(block, block.number, total, BLOCK)
    every = (logits_0, logits_1, logits_2, logits_3, logits_4, logits_5, logits_6, logits_7)
    every_grad = (grad_0, grad_1, grad_2, grad_3, grad_4, grad_5, grad_6, grad_7)
    scale = scale_of(scales, block.level)
    values, last = load_projection(projection, projection_step, tile)
    stride = None
    if strides is not None or point_strides is not None:
        stride = _stride_of(strides, point_strides, block.level, cells, live)

    # 2. The sides, whose neighbouring cells are read and written in pairs where memory allows it.
    given = upstream + rows * 4
    SUMS: tl.constexpr = (partial_scales is not None, partial_projection is not None)
    if has_pairs(every, levels, every_grad, grad_levels, block, AXIS, TOUCHING):
        logit_pairs, exist = open_pairs(every, levels, block, cells)
        grad_pairs = logit_pairs
        if grad_0 is not None:
            grad_pairs, _ = open_pairs(every_grad, grad_levels, block, cells)
        sum_scale, sum_bins_of, sum_last = _write_sides(
            logit_pairs, grad_pairs, exist, given, stride, scale, values, last, SUMS, grad_0 is not None, tile
        )
    else:
        logits = open_map(every, levels, block, cells, AXIS, TOUCHING)
        grad = logits
        if grad_0 is not None:
            grad = open_map(every_grad, grad_levels, block, cells, AXIS, TOUCHING)
        sum_scale, sum_bins_of, sum_last = _write_sides(
            logits, grad, live, given, stride, scale, values, last, SUMS, grad_0 is not None, tile
        )

    # 3. First stage of the reductions.
    slot = level_slot(block, batch, BLOCK)
    if partial_scales is not None:
        tl.store(partial_scales + slot, sum_scale)
    if partial_projection is not None:
        bins = tl.arange(0, BODY)
        tl.store(partial_projection + bins * slots + slot, sum_bins_of, mask=bins < BINS)
        if BODY < BINS:
            tl.store(partial_projection + BODY * slots + slot, sum_last)


@kernel
def integral_reduce_kernel(
    partial_projection,  # (R, slots) float32, or None
    grad_projection,  # (R,) float32, or None
    partial_scales,  # (slots,) float32, or None
    grad_scales,  # (L,) float32, or None
    levels,
    batch: tl.int64,
    slots: tl.int64,
    BINS: tl.constexpr,  # programs that sum for the projection: R or 0
    BLOCK: tl.constexpr,  # cells a slot
    WIDE: tl.constexpr,
):
    # 1. The first BINS programs: one entry of the projection's gradient each.
    item = tl.program_id(0)
    if grad_projection is not None:
        if item < BINS:
            total = sum_run(partial_projection + item * slots, slots, WIDE)
            tl.store(grad_projection + item, total)

    # 2. The others: one level each.
    if grad_scales is not None:
        if item >= BINS:
            total = sum_level(partial_scales, levels, item - BINS, batch, BLOCK, WIDE)
            tl.store(grad_scales + (item - BINS), total)


def integral_forward(
    logits: Sequence[Tensor],
    projection: Tensor,
    scales: Tensor | None,
    points: Tensor | None,
    point_strides: Tensor | None,
    strides: Sequence[float],
    offset: float,
    out: Tensor,
) -> None:
    """Write distances or boxes into ``out``, (B, A, 4) or (M, 4) float32 contiguous.

    Args:
        logits: L levels (B, 4·R, H_l, W_l) or [rows (M, 4, R)]; float32, float16 or bfloat16, any strides.
        projection: (R,) float32. scales: (L,) float32 or None.
        points, point_strides: (M, 2) and (M,) float32 contiguous to decode rows, else None.
        strides, offset: L numbers to decode levels, else empty.
    """
    shape = _shape(logits, logits)
    extent = extent_of(logits, shape["BLOCK"])
    decode = (points, point_strides, tuple(strides) or None, offset)
    with device_of(out):
        integral_forward_kernel[(extent.programs,)](
            out,
            *level_arguments(logits),
            *(projection, gapless(scales), *decode, projection.stride(0), extent.blocks, extent.points),
            **shape,
        )


def integral_backward(
    grad: Tensor,
    logits: Sequence[Tensor],
    projection: Tensor,
    scales: Tensor | None,
    points: Tensor | None,
    point_strides: Tensor | None,
    strides: Sequence[float],
    offset: float,
    grad_logits: Sequence[Tensor],
    grad_projection: Tensor | None,
    grad_scales: Tensor | None,
) -> None:
    """Write the gradients that are wanted.

    Args:
        grad: upstream gradient, shaped as forward's output, float32 contiguous. The other inputs as in forward.
        grad_logits: tensors shaped as ``logits``, in their dtype, any strides; empty: not wanted.
        grad_projection, grad_scales: (R,) and (L,) float32, or None: not wanted.
    """
    shape = _shape(logits, [*logits, *grad_logits])
    extent = extent_of(logits, shape["BLOCK"])
    slots = extent.programs
    partial_projection = None if grad_projection is None else grad.new_empty(shape["BINS"], slots)
    partial_scales = None if grad_scales is None else grad.new_empty(slots)
    with device_of(grad):
        integral_backward_kernel[(slots,)](
            grad,
            *level_arguments(logits),
            *level_arguments(grad_logits),
            *(projection, gapless(scales), point_strides, tuple(strides) or None),
            *(partial_projection, partial_scales, projection.stride(0), *extent, slots),
            **shape,
        )
        if grad_projection is None and grad_scales is None:
            return
        bins = 0 if grad_projection is None else shape["BINS"]
        integral_reduce_kernel[(bins + (0 if grad_scales is None else len(logits)),)](
            *(partial_projection, grad_projection, partial_scales, grad_scales, level_table(logits)),
            *(extent.batch, slots),
            **{"BINS": bins, "BLOCK": shape["BLOCK"], "WIDE": PARTIALS, **OPTIONS},
        )


def _shape(logits: Sequence[Tensor], touched: Sequence[Tensor]) -> dict[str, Any]:
    """Constants and options of the kernels. ``touched``: every tensor that is read or written in tiles."""
    tile = tile_of(logits, touched)
    # 66 bins and more, which would not fit the last entry, are refused by the operation.
    cells, warps = next((cells, warps) for most, cells, warps in _SHAPES[tile["AXIS"]] if tile["BODY"] <= most)
    if tile["AXIS"] == 0 and logits[0].dtype.itemsize == 2:
        warps //= 2  # a thread takes pairs of cells
    return {**tile, "BLOCK": _CELLS_INTERPRETED if INTERPRETED else cells, "num_warps": warps, **FUSED}
