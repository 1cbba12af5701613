"""``decode`` in Triton: the inference head of a whole batch up to NMS (arXiv 2011.12885, equation 1).

 1. ``decode_keys``: one pass over the class logits. The key of a point is J of its largest class logit; its sign says
    that some logit is not a number. Such a point comes before all others, as it does in a sort by torch.
 2. ``decode_select``, for levels of more than topk points: a program takes a level of an image. A radix selection finds
    the key of the last point that is kept; of the points that share it, the lower ones are. It writes the kept ones in
    the order of their indices.
 3. ``decode_rank``: which row each kept point gets: the number of kept points that come before it, counted. (A thousand
    points make half a million comparisons, which many programs share: less work than the steps of a sort, each of which
    would wait for the one before.)
 4. ``decode_scores`` and ``decode_boxes``: the rows of the result.

Points are ordered by (key, index). No two points share both, so the order of the threads has no effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gflv2.kernels.bins import Tile, bins_of, load_projection, load_softmax, sum_bins, tile_of, wide
from gflv2.kernels.launching import FUSED, INTERPRETED, OPTIONS, device_of, kernel
from gflv2.kernels.levels import (
    COUNT,
    bins_are_last,
    cells_of,
    extent_of,
    find_block,
    has_pairs,
    level_arguments,
    neighbours_touch,
    open_map,
    open_pairs,
    pick,
    pick_column,
    place_of,
    scale_of,
    seal,
)

_CELLS = (1024, 1024) if INTERPRETED else (128, 64)  # points a program, by classes last
_CLASSES = 128 if INTERPRETED else 16  # classes looked at together: 80 are five times 16
_ROWS = 512 if INTERPRETED else 32  # rows a program
_KEYS = 4096 if INTERPRETED else 2048  # keys that the selection looks at together
_KEPT = 1024 if INTERPRETED else 64  # kept points whose rows a program counts, and those that it compares at a time
_SELECT_OPTIONS: dict[str, Any] = {"num_warps": 8, **FUSED}

# Columns of the table of rows, after WIDTH (of the level) and COUNT (of its rows).
FIRST_POINT = tl.constexpr(2)
POINTS = tl.constexpr(3)

_DIGITS = tl.constexpr(256)  # values of a digit of the radix selection
_NOT_A_NUMBER = tl.constexpr(0x7F800000)  # rank of a key with a sign: above all others


@triton.jit
def _sigmoid(x):
    """1/(1 + e^−x) without overflow, to full relative precision on both sides."""
    e = tl.exp(tl.where(x < 0.0, x, -x))
    s = 1.0 / (1.0 + e)
    return tl.where(x < 0.0, e * s, s)


@triton.jit
def _quality(quality, points, live):
    """σ(r) of points, 1 without r."""
    factor = tl.zeros(points.shape, tl.float32) + 1.0
    if quality is not None:
        factor = _sigmoid(tl.load(quality + points, mask=live, other=0.0))
    return factor


@triton.jit
def _ranks(keys, points, live):
    """Integers in the order of the keys of points; −1 where there is none."""
    bits = tl.load(keys + points, mask=live, other=0.0).to(tl.int32, bitcast=True)
    return tl.where(live, tl.where(bits < 0, _NOT_A_NUMBER, bits), -1)


@triton.jit
def _largest(logits, live, classes, AXIS: tl.constexpr, CLASSES: tl.constexpr):
    """Of each cell the largest logit that is a number, and 1 where another is none."""
    channel = tl.arange(0, CLASSES)
    at = logits.pointer + (tl.expand_dims(logits.offsets, AXIS) + tl.expand_dims(channel, 1 - AXIS) * logits.bin_stride)
    best = tl.expand_dims(tl.where(live, float("-inf"), float("-inf")), AXIS)
    best = best + tl.expand_dims(tl.zeros([CLASSES], tl.float32), 1 - AXIS)
    odd = tl.zeros(best.shape, tl.int32)
    for start in range(0, classes, CLASSES):
        mask = tl.expand_dims(live, AXIS) & tl.expand_dims(start + channel < classes, 1 - AXIS)
        logit = tl.load(at + start * logits.bin_stride, mask=mask, other=float("-inf")).to(tl.float32)
        number = logit == logit
        best = tl.maximum(best, tl.where(number, logit, float("-inf")))
        odd = tl.where(number, odd, 1)
    return tl.max(best, axis=AXIS), tl.max(odd, axis=AXIS)


@kernel
def decode_keys_kernel(
    keys,  # (B, A) float32, out
    logits_0, logits_1, logits_2, logits_3, logits_4, logits_5, logits_6, logits_7,  # (B, C, H_l, W_l)
    levels,  # table of the levels, see levels.level_arguments: the "bins" are the classes
    quality,  # (B, A) float32, or None
    classes: tl.int32,
    blocks: tl.int32,  # programs an image
    total_points: tl.int64,  # A
    AXIS: tl.constexpr,  # of the classes in the tile: 0 with the cells last (NCHW), 1 with the classes last
    TOUCHING: tl.constexpr,  # neighbours in the tile's last dimension are neighbours in memory
    CLASSES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # 1. The cells of this program.
    block = find_block(levels, blocks, BLOCK)
    cells, live, points = cells_of(block, block.number, total_points, BLOCK)
    every = (logits_0, logits_1, logits_2, logits_3, logits_4, logits_5, logits_6, logits_7)

    # 2. The largest logit that is a number, and whether there are others. Neighbouring cells are read in pairs where
    #    memory allows it.
    if has_pairs(every, levels, (None,), None, block, AXIS, TOUCHING):
        pairs, exist = open_pairs(every, levels, block, cells)
        largest, odd = _largest(pairs, exist, classes, AXIS, CLASSES)
    else:
        logits = open_map(every, levels, block, cells, AXIS, TOUCHING)
        largest, odd = _largest(logits, live, classes, AXIS, CLASSES)

    # 3. The key.
    key = _sigmoid(largest) * _quality(quality, points, live)
    signed = (odd > 0) | (key != key)
    key = tl.where(key == key, key, 0.0)
    tl.store(keys + points, tl.where(signed, -key, key), mask=live)


@kernel
def decode_select_kernel(
    kept,  # (B, N) int64, out: rank above, inverted index below
    keys,  # (B, A) float32
    rows,  # (width, rows, first point, points) of each level
    total_points: tl.int64,
    total_rows: tl.int64,  # N
    BLOCK: tl.constexpr,
):
    LEVELS: tl.constexpr = len(rows)
    image = (tl.program_id(0) // LEVELS).to(tl.int64)
    level = tl.program_id(0) % LEVELS
    count = pick_column(rows, level, POINTS).to(tl.int32)
    wanted = pick_column(rows, level, COUNT).to(tl.int32)
    first_row = tl.zeros([], tl.int64)
    for candidate in tl.static_range(LEVELS):
        first_row += tl.where(candidate < level, pick_column(rows, candidate, COUNT), 0)
    level_keys = keys + image * total_points + pick_column(rows, level, FIRST_POINT)
    lanes = tl.arange(0, BLOCK)
    digit = tl.arange(0, _DIGITS)

    if wanted < count:
        # 1. The rank of the last point that is kept, from its highest digit to its lowest; ``left`` of that rank are.
        last = tl.zeros([], tl.int32)
        left = wanted
        for step in tl.static_range(4):
            place = 24 - 8 * step
            histogram = tl.zeros([_DIGITS], tl.int32)
            for start in range(0, count, BLOCK):
                rank = _ranks(level_keys, start + lanes, start + lanes < count)
                counted = (rank >= 0) & ((rank >> place >> 8) == (last >> place >> 8))
                histogram += tl.histogram((rank >> place) & 255, _DIGITS, mask=counted)
            # Points with this value of the digit or a higher one.
            from_here = tl.cumsum(histogram, axis=0, reverse=True)
            value = tl.max(tl.where(from_here >= left, digit, 0), axis=0)
            left -= tl.sum(tl.where(digit > value, histogram, 0), axis=0)
            last |= value << place

        # 2. Those above it, and the first of those at it.
        at_last = tl.zeros([], tl.int32)
        taken = tl.zeros([], tl.int32)
        for start in range(0, count, BLOCK):
            index = start + lanes
            rank = _ranks(level_keys, index, index < count)
            equal = (rank == last).to(tl.int32)
            take = (rank > last) | ((rank == last) & (at_last + tl.cumsum(equal, axis=0) <= left))
            place_of = taken + tl.cumsum(take.to(tl.int32), axis=0) - 1
            word = (rank.to(tl.int64) << 32) | (_inverted(index)).to(tl.int64)
            tl.store(kept + image * total_rows + first_row + place_of, word, mask=take)
            at_last += tl.sum(equal, axis=0)
            taken += tl.sum(take.to(tl.int32), axis=0)


@triton.jit
def _inverted(index):
    """Of equal ranks the lower index is the larger word; its own inverse."""
    return 0x7FFFFFFF - index


@triton.jit
def _open_points(points, every, levels, rows, blocks, total_rows, BLOCK: tl.constexpr):
    """The rows of this program: their block, which exist, where in the result, their points, and the points' logits."""
    block = find_block(rows, blocks, BLOCK)
    _, live, row = cells_of(block, block.number, total_rows, BLOCK)
    point = tl.load(points + row, mask=live, other=0)
    cells = tl.where(live, point - pick_column(rows, block.level, FIRST_POINT), 0).to(tl.int32)
    return block, live, row, point, cells, open_map(every, levels, block, cells, 0, False)


