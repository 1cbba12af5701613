"""Box logits in Triton: the bins of one side of a block of cells as a tile, and its softmax.

R is n + 1 with n nearly always a power of two. A tile of the next power of two would be almost half empty (32 for
R = 17), so the last bin is kept beside a tile of n bins: body = n < bins. For any other R the tile is the next power of
two, masked, and there is nothing beside it; what stands for the last bin then is not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from gflv2.kernels.levels import bins_are_last, neighbours_touch


class Tile(NamedTuple):
    """The constants of a tile."""

    bins: Any  # R
    body: Any  # bins of the tile
    axis: Any  # of the bins: 0 with the cells last (NCHW), 1 with the bins last


@triton.jit
def wide(cells, tile):
    """One value a cell, as a tile has it."""
    return tl.expand_dims(cells, tile.axis)


@triton.jit
def bins_of(tile):
    """Numbers of the tile's bins."""
    return tl.expand_dims(tl.arange(0, tile.body), 1 - tile.axis)


@triton.jit
def load_bins(logits, side, live, scale, tile):
    """Logits of one side in float32, raw and scaled: a tile of bins by cells, and the last bin beside it."""
    offsets = logits.offsets + side * logits.side_stride
    bins = bins_of(tile)
    exists = bins < tile.bins
    mask = exists & wide(live, tile)
    body = tl.load(logits.pointer + (wide(offsets, tile) + bins * logits.bin_stride), mask=mask, other=0.0)
    body = body.to(tl.float32)
    scaled = tl.where(exists, body * scale, float("-inf"))  # masked after the product: a scale may be 0 or negative
    tail = 0.0
    if tile.body < tile.bins:
        tail = tl.load(logits.pointer + (offsets + tile.body * logits.bin_stride), mask=live, other=0.0).to(tl.float32)
    return body, scaled, tail, tail * scale


@triton.jit
def store_bins(to, side, body, tail, live, tile):
    """The way back, rounded to the dtype of the memory."""
    offsets = to.offsets + side * to.side_stride
    bins = bins_of(tile)
    mask = (bins < tile.bins) & wide(live, tile)
    dtype = to.pointer.dtype.element_ty
    tl.store(to.pointer + (wide(offsets, tile) + bins * to.bin_stride), body.to(dtype), mask=mask)
    if tile.body < tile.bins:
        tl.store(to.pointer + (offsets + tile.body * to.bin_stride), tail.to(dtype), mask=live)


@triton.jit
def sum_bins(body, tail, tile):
    """Sum over the tile's bins and the last one."""
    total = tl.sum(body, axis=tile.axis)
    if tile.body < tile.bins:
        total += tail
    return total


@triton.jit
def shift_bins(body, tail, tile):
    """z − max z."""
    peak = tl.max(body, axis=tile.axis)
    if tile.body < tile.bins:
        peak = tl.maximum(peak, tail)
    return body - wide(peak, tile), tail - peak


@triton.jit
def load_softmax(logits, side, live, scale, tile):
    """exp(z − max z) of the bins of one side, one over their sum, and the raw logits."""
    raw, body, raw_tail, tail = load_bins(logits, side, live, scale, tile)
    body, tail = shift_bins(body, tail, tile)
    body, tail = tl.exp(body), tl.exp(tail)
    return body, tail, 1.0 / sum_bins(body, tail, tile), raw, raw_tail


@triton.jit
def load_projection(projection, step, tile):
    """The projection of the tile's bins, and that of the last bin."""
    bins = tl.arange(0, tile.body)
    body = tl.load(projection + bins * step, mask=bins < tile.bins, other=0.0)
    return tl.expand_dims(body, 1 - tile.axis), tl.load(projection + (tile.bins - 1) * step)


@triton.jit
def load_distance(logits, side, live, scale, values, last, tile):
    """The distance of one side: Σ_b P_b · projection_b, with both parts of the projection.

    (A product with one over the sum took 40 registers more in `gfl_targets`.)
    """
    _, body, _, tail = load_bins(logits, side, live, scale, tile)
    body, tail = shift_bins(body, tail, tile)
    body, tail = tl.exp(body), tl.exp(tail)
    return sum_bins(body * values, tail * last, tile) / sum_bins(body, tail, tile)


@triton.jit
def put_side(sides, side, value):
    """Four sides with one of them replaced, whose number is known at run time only."""
    left, top, right, bottom = sides
    return (
        tl.where(side == 0, value, left),
        tl.where(side == 1, value, top),
        tl.where(side == 2, value, right),
        tl.where(side == 3, value, bottom),
    )


@triton.jit
def side_of(sides, side):
    """One of four sides, whose number is known at run time only."""
    left, top, right, bottom = sides
    return tl.where(side == 0, left, tl.where(side == 1, top, tl.where(side == 2, right, bottom)))


@triton.jit
def hat(target, tile):
    """The shares of a target in the tile's bins, and in the last one; a NaN stays one."""
    body = 1.0 - tl.abs(bins_of(tile) - wide(target, tile))
    tail = 1.0 - tl.abs(tile.bins - 1 - target)
    return tl.where(body < 0.0, 0.0, body), tl.where(tail < 0.0, 0.0, tail)


@triton.jit
def chosen_logit(body, tail, target, tile):
    """Σ_b hat_b · z_b. Not a product alone: a logit of −∞ outside the two bins must not spoil the loss."""
    share, tail_share = hat(target, tile)
    body = tl.where(share == 0.0, 0.0, share * body)
    return sum_bins(body, tl.where(tail_share == 0.0, 0.0, tail_share * tail), tile)


def body_of(bins: int) -> int:
    """Bins of the tile: n for R = n + 1 with n a power of two, else the next power of two."""
    return bins - 1 if bins > 2 and (bins - 1) & (bins - 2) == 0 else triton.next_power_of_2(bins)


def tile_of(logits: Sequence[Tensor], touched: Sequence[Tensor] | None = None) -> dict[str, Any]:
    """Constants of a kernel over levels or rows: they depend on R and on the memory layout, never on a size.

    Args:
        touched: every tensor that is read or written in tiles of neighbouring cells. None: cells lie scattered, and
            there is no TOUCHING.
    """
    last = bins_are_last(logits)
    bins = logits[0].shape[2] if logits[0].dim() == 3 else logits[0].shape[1] // 4
    tile = {"BINS": bins, "BODY": body_of(bins), "AXIS": int(last)}
    return tile if touched is None else {**tile, "TOUCHING": neighbours_touch(touched, last)}
