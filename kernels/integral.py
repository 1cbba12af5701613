"""``integral`` in Triton: softmax over the bins of a side, expectation, optionally the box (2006.04388, equation 5).

A program takes BLOCK cells of one level of one image and goes through their four sides. The bins of a side form a tile
with the cells; whichever of the two lies closer together in memory is the tile's last dimension, so that neighbouring
threads read neighbouring elements in NCHW as well as in channels_last and in rows.
How a tile holds the bins: kernels/rows.py.
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
from gflv2.kernels.reduction import PARTIALS, sum_run
from gflv2.kernels.rows import body_of, expectation, load_bins, load_projection, softmax_bins

# Most bins of the tile, cells and warps of a program, by AXIS. Chosen so that ptxas never spills, from sm_80 to sm_120:
# with 128 cells and 4 warps throughout it did from R = 33 on.
# NCHW: a thread holds one cell with its bins in registers, a softmax without exchange between threads; from 32 bins on
# two warps share a cell, from 64 on four. Bins last: 16 or 32 threads share a cell's bins and go through four cells.
# The interpreter pays for each operation of a program, not for each element: large blocks.
_SHAPES = {False: ((16, 128, 4), (32, 128, 8), (64, 64, 8)), True: ((16, 64, 8), (32, 32, 8), (64, 32, 8))}
_CELLS_INTERPRETED = 512

# Nothing of these is compiled in: neither a size, nor a stride, nor the alignment of an input.
_RUN_TIME = [f"{name}_{level}" for name in ("logits", "grad") for level in range(common.MAX_LEVELS)]
_RUN_TIME += ["projection", "scales", "points", "point_strides", "upstream", "partial_projection", "partial_scales"]
_RUN_TIME += ["grad_projection", "grad_scales", "projection_step", "scale_step", "blocks", "batch", "total", "slots"]


@triton.jit
def _stride_of(strides, point_strides, level, cells, live):
    """Pixels a unit of distance: of the level, or of each row."""
    if strides is not None:
        stride = pick(strides, level, len(strides))
    else:
        stride = tl.load(point_strides + cells, mask=live, other=0.0)
    return stride


@triton.jit(do_not_specialize=_RUN_TIME)
def integral_forward_kernel(
    out,  # (B, A, 4) or (M, 4) float32, contiguous
    logits_0, logits_1, logits_2, logits_3, logits_4, logits_5, logits_6, logits_7,  # (B, 4·R, H_l, W_l) or (M, 4, R)
    levels,  # table of the levels, see common.level_table
    projection,  # (R,) float32
    scales,  # (L,) float32, or None
    points,  # (M, 2) float32, or None
    point_strides,  # (M,) float32, or None
    strides,  # L floats, or None
    offset: tl.float32,
    projection_step: tl.int64,
    scale_step: tl.int64,
    blocks: tl.int32,  # programs an image
    total: tl.int64,  # A
    BINS: tl.constexpr,
    BODY: tl.constexpr,
    AXIS: tl.constexpr,  # of the bins in the tile: 0 with the cells last (NCHW), 1 with the bins last
    TOUCHING: tl.constexpr,  # neighbours in the tile's last dimension are neighbours in memory
    BLOCK: tl.constexpr,
):  # fmt: skip
    LEVELS: tl.constexpr = len(levels)

    # 1. The image, the level and the cells of this program.
    program = tl.program_id(0)
    image = program // blocks
    level, first_block, first_point = find_level(levels, program - image * blocks, BLOCK)
    cells = (program - image * blocks - first_block) * BLOCK + tl.arange(0, BLOCK)
    live = cells < pick_column(levels, level, COUNT)
    offsets, y, x = cell_offsets(levels, level, image, cells, TOUCHING and AXIS == 0)
    every = (logits_0, logits_1, logits_2, logits_3, logits_4, logits_5, logits_6, logits_7)
    logits = pick(every, level, LEVELS)
    side_stride = pick_column(levels, level, SIDE_STRIDE)
    bin_stride = 1
    if AXIS == 0 or not TOUCHING:
        bin_stride = pick_column(levels, level, BIN_STRIDE)
    scale = 1.0
    if scales is not None:
        scale = tl.load(scales + level * scale_step)
    values, last = load_projection(projection, projection_step, BINS, BODY, AXIS)

    # 2. Softmax and expectation, side after side.
    distances = ()
    for side in tl.static_range(4):
        _, body, _, tail = load_bins(logits, offsets + side * side_stride, live, bin_stride, scale, BINS, BODY, AXIS)
        body, tail, norm = softmax_bins(body, tail, BINS, BODY, AXIS)
        distances = distances + (expectation(body, tail, values, last, BINS, BODY, AXIS) * norm,)
    left, top, right, bottom = distances

    # 3. From distances to the box.
    if strides is not None or points is not None:
        stride = _stride_of(strides, point_strides, level, cells, live)
        if points is not None:
            px = tl.load(points + cells.to(tl.int64) * 2, mask=live, other=0.0)
            py = tl.load(points + cells.to(tl.int64) * 2 + 1, mask=live, other=0.0)
        else:
            px = (x + offset) * stride
            py = (y + offset) * stride
        left, top = px - left * stride, py - top * stride
        right, bottom = px + right * stride, py + bottom * stride

    # 4. The four sides of a cell lie side by side: one 16-byte store a cell.
    sides = tl.reshape(tl.join(tl.join(left, right), tl.join(top, bottom)), (BLOCK, 4))
    rows = image.to(tl.int64) * total + first_point + cells
    tl.store(out + rows[:, None] * 4 + tl.arange(0, 4)[None, :], sides, mask=live[:, None])


@triton.jit(do_not_specialize=_RUN_TIME)
def integral_backward_kernel(
    upstream,  # (B, A, 4) or (M, 4) float32, contiguous
    logits_0, logits_1, logits_2, logits_3, logits_4, logits_5, logits_6, logits_7,
    levels,
    grad_0, grad_1, grad_2, grad_3, grad_4, grad_5, grad_6, grad_7,  # shaped as the logits, or None
    grad_levels,  # their table
    projection, scales, point_strides, strides,  # as in forward
    partial_projection,  # (R, slots) float32, or None
    partial_scales,  # (slots,) float32, or None
    projection_step: tl.int64,
    scale_step: tl.int64,
    blocks: tl.int32,
    batch: tl.int64,
    total: tl.int64,
    slots: tl.int64,  # programs of the launch
    BINS: tl.constexpr,
    BODY: tl.constexpr,
    AXIS: tl.constexpr,
    TOUCHING: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    LEVELS: tl.constexpr = len(levels)

    # 1. The image, the level and the cells of this program, as in forward.
    program = tl.program_id(0)
    image = program // blocks
    level, first_block, first_point = find_level(levels, program - image * blocks, BLOCK)
    block = program - image * blocks - first_block
    cells = block * BLOCK + tl.arange(0, BLOCK)
    count = pick_column(levels, level, COUNT)
    live = cells < count
    offsets, _, _ = cell_offsets(levels, level, image, cells, TOUCHING and AXIS == 0)
    every = (logits_0, logits_1, logits_2, logits_3, logits_4, logits_5, logits_6, logits_7)
    logits = pick(every, level, LEVELS)
    side_stride = pick_column(levels, level, SIDE_STRIDE)
    bin_stride = 1
    if AXIS == 0 or not TOUCHING:
        bin_stride = pick_column(levels, level, BIN_STRIDE)
    scale = 1.0
    if scales is not None:
        scale = tl.load(scales + level * scale_step)
    values, last = load_projection(projection, projection_step, BINS, BODY, AXIS)
    if grad_0 is not None:
        every = (grad_0, grad_1, grad_2, grad_3, grad_4, grad_5, grad_6, grad_7)
        grad = pick(every, level, LEVELS)
        grad_offsets, _, _ = cell_offsets(grad_levels, level, image, cells, TOUCHING and AXIS == 0)
        grad_side = pick_column(grad_levels, level, SIDE_STRIDE)
        grad_bin = 1
        if AXIS == 0 or not TOUCHING:
            grad_bin = pick_column(grad_levels, level, BIN_STRIDE)
        bins = tl.expand_dims(tl.arange(0, BODY), 1 - AXIS)
        grad_mask = (bins < BINS) & tl.expand_dims(live, AXIS)
        grad_tile = tl.expand_dims(grad_offsets, AXIS) + bins * grad_bin
    rows = image.to(tl.int64) * total + first_point + cells
    if strides is not None or point_strides is not None:
        stride = _stride_of(strides, point_strides, level, cells, live)

    sum_scale = tl.zeros((BLOCK,), tl.float32)
    sum_last = tl.zeros((BLOCK,), tl.float32)
    sum_bins = tl.expand_dims(sum_scale, AXIS) * values
    for side in range(4):
        # 2. The softmax once more.
        body, body_z, tail, tail_z = load_bins(
            logits, offsets + side * side_stride, live, bin_stride, scale, BINS, BODY, AXIS
        )
        body_p, tail_p, norm = softmax_bins(body_z, tail_z, BINS, BODY, AXIS)
        body_p *= tl.expand_dims(norm, AXIS)
        tail_p *= norm
        distance = expectation(body_p, tail_p, values, last, BINS, BODY, AXIS)

        # 3. Upstream gradient of this side's distance.
        g = tl.load(upstream + rows * 4 + side, mask=live, other=0.0)
        if strides is not None or point_strides is not None:
            g *= tl.where(side < 2, -stride, stride)

        # 4. ∂d/∂z_b = P_b (projection_b − d), rounded once on its way to memory.
        body_g = tl.expand_dims(g, AXIS) * body_p * (values - tl.expand_dims(distance, AXIS))
        tail_g = g * tail_p * (last - distance)
        if grad_0 is not None:
            target = grad + grad_tile + side * grad_side
            tl.store(target, (body_g * scale).to(grad.dtype.element_ty), mask=grad_mask)
            if BODY < BINS:
                target = grad + (grad_offsets + side * grad_side + BODY * grad_bin)
                tl.store(target, (tail_g * scale).to(grad.dtype.element_ty), mask=live)

        # 5. What this program adds to the gradients of scale and projection.
        if partial_scales is not None:
            sum_scale += tl.sum(body_g * body, axis=AXIS)
            if BODY < BINS:
                sum_scale += tail_g * tail
        if partial_projection is not None:
            sum_bins += tl.expand_dims(g, AXIS) * body_p
            sum_last += g * tail_p

    # 6. First stage of the reductions: one slot a program, level-major, so that the second stage reads runs.
    level_blocks = (count + BLOCK - 1) // BLOCK
    slot = first_block * batch + image * level_blocks + block
    if partial_scales is not None:
        tl.store(partial_scales + slot, tl.sum(sum_scale, axis=0))
    if partial_projection is not None:
        bins_1d = tl.arange(0, BODY)
        tl.store(partial_projection + bins_1d * slots + slot, tl.sum(sum_bins, axis=1 - AXIS), mask=bins_1d < BINS)
        if BODY < BINS:
            tl.store(partial_projection + BODY * slots + slot, tl.sum(sum_last, axis=0))


@triton.jit(do_not_specialize=_RUN_TIME)
def integral_reduce_kernel(
    partial_projection,  # (R, slots) float32, or None
    grad_projection,  # (R,) float32, or None
    partial_scales,  # (slots,) float32, or None
    grad_scales,  # (L,) float32, or None
    levels,
    projection_step: tl.int64,
    scale_step: tl.int64,
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
            tl.store(grad_projection + item * projection_step, total)

    # 2. The others: one level each, whose slots lie in one run.
    if grad_scales is not None:
        if item >= BINS:
            level = item - BINS
            first = batch * 0
            for candidate in tl.static_range(len(levels)):
                blocks = (((levels[candidate][COUNT] - SEAL) >> 1) + BLOCK - 1) // BLOCK
                first += tl.where(candidate < level, blocks * batch, 0)
            count = (pick_column(levels, level, COUNT) + BLOCK - 1) // BLOCK * batch
            tl.store(grad_scales + level * scale_step, sum_run(partial_scales + first, count, WIDE))


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
    blocks = common.blocks_of(logits, shape["BLOCK"])
    with common.device_of(out):
        integral_forward_kernel[(blocks * _batch(logits),)](
            out,
            *common.pointers(logits),
            common.level_table(logits),
            projection,
            scales,
            points,
            point_strides,
            tuple(strides) or None,
            offset,
            projection.stride(0),
            0 if scales is None else scales.stride(0),
            blocks,
            out.shape[-2],
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
    blocks, batch = common.blocks_of(logits, shape["BLOCK"]), _batch(logits)
    slots = blocks * batch
    partial_projection = None if grad_projection is None else grad.new_empty(shape["BINS"], slots)
    partial_scales = None if grad_scales is None else grad.new_empty(slots)
    with common.device_of(grad):
        integral_backward_kernel[(slots,)](
            grad,
            *common.pointers(logits),
            common.level_table(logits),
            *common.pointers(grad_logits),
            common.level_table(grad_logits) if grad_logits else None,
            projection,
            scales,
            point_strides,
            tuple(strides) or None,
            partial_projection,
            partial_scales,
            projection.stride(0),
            0 if scales is None else scales.stride(0),
            blocks,
            batch,
            grad.shape[-2],
            slots,
            **shape,
        )
        if grad_projection is None and grad_scales is None:
            return
        bins = 0 if grad_projection is None else shape["BINS"]
        integral_reduce_kernel[(bins + (0 if grad_scales is None else len(logits)),)](
            partial_projection,
            grad_projection,
            partial_scales,
            grad_scales,
            common.level_table(logits),
            0 if grad_projection is None else grad_projection.stride(0),
            0 if grad_scales is None else grad_scales.stride(0),
            batch,
            slots,
            BINS=bins,
            BLOCK=shape["BLOCK"],
            WIDE=PARTIALS,
            num_warps=4,
            enable_fp_fusion=True,
        )


def _batch(logits: Sequence[Tensor]) -> int:
    return 1 if logits[0].dim() == 3 else logits[0].shape[0]


def _shape(logits: Sequence[Tensor], touched: Sequence[Tensor]) -> dict[str, Any]:
    """Constants and options of the kernels: they depend on R and on the memory layout, never on a size.

    Args:
        touched: every tensor that is read or written in tiles.
    """
    bins = logits[0].shape[2] if logits[0].dim() == 3 else logits[0].shape[1] // 4
    body = body_of(bins)
    bins_last = common.bins_are_last(logits)
    # 66 bins and more, which would not fit the last entry, are refused by the operation.
    cells, warps = next((cells, warps) for most, cells, warps in _SHAPES[bins_last] if body <= most)
    return {
        "BINS": bins,
        "BODY": body,
        "AXIS": int(bins_last),
        "TOUCHING": common.neighbours_touch(touched, bins_last),
        "BLOCK": _CELLS_INTERPRETED if INTERPRETED else cells,
        "num_warps": warps,
        "enable_fp_fusion": True,  # said aloud: Triton's default for it differs between versions
    }
