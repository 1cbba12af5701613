"""The box losses of ``gfl_loss`` in Triton: GIoU loss and DFL (arXiv 2006.04388), forward and backward.

A program takes a block of cells of one level of one image. Few cells have a weight: most programs read the weights of
their cells, find none and stop. The others read the logits of the cells that have one. Sums are formed in two stages:
each program writes to its slot, then one program adds the slots up.

Backward writes the box logits' gradient once, with that of the statistics in it: the kernel is that of
`gflv2.kernels.dgqp`, which takes what forward saves.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from gflv2.kernels.bins import Tile, chosen_logit, load_bins, load_projection, put_side, shift_bins, side_of, sum_bins
from gflv2.kernels.boxes import Corners, at_least, giou_loss, iou_gradients, load_corners, overlap
from gflv2.kernels.dgqp import write_gradients
from gflv2.kernels.gfl_targets import shape_of_head
from gflv2.kernels.launching import OPTIONS, device_of, kernel
from gflv2.kernels.levels import (
    cells_of,
    extent_of,
    find_block,
    level_arguments,
    open_map,
    pick,
    place_of,
    scale_of,
)
from gflv2.kernels.logarithm import minus_log
from gflv2.kernels.sums import PARTIALS, sum_run
from gflv2.ops.box_losses import SavedBoxLoss


@triton.jit
def _distance_and_dfl(logits, side, live, scale, values, last, target, tile):
    """The distance of one side, and its DFL for a target in bins."""
    _, body, _, tail = load_bins(logits, side, live, scale, tile)
    body, tail = shift_bins(body, tail, tile)
    chosen = chosen_logit(body, tail, target, tile)
    body, tail = tl.exp(body), tl.exp(tail)
    total = sum_bins(body, tail, tile)
    return sum_bins(body * values, tail * last, tile) / total, -minus_log(total, 1.0 - total) - chosen


@kernel
def box_loss_forward_kernel(
    sides,  # (B, A, 4, 2) float32
    partial_giou, partial_dfl,  # (programs,) float32
    target_boxes,  # (B, A, 4) float32
    weights,  # (B, A) float32
    box_0, box_1, box_2, box_3, box_4, box_5, box_6, box_7,
    levels, projection, scales, strides,  # see gfl_targets_kernel
    offset: tl.float32, blocks: tl.int32, total: tl.int64,
    BINS: tl.constexpr, BODY: tl.constexpr, AXIS: tl.constexpr, TOUCHING: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    tile: tl.constexpr = Tile(BINS, BODY, AXIS)

    # 1. The cells of this program, and which of them count.
    block = find_block(levels, blocks, BLOCK)
    cells, live, rows = cells_of(block, block.number, total, BLOCK)
    weight = tl.load(weights + rows, mask=live, other=0.0)
    counts = weight > 0.0
    weight = tl.where(counts, weight, 0.0)
    to = sides + rows * 8
    nothing = tl.zeros((BLOCK,), tl.float32)
    giou = nothing
    dfl = nothing
    if tl.max(counts.to(tl.int32), axis=0) > 0:
        # 2. Targets, in units of the stride; cells that do not count have the unit box round them.
        y, x = place_of(levels, block.level, cells)
        cx = x.to(tl.float32) + offset
        cy = y.to(tl.float32) + offset
        stride = pick(strides, block.level, len(strides))
        x1, y1, x2, y2 = load_corners(target_boxes, rows, counts, 4, 1)
        target = Corners(x1 / stride, y1 / stride, x2 / stride, y2 / stride)

        # 3. Side by side: the target in bins, DFL, the distance.
        every = (box_0, box_1, box_2, box_3, box_4, box_5, box_6, box_7)
        logits = open_map(every, levels, block, cells, AXIS, TOUCHING)
        scale = scale_of(scales, block.level)
        values, last = load_projection(projection, 1, tile)
        first = tl.load(projection)
        step = tl.load(projection + 1) - first
        wanted = (cx - target.x1, cy - target.y1, target.x2 - cx, target.y2 - cy)
        left, top, right, bottom = nothing, nothing, nothing, nothing
        # A loop at run time: unrolled, Triton 3.6 reads all sides first, and spills whatever the number of bins.
        for side in range(4):
            goal = at_least((side_of(wanted, side) - first) / step, 0.0)
            goal = tl.where(goal > BINS - 1.1, BINS - 1.1, goal)
            distance, loss = _distance_and_dfl(logits, side, counts, scale, values, last, goal, tile)
            dfl += tl.where(counts, weight * loss, 0.0)
            left, top, right, bottom = put_side((left, top, right, bottom), side, distance)
            tl.store(to + 2 * side + 1, tl.where(counts, goal, 0.0), mask=live)

        # 4. 1 − GIoU, and its gradient: a distance grows towards the low side, against the corner.
        box = Corners(cx - left, cy - top, cx + right, cy + bottom)
        shared = overlap(box, target)
        giou = tl.where(counts, weight * giou_loss(shared, 1e-6), 0.0)
        of_box, _ = iou_gradients(box, target, shared, weight, 1e-6, True)
        tl.store(to, tl.where(counts, -of_box.x1, 0.0), mask=live)
        tl.store(to + 2, tl.where(counts, -of_box.y1, 0.0), mask=live)
        tl.store(to + 4, tl.where(counts, of_box.x2, 0.0), mask=live)
        tl.store(to + 6, tl.where(counts, of_box.y2, 0.0), mask=live)
    else:
        for place in tl.static_range(8):
            tl.store(to + place, nothing, mask=live)
    tl.store(partial_giou + tl.program_id(0), tl.sum(giou, axis=0))
    tl.store(partial_dfl + tl.program_id(0), tl.sum(dfl, axis=0))


@kernel
def box_loss_sums_kernel(
    partial_giou, partial_dfl,  # as above
    normalisers,  # (2,) float32: N_pos, W
    giou, dfl,  # () float32
    giou_factor: tl.float32, dfl_factor: tl.float32, slots: tl.int64,
    WIDE: tl.constexpr,
):  # fmt: skip
    divisor = tl.load(normalisers + 1)
    tl.store(giou, sum_run(partial_giou, slots, WIDE) * giou_factor / divisor)
    tl.store(dfl, sum_run(partial_dfl, slots, WIDE) * dfl_factor / divisor)


def box_loss_forward(
    box_logits: Sequence[Tensor],
    boxes: Tensor,
    weights: Tensor,
    normalisers: Tensor,
    strides: Sequence[float],
    scales: Tensor | None,
    projection: Tensor,
    offset: float,
    factors: tuple[float, float],
    sides: Tensor,
    giou: Tensor,
    dfl: Tensor,
) -> None:
    """Write GIoU loss and DFL into ``giou`` and ``dfl``, and what their gradient needs into ``sides``.

    Args:
        box_logits: L levels (B, 4·R, H_l, W_l), any strides.
        boxes: (B, A, 4) in pixels, weights: (B, A), contiguous. Points with a weight of 0 do not count.
        normalisers: (2,): N_pos and W.
        factors: Σ weight·(1 − GIoU) and Σ weight·DFL, over points and sides, are multiplied by them and divided by W.
        sides: (B, A, 4, 2), as `SavedBoxLoss` has them. giou, dfl: (). Contiguous. All but the logits float32.
    """
    shape = shape_of_head(box_logits)
    extent = extent_of(box_logits, shape["BLOCK"])
    partials = weights.new_empty(2, extent.programs)
    with device_of(weights):
        box_loss_forward_kernel[(extent.programs,)](
            *(sides, *partials, boxes, weights),
            *level_arguments(box_logits),
            *(projection, scales, tuple(strides), offset, extent.blocks, extent.points),
            **shape,
        )
        options = {"WIDE": PARTIALS, **OPTIONS}
        box_loss_sums_kernel[(1,)](*partials, normalisers, giou, dfl, *factors, extent.programs, **options)


def box_loss_backward(
    grad_quality: Tensor | None,
    box_logits: Sequence[Tensor],
    predictor: Sequence[Tensor],
    scales: Tensor | None,
    topk: int,
    mean: bool,
    variance: bool,
    grad_logits: Sequence[Tensor],
    grad_predictor: Sequence[Tensor],
    grad_scales: Tensor | None,
    box: SavedBoxLoss,
) -> None:
    """Write the gradients that are wanted: those of the box losses, and of the quality by way of the statistics.

    Args:
        grad_quality: (B, A) upstream gradient of the quality logits, float32 contiguous; None with an empty
            ``predictor``: the gradient of the box losses alone.
        box_logits, predictor, scales, topk, mean, variance: as `gflv2.kernels.dgqp.dgqp_forward`.
        grad_logits, grad_predictor, grad_scales: as `gflv2.kernels.dgqp.dgqp_backward`.
        box: what forward saved, and the upstream gradients of the box losses.
    """
    statistics = (topk, mean, variance)
    write_gradients(
        grad_quality, box_logits, predictor, scales, statistics, grad_logits, grad_predictor, grad_scales, box
    )
