"""``atss`` in Triton: the assignment of a whole batch (arXiv 1912.02424), bit for bit as the definition has it.

 1. ``atss_table``: where the boxes of each image lie, and its valid cells, as a small table on the device. The numbers
    travel as kernel arguments: no copy from the host that could wait, and a captured graph keeps them.
 2. ``atss_ignored``, where there are ignore boxes: which points they cover.
 3. ``atss_nearest``: a program takes some boxes of one image and one level. It looks for their nearest points in a
    window of cells that grows until it is proven to hold them: the cells just beyond its edges must be farther away
    than the last candidate. It writes the candidates, nearest first.
 4. ``atss_overlap``: their IoUs. (Formed by the search itself, they would cost it the registers that it needs.)
 5. ``atss_claim``: a program takes some boxes, forms their thresholds, and claims their positive points. A claim is
    (IoU bits, inverted box) as one 64-bit integer; the largest wins: the highest IoU, then the lower box.
 6. ``atss_finish``: from claims to index, IoU and label of every point.

Comparisons hang on every bit: no launch may fuse a product with a sum (``enable_fp_fusion=False``), and a division of
float32 must be ``div_rn``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gflv2.kernels.boxes import load_corners
from gflv2.kernels.launching import INTERPRETED, device_of, kernel
from gflv2.kernels.levels import MAX_LEVELS, WIDTH, cells_of, find_block, pick, pick_column, seal, unseal

_BOXES = 64 if INTERPRETED else 16  # boxes a program of the search: 32 took 96 to 128 registers a thread
_BOXES_OF_POINTS = 64 if INTERPRETED else 8  # the same where points are no grid: 16 spilled on sm_120
_CLAIMING = 64 if INTERPRETED else 32  # boxes a program, one a thread
_POINTS = 4096 if INTERPRETED else 256  # points a program
_CELLS = 16  # cells looked at together: the first window of the usual nine candidates
_CELLS_OF_POINTS = 1024 if INTERPRETED else _CELLS  # where there is no window, but every point is looked at
_NUMBERS = 64  # of the table that one launch writes
# The register limit is explicit: without one ptxas spills a few words of the search to stay below 64 or 72.
_OPTIONS: dict[str, Any] = {"num_warps": 4, "maxnreg": 128, "enable_fp_fusion": False}

# Column of the table of levels, after WIDTH and COUNT.
FIRST_POINT = tl.constexpr(2)
# Columns of the table of images; rows and columns of each level follow.
FIRST_BOX = tl.constexpr(0)
BOXES = tl.constexpr(1)
FIRST_IGNORED = tl.constexpr(2)
IGNORED = tl.constexpr(3)
VALID = tl.constexpr(4)

_NEVER = tl.constexpr(0x7FFFFFFFFFFFFFFF)  # a candidate that is none
_LEAST = tl.constexpr(-0x8000000000000000)
_IGNORED_DISTANCE = tl.constexpr(0x5A0E1BCA)  # bits of 1e16: a point that an ignore box covers
_NUMBER_MASK = tl.constexpr(0x7FFFFFFF)


@kernel
def atss_table_kernel(table, numbers, start: tl.int64, count: tl.int32):
    """table[start + i] = numbers[i] for i below ``count``."""
    for i in tl.static_range(len(numbers)):
        tl.store(table + start + i, unseal(numbers[i]), mask=i < count)


@triton.jit
def _boxes_of(row, limits, image):
    """Number of the image's boxes that exist."""
    count = tl.load(row + BOXES)
    if limits is not None:
        count = tl.minimum(tl.maximum(tl.load(limits + image), 0), count)
    return count


@triton.jit
def _boxes_of_program(table, limits, blocks, LEVELS: tl.constexpr, BLOCK: tl.constexpr):
    """Image, level, the image's row of the table, and the boxes of a program: which exist, their rows in ``boxes``."""
    program = tl.program_id(0)
    image = program // (blocks * LEVELS)
    level = program // blocks - image * LEVELS
    row = table + image.to(tl.int64) * (VALID + 2 * LEVELS)
    number = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    return image, level, row, number < _boxes_of(row, limits, image), tl.load(row + FIRST_BOX) + number


