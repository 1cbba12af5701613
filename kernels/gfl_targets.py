"""``gfl_targets`` in Triton: what every point should learn (arXiv 2006.04388 and 2011.12885).

A program takes a block of cells of one level of one image. Few cells are positive: most programs read the indices of
their cells, find no positive one and stop. The others read the logits of their positive cells. Sums are formed in two
stages: each program writes to its slot, then one program adds the slots up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from gflv2.kernels.atss import BOXES, FIRST_BOX, VALID, image_table, numbers_of
from gflv2.kernels.bins import Tile, load_distance, load_projection, put_side, tile_of
from gflv2.kernels.boxes import Corners, iou, load_corners, overlap
from gflv2.kernels.launching import INTERPRETED, OPTIONS, device_of, kernel
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
from gflv2.kernels.sums import PARTIALS, sum_run

# Cells of a program by AXIS; with the cells last half of them from 64 bins on. With the bins last 64 cells spilled.
_CELLS = (512, 512) if INTERPRETED else (64, 16)
# The register limit is explicit: without one ptxas spills a few words of some variants to stay below 128 or 72. Within
# this limit R = 17 takes at most 124, and R = 33 up to 206.
_MOST_REGISTERS = 248
_CLASSES = 16  # looked at together


@kernel
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
    offset: tl.float32, classes: tl.int32,
    columns: tl.int32,  # of the table
    blocks: tl.int32,  # programs an image
    total: tl.int64,  # A
    BINS: tl.constexpr, BODY: tl.constexpr, AXIS: tl.constexpr, TOUCHING: tl.constexpr,
    TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    tile: tl.constexpr = Tile(BINS, BODY, AXIS)

    # 1. The cells of this program, and which of them count.
    block = find_block(levels, blocks, BLOCK)
    cells, live, rows = cells_of(block, block.number, total, BLOCK)
    y, x = place_of(levels, block.level, cells)
    number = tl.load(index + rows, mask=live, other=0)
    positive = number > 0
    line = table + block.image * columns
    y_valid = tl.load(line + VALID + 2 * block.level)
    x_valid = tl.load(line + VALID + 2 * block.level + 1)
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
        logits = open_map(every, levels, block, cells, AXIS, TOUCHING)
        scale = scale_of(scales, block.level)
        values, last = load_projection(projection, 1, tile)
        left, top, right, bottom = x1, y1, x2, y2
        # A loop at run time: unrolled, Triton 3.5 and 3.6 read all sides first, and spill from 33 bins on.
        for side in range(4):
            distance = load_distance(logits, side, positive, scale, values, last, tile)
            left, top, right, bottom = put_side((left, top, right, bottom), side, distance)
        cx = x.to(tl.float32) + offset
        cy = y.to(tl.float32) + offset

        # 3. Their targets. A number that no box has must not read beyond them.
        box = tl.minimum(number, tl.load(line + BOXES)) - 1
        exists = positive & (box >= 0)
        x1, y1, x2, y2 = load_corners(boxes, tl.load(line + FIRST_BOX) + box, exists, 4, 1)
        stride = pick(strides, block.level, len(strides))
        target = Corners(x1 / stride, y1 / stride, x2 / stride, y2 / stride)
        shared = overlap(Corners(cx - left, cy - top, cx + right, cy + bottom), target)
        score = tl.where(positive, iou(shared, 1e-6), 0.0)

        # 4. Their weights.
        every = (cls_0, cls_1, cls_2, cls_3, cls_4, cls_5, cls_6, cls_7)
        class_logits = open_map(every, class_levels, block, cells, 0, False)
        largest = tl.full((BLOCK,), float("-inf"), tl.float32)
        for start in range(0, classes, TILE):
            names = tl.expand_dims(start + tl.arange(0, TILE), 1)
            mask = (names < classes) & tl.expand_dims(positive, 0)
            at = tl.expand_dims(class_logits.offsets, 0) + names.to(tl.int64) * class_logits.bin_stride
            found = tl.load(class_logits.pointer + at, mask=mask, other=float("-inf")).to(tl.float32)
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
    tl.store(partial_counts + tl.program_id(0), tl.sum(positive.to(tl.float32), axis=0))
    tl.store(partial_weights + tl.program_id(0), tl.sum(weight, axis=0))


@kernel
def gfl_targets_sums_kernel(
    partial_counts, partial_weights,  # as above
    sums,  # (2,) float32
    batch: tl.int32, blocks: tl.int32,
    WIDE: tl.constexpr,
):  # fmt: skip
    number = 0.0
    counts = partial_counts
    for _ in range(batch):
        number += tl.maximum(sum_run(counts, blocks, WIDE), 1.0)
        counts += blocks
    tl.store(sums, number)
    tl.store(sums + 1, sum_run(partial_weights, batch * blocks, WIDE))


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
    """Write what every point should learn into the last six.

    Args:
        class_logits: L levels (B, C, H_l, W_l). box_logits: L levels (B, 4·R, H_l, W_l). Any strides.
        index, assigned: (B, A) int64, contiguous: box and class of every point, as `atss` gives them.
        boxes: B tensors (G_i, 4), or one (B, G, 4), float32, contiguous.
        valid: rows and columns that count, image by image, level by level; none: all.
        scales: (L,) float32 or None. projection: (R,) float32. quality: (B, A) float32 logits or None. Contiguous.
        labels: (B, A) int64. target_boxes: (B, A, 4). scores, weights, label_weights: (B, A). sums: (2,). float32.
    """
    shape = shape_of_head(box_logits)
    extent = extent_of(box_logits, shape["BLOCK"])
    sizes = [size for level in box_logits for size in level.shape[2:]]
    table = image_table(extent.batch, numbers_of(boxes, extent.batch), [0] * extent.batch, sizes, valid, index.device)
    flat = [image.reshape(-1, 4) for image in boxes]
    partials = weights.new_empty(2, extent.programs)
    with device_of(index):
        gfl_targets_kernel[(extent.programs,)](
            *(labels, target_boxes, scores, weights, label_weights, *partials, index, assigned),
            *(flat[0] if len(flat) == 1 else torch.cat(flat), table),
            *level_arguments(box_logits),
            *level_arguments(class_logits),
            *(quality, projection, scales, tuple(strides), offset),
            *(class_logits[0].shape[1], table.shape[1], extent.blocks, extent.points),
            TILE=_CLASSES,
            **shape,
        )
        options = {"WIDE": PARTIALS, **OPTIONS}
        gfl_targets_sums_kernel[(1,)](*partials, sums, extent.batch, extent.blocks, **options)


def shape_of_head(box_logits: Sequence[Tensor]) -> dict[str, Any]:
    """Constants and options of the kernels of ``gfl_targets`` and ``gfl_loss``.

    They depend on R and on the memory layout, never on a size.
    """
    tile = tile_of(box_logits, box_logits)
    cells = _CELLS[tile["AXIS"]]
    return {
        **tile,
        "BLOCK": cells // 2 if tile["AXIS"] == 0 and tile["BODY"] > 32 else cells,
        **OPTIONS,
        "maxnreg": _MOST_REGISTERS,
    }