@kernel
def decode_rank_kernel(
    points,  # (B, N) int64, out
    kept,  # (B, N) int64
    rows,
    blocks: tl.int32,
    total_rows: tl.int64,
    BLOCK: tl.constexpr,
):
    block = find_block(rows, blocks, BLOCK)
    local, live, row = cells_of(block, block.number, total_rows, BLOCK)
    count = block.size.to(tl.int32)
    first_point = pick_column(rows, block.level, FIRST_POINT)
    first_row = block.image * total_rows + block.first_point
    if pick_column(rows, block.level, POINTS) > count:
        words = kept + first_row
        word = tl.load(kept + row, mask=live, other=0)
        before = tl.zeros([BLOCK], tl.int32)
        for start in range(0, count, BLOCK):
            other = start + tl.arange(0, BLOCK)
            others = tl.load(words + other, mask=other < count, other=-1)
            before += tl.sum((others[None, :] > word[:, None]).to(tl.int32), axis=1)
        tl.store(points + first_row + before, first_point + _inverted(word & 0x7FFFFFFF), mask=live)
    else:
        tl.store(points + row, first_point + local, mask=live)


@kernel
def decode_scores_kernel(
    scores,  # (B, N, C) float32, out
    counts,  # (B,) int64, out; 0 before
    points,  # (B, N) int64
    keys,  # (B, A) float32
    logits_0, logits_1, logits_2, logits_3, logits_4, logits_5, logits_6, logits_7,
    levels,
    rows,
    quality,
    threshold: tl.float32, classes: tl.int32, blocks: tl.int32, total_points: tl.int64, total_rows: tl.int64,
    CLASSES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # 1. The rows of this program, and their points.
    every = (logits_0, logits_1, logits_2, logits_3, logits_4, logits_5, logits_6, logits_7)
    block, live, row, point, _, logits = _open_points(points, every, levels, rows, blocks, total_rows, BLOCK)
    at = logits.pointer + logits.offsets
    key = tl.abs(tl.load(keys + block.image * total_points + point, mask=live, other=0.0))
    factor = _quality(quality, block.image * total_points + point, live)

    # 2. How many have a score above the threshold? The others' logits are not read again.
    above = live & (key > threshold)
    tl.atomic_add(counts + block.image, tl.sum(above.to(tl.int64), axis=0))

    # 3. Their scores: none exceeds the key, to the last bit.
    for start in range(0, classes, CLASSES):
        channel = start + tl.arange(0, CLASSES)
        exists = (channel < classes)[None, :]
        logit = tl.load(at[:, None] + channel[None, :] * logits.bin_stride, mask=above[:, None] & exists, other=0.0)
        joint = _sigmoid(logit.to(tl.float32)) * factor[:, None]
        joint = tl.where(joint > key[:, None], key[:, None], joint)
        kept_score = tl.where(above[:, None] & (joint > threshold), joint, 0.0)  # a NaN is not above it
        to = scores + row[:, None] * classes + channel[None, :]
        tl.store(to, kept_score, mask=live[:, None] & exists)


@triton.jit
def _clipped(side, limit):
    """Within [0, limit]; a NaN stays one."""
    at_least = tl.where(side < 0.0, 0.0, side)
    return tl.where(at_least > limit, limit, at_least)


@kernel
def decode_boxes_kernel(
    boxes,  # (B, N, 4) float32, out
    distributions,  # (B, N, 4, R) float32, out, or None
    points,  # (B, N) int64
    logits_0, logits_1, logits_2, logits_3, logits_4, logits_5, logits_6, logits_7,  # (B, 4·R, H_l, W_l)
    levels,
    rows,
    projection,  # (R,) float32
    scales,  # (L,) float32, or None
    image_sizes,  # (B, 2) float32, height and width, or None
    scale_factors,  # (B, 2) float32, of width and height, or None
    strides,  # L floats
    offset: tl.float32, blocks: tl.int32, total_rows: tl.int64,
    BINS: tl.constexpr, BODY: tl.constexpr,
    AXIS: tl.constexpr,  # of the bins in the tile
    BLOCK: tl.constexpr,
):  # fmt: skip
    tile: tl.constexpr = Tile(BINS, BODY, AXIS)

    # 1. The rows of this program, and their points.
    every = (logits_0, logits_1, logits_2, logits_3, logits_4, logits_5, logits_6, logits_7)
    block, live, row, point, cells, logits = _open_points(points, every, levels, rows, blocks, total_rows, BLOCK)
    y, x = place_of(levels, block.level, cells)
    scale = scale_of(scales, block.level)
    values, last = load_projection(projection, 1, tile)
    stride = pick(strides, block.level, len(strides))

    # A loop at run time: unrolled, Triton 3.6 reads all sides first, and spills from 65 bins on.
    for side in range(4):
        # 2. Softmax and expectation.
        body, tail, norm, raw, raw_tail = load_softmax(logits, side, live, scale, tile)
        distance = sum_bins(body * values, tail * last, tile) * norm * stride

        # 3. The side of the box.
        cell = tl.where(side % 2 == 0, x, y)
        place = (cell + offset) * stride
        place = tl.where(side < 2, place - distance, place + distance)
        if image_sizes is not None:
            place = _clipped(place, tl.load(image_sizes + block.image * 2 + (1 - side % 2)))
        if scale_factors is not None:
            place = place / tl.load(scale_factors + block.image * 2 + side % 2)
        tl.store(boxes + row * 4 + side, place, mask=live)

        # 4. The distribution, where it is wanted.
        if distributions is not None:
            to = distributions + (row * 4 + side) * BINS
            mask = (bins_of(tile) < BINS) & wide(live, tile)
            tl.store(wide(to, tile) + bins_of(tile), body * wide(norm, tile), mask=mask)
            if BODY < BINS:
                tl.store(to + BODY, tail * norm, mask=live)


def decode(
    class_logits: Sequence[Tensor],
    box_logits: Sequence[Tensor],
    quality: Tensor | None,
    projection: Tensor,
    scales: Tensor | None,
    image_sizes: Tensor | None,
    scale_factors: Tensor | None,
    strides: Sequence[float],
    pre_topk: int,
    score_thr: float,
    offset: float,
    boxes: Tensor,
    scores: Tensor,
    points: Tensor,
    counts: Tensor,
    distributions: Tensor | None,
) -> None:
    """The candidates of a batch, written to the last five. Everything but the logits is contiguous.

    Args:
        class_logits, box_logits: 1 to 8 levels (B, C, H, W) and (B, 4·R, H, W); any strides.
        quality: (B, A); None: J = sigmoid(c). projection: (R,). scales: (L,); None: 1. float32.
        image_sizes, scale_factors: (B, 2) float32, or None.
        strides: L numbers in pixels. pre_topk, score_thr, offset: as `gflv2.ops.decode`.
        boxes, scores, distributions: (B, N, 4), (B, N, C), (B, N, 4, R) or None, float32.
        points, counts: (B, N) and (B,) int64. N > 0.
    """
    batch, total_rows = points.shape
    classes = class_logits[0].shape[1]
    classes_last = bins_are_last(class_logits)
    cells = _CELLS[classes_last]
    extent = extent_of(class_logits, cells)
    class_arguments = level_arguments(class_logits)
    sizes = [level.shape[2] * level.shape[3] for level in class_logits]
    counts_of = [min(size, pre_topk) for size in sizes]
    starts = [sum(sizes[:level]) for level in range(len(sizes))]
    rows = tuple(
        tuple(map(seal, (level.shape[3], count, start, size)))
        for level, count, start, size in zip(class_logits, counts_of, starts, sizes, strict=True)
    )
    keys = boxes.new_empty(batch, extent.points)
    row_blocks = sum(-(-count // _ROWS) for count in counts_of)
    kept_blocks = sum(-(-count // _KEPT) for count in counts_of)
    kept = points  # where nothing is selected, nothing is kept
    with device_of(boxes):
        counts.zero_()
        decode_keys_kernel[(extent.programs,)](
            keys,
            *class_arguments,
            *(quality, classes, extent.blocks, extent.points),
            AXIS=int(classes_last),
            TOUCHING=neighbours_touch(class_logits, classes_last),
            CLASSES=_CLASSES,
            BLOCK=cells,
            **OPTIONS,
        )
        if counts_of != sizes:
            kept = torch.empty_like(points)
            decode_select_kernel[(batch * len(sizes),)](
                kept, keys, rows, extent.points, total_rows, BLOCK=_KEYS, **_SELECT_OPTIONS
            )
        decode_rank_kernel[(kept_blocks * batch,)](points, kept, rows, kept_blocks, total_rows, BLOCK=_KEPT, **OPTIONS)
        decode_scores_kernel[(row_blocks * batch,)](
            *(scores, counts, points, keys),
            *class_arguments,
            *(rows, quality, score_thr, classes, row_blocks, extent.points, total_rows),
            CLASSES=_CLASSES,
            BLOCK=_ROWS,
            **OPTIONS,
        )
        decode_boxes_kernel[(row_blocks * batch,)](
            *(boxes, distributions, points),
            *level_arguments(box_logits),
            *(rows, projection, scales, image_sizes, scale_factors, tuple(strides), offset, row_blocks, total_rows),
            **tile_of(box_logits),
            BLOCK=_ROWS,
            **OPTIONS,
        )