@triton.jit
def _width_of(levels, level):
    """Cells in a row of a level, at least 1: an empty level has none."""
    return tl.maximum(pick_column(levels, level, WIDTH).to(tl.int32), 1)


@triton.jit
def _coordinate(cell, offset, stride):
    return (cell.to(tl.float32) + offset) * stride


@triton.jit
def _overlap(x, y, half, x1, y1, x2, y2):
    """Area that boxes share with the square anchor of a point. A NaN stays one."""
    keep: tl.constexpr = tl.PropagateNan.ALL
    width = tl.minimum(x + half, x2, keep) - tl.maximum(x - half, x1, keep)
    height = tl.minimum(y + half, y2, keep) - tl.maximum(y - half, y1, keep)
    return tl.where(width < 0, 0.0, width) * tl.where(height < 0, 0.0, height)


@triton.jit
def _anchor_area(x, y, half):
    return ((x + half) - (x - half)) * ((y + half) - (y - half))


@triton.jit
def _iou(x, y, half, x1, y1, x2, y2):
    common_area = _overlap(x, y, half, x1, y1, x2, y2)
    whole = _anchor_area(x, y, half) + (x2 - x1) * (y2 - y1) - common_area
    return tl.div_rn(common_area, tl.where(whole < 1e-6, 1e-6, whole))


@triton.jit
def _points_of(every, level, LEVELS: tl.constexpr, GRID: tl.constexpr):
    """The points of a level, where there is no grid."""
    points = every[0]
    if not GRID:
        points = pick(every, level, LEVELS)
    return points


@triton.jit
def _place(points, cells, live, width, offset, stride, GRID: tl.constexpr):
    """Coordinates of cells, which are flat indices in their level."""
    if GRID:
        row = cells // width
        x = _coordinate(cells - row * width, offset, stride)
        y = _coordinate(row, offset, stride)
    else:
        x = tl.load(points + cells.to(tl.int64) * 2, mask=live, other=0.0)
        y = tl.load(points + cells.to(tl.int64) * 2 + 1, mask=live, other=0.0)
    return x, y


@kernel
def atss_ignored_kernel(
    ignored,  # (B, A) uint8, out
    ignore_boxes,  # (ΣK, 4) float32
    table,  # (B, 4 + 2·L) int64
    points_0, points_1, points_2, points_3, points_4, points_5, points_6, points_7,  # (n_l, 2) float32, or None
    levels,  # (width, count, first point) of each level
    strides,  # L floats
    halves,  # L floats: half the side of an anchor
    offset: tl.float32, threshold: tl.float32,
    blocks: tl.int32,  # programs an image
    total_points: tl.int64,  # A
    GRID: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    LEVELS: tl.constexpr = len(levels)

    # 1. The points of this program.
    block = find_block(levels, blocks, BLOCK)
    cells, live, points = cells_of(block, block.number, total_points, BLOCK)
    level = block.level
    width = _width_of(levels, level)
    every = (points_0, points_1, points_2, points_3, points_4, points_5, points_6, points_7)
    half = pick(halves, level, LEVELS)
    x, y = _place(
        _points_of(every, level, LEVELS, GRID), cells, live, width, offset, pick(strides, level, LEVELS), GRID
    )

    # 2. Is one of the image's ignore boxes on it?
    row = table + block.image * (VALID + 2 * LEVELS)
    area = _anchor_area(x, y, half)
    area = tl.where(area < 1e-6, 1e-6, area)
    first = tl.load(row + FIRST_IGNORED)
    covered = tl.zeros([BLOCK], dtype=tl.int32)
    for number in range(0, tl.load(row + IGNORED).to(tl.int32)):
        at = ignore_boxes + (first + number) * 4
        shared = _overlap(x, y, half, tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3))
        covered = tl.where(tl.div_rn(shared, area) > threshold, 1, covered)

    # 3. Only valid cells count. (Read before the loop, these two numbers would be spilled.)
    rows = tl.load(row + VALID + 2 * level)
    columns = tl.load(row + VALID + 2 * level + 1)
    valid = live & (cells // width < rows) & (cells % width < columns)
    tl.store(ignored + points, tl.where(valid, covered, 0).to(tl.uint8), mask=live)


@triton.jit
def _beyond(outwards, exists):
    """dx² of the first cell outside a window: nothing farther out is nearer.

    0, which proves nothing, where the cell is not on that side of the centre; infinite where there is no cell.
    """
    return tl.where(exists, tl.where(outwards > 0, outwards * outwards, 0.0), float("inf"))


@triton.jit
def _window(centre, size, cells, offset, stride, CELLS: tl.constexpr):
    """First cell of a window along one axis, and bounds of dx²: before it, after it, and of all cells.

    The first cell may be off by a rounding: the bounds hold for any window, even one without the centre.
    """
    start = centre / stride - offset - 0.5 * (size - 2).to(tl.float32)
    start = tl.where(start > 0, start, 0.0)  # a NaN becomes 0
    first = tl.where(start < (cells - size).to(tl.float32), start, (cells - size).to(tl.float32)).to(tl.int32)
    before = _beyond(centre - _coordinate(first - 1, offset, stride), first > 0)
    after = _beyond(_coordinate(first + size, offset, stride) - centre, first < cells - size)
    least = tl.minimum(before, after)
    for start_cell in range(0, size, CELLS):
        cell = start_cell + tl.arange(0, CELLS)
        d = centre[:, None] - _coordinate(first[:, None] + cell[None, :], offset, stride)
        squares = tl.where((cell < size)[None, :], d * d, float("inf"))
        least = tl.minimum(least, tl.min(squares, axis=1))
    return first, before, after, least


@triton.jit
def _merge(best, keys, TOPK: tl.constexpr, CELLS: tl.constexpr, NEVER: tl.constexpr):
    """The TOPK smallest of both tiles (BLOCK, CELLS), in ascending order; NEVER behind them."""
    place = tl.arange(0, CELLS)[None, :]
    merged = tl.full(best.shape, NEVER, dtype=tl.int64)
    for n in range(0, TOPK):
        least = tl.min(tl.minimum(best, keys), axis=1)[:, None]
        best = tl.where(best == least, NEVER, best)
        keys = tl.where(keys == least, NEVER, keys)
        merged = tl.where(place == n, least, merged)
    return merged


@kernel
def atss_nearest_kernel(
    cells_found,  # (L, TOPK, ΣG) int32, out: flat index in its level of each candidate, nearest first
    boxes,  # (ΣG, 4) float32
    limits,  # (B,) int64, or None: boxes that exist
    ignored,  # (B, A) uint8, or None
    table,
    points_0, points_1, points_2, points_3, points_4, points_5, points_6, points_7,
    levels, strides,
    offset: tl.float32,
    blocks: tl.int32,  # programs an image and level
    total_boxes: tl.int64,  # ΣG
    total_points: tl.int64,
    GRID: tl.constexpr, TOPK: tl.constexpr,
    FIRST: tl.constexpr,  # cells a side of the first window
    CELLS: tl.constexpr,  # looked at together; a power of two, at least TOPK
    BLOCK: tl.constexpr,
):  # fmt: skip
    LEVELS: tl.constexpr = len(levels)

    # 1. The image, the level and the boxes of this program.
    image, level, row, live, box = _boxes_of_program(table, limits, blocks, LEVELS, BLOCK)
    rows = tl.load(row + VALID + 2 * level).to(tl.int32)
    columns = tl.load(row + VALID + 2 * level + 1).to(tl.int32)
    x1, y1, x2, y2 = load_corners(boxes, box, live, 4, 1)
    x = (x1 + x2) * 0.5
    y = (y1 + y2) * 0.5
    width = _width_of(levels, level)
    stride = pick(strides, level, LEVELS)
    every = (points_0, points_1, points_2, points_3, points_4, points_5, points_6, points_7)
    points = _points_of(every, level, LEVELS, GRID)
    ignored_level = ignored
    if ignored is not None:
        ignored_level = ignored + image.to(tl.int64) * total_points + pick_column(levels, level, FIRST_POINT)

    # 2. Candidates in ascending order: distance bits above, flat index below, so that no two are equal. A box with a
    #    NaN has no positive point, whatever its candidates.
    place = tl.arange(0, CELLS)[None, :]
    best = tl.full([BLOCK, CELLS], _NEVER, dtype=tl.int64)
    farthest = tl.zeros([BLOCK], dtype=tl.int64)  # the last candidate
    pending = live & (x1 == x1) & (y1 == y1) & (x2 == x2) & (y2 == y2)
    size = FIRST
    if not GRID:
        size = columns
    while tl.max(pending.to(tl.int32), axis=0) > 0:
        wide = tl.minimum(size, columns)
        high = tl.minimum(size, rows)
        if GRID:
            first_column, left, right, least_x = _window(x, wide, columns, offset, stride, CELLS)
            first_row, above, below, least_y = _window(y, high, rows, offset, stride, CELLS)
        best = tl.where(pending[:, None], _NEVER, best)
        farthest = tl.where(pending, _NEVER, farthest)
        for start in range(0, wide * high, CELLS):
            cell = start + tl.arange(0, CELLS)
            inside = cell < wide * high
            if GRID:
                down = cell // wide
                cell_row = first_row[:, None] + down[None, :]
                cell_column = first_column[:, None] + (cell - down * wide)[None, :]
                dx = x[:, None] - _coordinate(cell_column, offset, stride)
                dy = y[:, None] - _coordinate(cell_row, offset, stride)
                flat = cell_row * width + cell_column
            else:
                px = tl.load(points + cell.to(tl.int64) * 2, mask=inside, other=0.0)
                py = tl.load(points + cell.to(tl.int64) * 2 + 1, mask=inside, other=0.0)
                dx = x[:, None] - px[None, :]
                dy = y[:, None] - py[None, :]
                flat = tl.zeros([BLOCK, CELLS], dtype=tl.int32) + cell[None, :]
            taken = pending[:, None] & inside[None, :]
            distance = (dx * dx + dy * dy).to(tl.int32, bitcast=True)
            if ignored is not None:
                hidden = tl.load(ignored_level + flat, mask=taken, other=0) != 0
                distance = tl.where(hidden, _IGNORED_DISTANCE, distance)
            keys = (distance.to(tl.int64) << 32) | flat.to(tl.int64)
            keys = tl.where(taken, keys, _NEVER)
            if tl.max((tl.min(keys, axis=1) < farthest).to(tl.int32), axis=0) > 0:
                best = _merge(best, keys, TOPK, CELLS, _NEVER)
                farthest = tl.max(tl.where(place < TOPK, best, _LEAST), axis=1)
        if GRID:
            last = (farthest >> 32).to(tl.int32).to(tl.float32, bitcast=True)  # a NaN where not all were found
            outside = tl.minimum(tl.minimum(left, right) + least_y, tl.minimum(above, below) + least_x)
            if ignored is not None:
                outside = tl.minimum(outside, 1e16)  # an ignored cell may lie anywhere
            pending = pending & ((last >= outside) | (last != last))
        pending = pending & (tl.maximum(columns - wide, rows - high) + tl.zeros([BLOCK], dtype=tl.int32) > 0)
        size = tl.where(size < 2 * TOPK - 1, 2 * TOPK - 1, size * 8)

    # 3. What was found.
    wanted = live[:, None] & (place < tl.minimum(rows * columns, TOPK))
    cell = tl.where(best != _NEVER, best & 0xFFFFFFFF, 0).to(tl.int32)
    tl.store(cells_found + (level * TOPK + place) * total_boxes + box[:, None], cell, mask=wanted)


@kernel
def atss_overlap_kernel(
    ious_found,  # (L, TOPK, ΣG) float32, out
    cells_found, boxes, limits, table,
    points_0, points_1, points_2, points_3, points_4, points_5, points_6, points_7,
    levels, strides, halves,
    offset: tl.float32,
    blocks: tl.int32,  # programs an image and level
    total_boxes: tl.int64,
    GRID: tl.constexpr, TOPK: tl.constexpr,
    CELLS: tl.constexpr,  # a power of two, at least TOPK
    BLOCK: tl.constexpr,
):  # fmt: skip
    LEVELS: tl.constexpr = len(levels)

    # 1. The image, the level and the boxes of this program.
    image, level, row, live, box = _boxes_of_program(table, limits, blocks, LEVELS, BLOCK)
    x1, y1, x2, y2 = load_corners(boxes, box, live, 4, 1)

    # 2. Their candidates.
    place = tl.arange(0, CELLS)[None, :]
    wanted = live[:, None] & (place < _found_on(row, level, TOPK))
    at = (level * TOPK + place) * total_boxes + box[:, None]
    cell = tl.load(cells_found + at, mask=wanted, other=0)
    width = _width_of(levels, level)
    every = (points_0, points_1, points_2, points_3, points_4, points_5, points_6, points_7)
    points = _points_of(every, level, LEVELS, GRID)
    x, y = _place(points, cell, wanted, width, offset, pick(strides, level, LEVELS), GRID)
    half = pick(halves, level, LEVELS)
    tl.store(ious_found + at, _iou(x, y, half, x1[:, None], y1[:, None], x2[:, None], y2[:, None]), mask=wanted)


@triton.jit
def _found_on(row, level, TOPK: tl.constexpr):
    """Number of candidates that every box of the image has on a level."""
    rows = tl.load(row + VALID + 2 * level)
    return tl.minimum(rows * tl.load(row + VALID + 2 * level + 1), TOPK).to(tl.int32)


@kernel
def atss_claim_kernel(
    index,  # (B, A) int64, in and out: the claims, −1 where there is none
    cells_found, ious_found, boxes, limits, table,
    points_0, points_1, points_2, points_3, points_4, points_5, points_6, points_7,
    levels, strides,
    offset: tl.float32,
    blocks: tl.int32,  # programs an image
    total_boxes: tl.int64, total_points: tl.int64,
    GRID: tl.constexpr, TOPK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    LEVELS: tl.constexpr = len(levels)

    # 1. The image and the boxes of this program.
    program = tl.program_id(0)
    image = program // blocks
    row = table + image.to(tl.int64) * (VALID + 2 * LEVELS)
    number = (program - image * blocks) * BLOCK + tl.arange(0, BLOCK)
    live = number < _boxes_of(row, limits, image)
    box = tl.load(row + FIRST_BOX) + number

    # 2. Threshold: mean and unbiased deviation, two passes in double in the order of the candidates, rounded once.
    count = 0
    total = tl.zeros([BLOCK], dtype=tl.float64)
    for level in range(0, LEVELS):
        for n in range(0, _found_on(row, level, TOPK)):
            at = (level * TOPK + n) * total_boxes + box
            total += tl.load(ious_found + at, mask=live, other=0.0).to(tl.float64)
            count += 1
    mean = total / count.to(tl.float64)
    squares = tl.zeros([BLOCK], dtype=tl.float64)
    for level in range(0, LEVELS):
        for n in range(0, _found_on(row, level, TOPK)):
            at = (level * TOPK + n) * total_boxes + box
            deviation = tl.load(ious_found + at, mask=live, other=0.0).to(tl.float64) - mean
            squares += deviation * deviation
    threshold = (mean + tl.sqrt(squares / (count - 1).to(tl.float64))).to(tl.float32)
    live = live & (count + tl.zeros([BLOCK], dtype=tl.int32) > 1)

    # 3. Candidates that reach it and lie inside their box.
    x1, y1, x2, y2 = load_corners(boxes, box, live, 4, 1)
    every = (points_0, points_1, points_2, points_3, points_4, points_5, points_6, points_7)
    for level in range(0, LEVELS):
        width = _width_of(levels, level)
        stride = pick(strides, level, LEVELS)
        points = _points_of(every, level, LEVELS, GRID)
        claims = index + image.to(tl.int64) * total_points + pick_column(levels, level, FIRST_POINT)
        for n in range(0, _found_on(row, level, TOPK)):
            at = (level * TOPK + n) * total_boxes + box
            iou = tl.load(ious_found + at, mask=live, other=0.0)
            cell = tl.load(cells_found + at, mask=live, other=0)
            x, y = _place(points, cell, live, width, offset, stride, GRID)
            inside = (x - x1 > 0.01) & (y - y1 > 0.01) & (x2 - x > 0.01) & (y2 - y > 0.01)
            claim = (iou.to(tl.int32, bitcast=True).to(tl.int64) << 32) | (_NUMBER_MASK - number)
            tl.atomic_max(claims + cell, claim, mask=live & inside & (iou >= threshold), sem="relaxed")


@kernel
def atss_finish_kernel(
    index,  # (B, A) int64, in and out: claims become indices
    iou,  # (B, A) float32, out
    label,  # (B, A) int64, out
    labels,  # (ΣG,) int64
    limits, ignored, table,
    blocks: tl.int32,  # programs an image
    total_points: tl.int64,
    COLUMNS: tl.constexpr,  # of the table
    BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    image = program // blocks
    row = table + image.to(tl.int64) * COLUMNS
    point = (program - image * blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = point < total_points
    at = image.to(tl.int64) * total_points + point
    has_boxes = _boxes_of(row, limits, image) > 0

    claim = tl.load(index + at, mask=live, other=-1)
    positive = claim >= 0
    number = tl.where(positive, _NUMBER_MASK - (claim & _NUMBER_MASK), 0)
    negative = tl.zeros([BLOCK], dtype=tl.int64)
    if ignored is not None:
        hidden = tl.load(ignored + at, mask=live, other=0) != 0
        negative = tl.where(hidden, tl.where(has_boxes, -1, 0), 0).to(tl.int64)
    tl.store(index + at, tl.where(positive, number + 1, negative), mask=live)
    value = (claim >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    tl.store(iou + at, tl.where(positive, value, tl.where(has_boxes, -1e8, 0.0)), mask=live)
    name = tl.load(labels + tl.load(row + FIRST_BOX) + number, mask=live & positive, other=-1)
    tl.store(label + at, name, mask=live)


def atss(
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    counts: Tensor | None,
    ignore_boxes: Sequence[Tensor],
    points: Sequence[Tensor],
    shapes: Sequence[int],
    valid: Sequence[int],
    strides: Sequence[float],
    topk: int,
    anchor_scale: float,
    offset: float,
    ignore_iof_thr: float,
    index: Tensor,
    iou: Tensor,
    assigned_labels: Tensor,
) -> None:
    """Write the assignment of a batch into the last three. All tensors are contiguous.

    Args:
        boxes: B tensors (G_i, 4) float32, or one (B, G, 4), of which the first ``counts[i]`` of image i exist.
        labels: shaped alike, int64. counts: (B,) int64 or None.
        ignore_boxes: B tensors (K_i, 4) float32, or one (B, K, 4), or none.
        points: L tensors (n_l, 2) float32; none: the grid.
        shapes: height and width of each level (points: 1 and n). valid: rows and columns that count, image by image,
            level by level; none: all.
        index, iou, assigned_labels: (B, A) int64, float32, int64.
    """
    batch, total_points = index.shape
    widths = shapes[1::2]
    sizes = [height * width for height, width in zip(shapes[::2], widths, strict=True)]
    counted, ignored_counted = numbers_of(boxes, batch), numbers_of(ignore_boxes, batch)
    slots, total_boxes = max(counted), sum(counted)
    flat = torch.cat([image.reshape(-1, 4) for image in boxes])
    table = image_table(batch, counted, ignored_counted, shapes, valid, index.device)
    columns = zip(widths, sizes, accumulate([0, *sizes[:-1]]), strict=True)
    shared = {
        "levels": tuple(tuple(map(seal, level)) for level in columns),
        "strides": tuple(strides),
        "offset": offset,
        "total_points": total_points,
        "GRID": not points,
        **{f"points_{level}": points[level] if level < len(points) else None for level in range(MAX_LEVELS)},
        **_OPTIONS,
    }
    # The product in float32, as the definition forms it.
    halves = tuple((torch.tensor(strides, dtype=torch.float32) * (anchor_scale / 2)).tolist())
    index.fill_(-1)
    ignored = None
    with device_of(index):
        if sum(ignored_counted):
            ignored = index.new_empty(index.shape, dtype=torch.uint8)
            blocks = sum(-(-size // _POINTS) for size in sizes)
            ignore_flat = torch.cat([image.reshape(-1, 4) for image in ignore_boxes])
            more = {"halves": halves, "threshold": ignore_iof_thr, "blocks": blocks, "BLOCK": _POINTS}
            atss_ignored_kernel[(batch * blocks,)](ignored, ignore_flat, table, **more, **shared)
        if slots:
            found = (len(sizes), topk, total_boxes)
            cells_found = index.new_empty(found, dtype=torch.int32)
            ious_found = index.new_empty(found, dtype=torch.float32)
            searching = _BOXES_OF_POINTS if points else _BOXES
            blocks = -(-slots // searching)
            found_by = {"total_boxes": total_boxes, "TOPK": topk}
            atss_nearest_kernel[(batch * len(sizes) * blocks,)](
                *(cells_found, flat, counts, ignored, table),
                **found_by,
                blocks=blocks,
                FIRST=_first_window(topk),
                CELLS=max(_CELLS_OF_POINTS if points else _CELLS, triton.next_power_of_2(topk)),
                BLOCK=searching,
                **shared,
            )
            atss_overlap_kernel[(batch * len(sizes) * blocks,)](
                *(ious_found, cells_found, flat, counts, table),
                **found_by,
                halves=halves,
                blocks=blocks,
                CELLS=triton.next_power_of_2(topk),
                BLOCK=searching,
                **{name: value for name, value in shared.items() if name != "total_points"},
            )
            blocks = -(-slots // _CLAIMING)
            atss_claim_kernel[(batch * blocks,)](
                *(index, cells_found, ious_found, flat, counts, table),
                **found_by,
                blocks=blocks,
                BLOCK=_CLAIMING,
                **shared | {"num_warps": 1},
            )
        blocks = -(-total_points // _POINTS)
        atss_finish_kernel[(batch * blocks,)](
            *(index, iou, assigned_labels, torch.cat([image.reshape(-1) for image in labels])),
            *(counts, ignored, table, blocks, total_points),
            COLUMNS=VALID.value + 2 * len(sizes),
            BLOCK=_POINTS,
            **_OPTIONS,
        )


def _first_window(topk: int) -> int:
    """Cells a side: a cell outside is at least half of it away, and ``topk`` cells reach less than 0.62·√topk far."""
    size = 2
    while 20 * size * size < 31 * topk:
        size += 1
    return size


def numbers_of(boxes: Sequence[Tensor], batch: int) -> list[int]:
    """Number of boxes of each image, in B tensors (G, 4), in one (B, G, 4), or in none."""
    if not boxes:
        return [0] * batch
    return [boxes[0].shape[1]] * batch if boxes[0].dim() == 3 else [len(image) for image in boxes]


def image_table(
    batch: int,
    counted: Sequence[int],
    ignored: Sequence[int],
    shapes: Sequence[int],
    valid: Sequence[int],
    device: torch.device,
) -> Tensor:
    """The table of images, (B, 4 + 2·L) int64 on the device."""
    numbers: list[int] = []
    first, first_ignored = 0, 0
    for image in range(batch):
        cells = valid[image * len(shapes) : (image + 1) * len(shapes)] if valid else shapes
        numbers += (first, counted[image], first_ignored, ignored[image], *cells)
        first += counted[image]
        first_ignored += ignored[image]
    table = torch.empty(batch, 4 + len(shapes), dtype=torch.int64, device=device)
    with device_of(table):
        for start in range(0, len(numbers), _NUMBERS):
            part = numbers[start : start + _NUMBERS]
            padded = tuple(map(seal, part + [0] * (_NUMBERS - len(part))))
            atss_table_kernel[(1,)](table, padded, start, len(part), **_OPTIONS)
    return table
