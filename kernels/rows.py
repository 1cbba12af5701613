"""Rows of box logits in Triton: the bins of one side of a block of cells as a tile, and its softmax.

R is n + 1 with n nearly always a power of two. A tile of the next power of two would be almost half empty (32 for
R = 17), so the last bin is kept beside a tile of n bins: BODY = n < BINS. For any other R the tile is the next power of
two, masked, and there is nothing beside it. AXIS is the tile's dimension of the bins: 0 with the cells last (NCHW), 1
with the bins last.

The last part is for operations on rows (N, R) of any strides, whose cells are the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from gflv2.kernels.common import INTERPRETED

_ROWS_INTERPRETED = 1024  # the interpreter pays for each operation of a program, not for each element


@triton.jit
def load_bins(pointer, offsets, live, bin_stride, scale, BINS: tl.constexpr, BODY: tl.constexpr, AXIS: tl.constexpr):
    """Logits of one side in float32, raw and scaled: a tile of BODY bins by cells, and the last bin beside it."""
    bins = tl.expand_dims(tl.arange(0, BODY), 1 - AXIS)
    cells = tl.expand_dims(offsets, AXIS)
    exists = bins < BINS
    mask = exists & tl.expand_dims(live, AXIS)
    body = tl.load(pointer + (cells + bins * bin_stride), mask=mask, other=0.0).to(tl.float32)
    scaled = tl.where(exists, body * scale, float("-inf"))  # masked after the product: a scale may be 0 or negative
    tail = 0.0
    if BODY < BINS:
        tail = tl.load(pointer + (offsets + BODY * bin_stride), mask=live, other=0.0).to(tl.float32)
    return body, scaled, tail, tail * scale


@triton.jit
def softmax_bins(body, tail, BINS: tl.constexpr, BODY: tl.constexpr, AXIS: tl.constexpr):
    """exp(z − max z) of each bin, and one over their sum."""
    peak = tl.max(body, axis=AXIS)
    if BODY < BINS:
        peak = tl.maximum(peak, tail)
    body = tl.exp(body - tl.expand_dims(peak, AXIS))
    total = tl.sum(body, axis=AXIS)
    if BODY < BINS:
        tail = tl.exp(tail - peak)
        total += tail
    return body, tail, 1.0 / total


@triton.jit
def load_projection(projection, step, BINS: tl.constexpr, BODY: tl.constexpr, AXIS: tl.constexpr):
    """The projection of the tile's bins, and that of the last bin."""
    bins = tl.arange(0, BODY)
    body = tl.load(projection + bins * step, mask=bins < BINS, other=0.0)
    return tl.expand_dims(body, 1 - AXIS), tl.load(projection + (BINS - 1) * step)


@triton.jit
def expectation(body, tail, projection, last, BINS: tl.constexpr, BODY: tl.constexpr, AXIS: tl.constexpr):
    """Σ_b body_b · projection_b over the tile and the last bin."""
    value = tl.sum(body * projection, axis=AXIS)
    if BODY < BINS:
        value += tail * last
    return value


@triton.jit
def hat(bins, target):
    """The share of bins in a target; a NaN stays one."""
    share = 1.0 - tl.abs(bins - target)
    return tl.where(share < 0.0, 0.0, share)


def body_of(bins: int) -> int:
    """Bins of the tile: n for R = n + 1 with n a power of two, else the next power of two."""
    return bins - 1 if bins > 2 and (bins - 1) & (bins - 2) == 0 else triton.next_power_of_2(bins)


# --- rows (N, R) ---


@triton.jit
def row_offsets(rows, row_stride, bin_stride, AXIS: tl.constexpr, TOUCHING: tl.constexpr):
    """Offsets of the rows' first bins, and the step to the next bin; of the inner one a constant where it is 1."""
    if TOUCHING:
        if AXIS == 0:
            row_stride = 1
        else:
            bin_stride = 1
    return rows * row_stride, bin_stride


@triton.jit
def load_shifted_rows(
    pointer, rows, live, row_stride, bin_stride,
    BINS: tl.constexpr, BODY: tl.constexpr, AXIS: tl.constexpr, TOUCHING: tl.constexpr,
):  # fmt: skip
    """z − max z in float32, of the tile (−∞ in the bins that there are not) and of the last bin."""
    offsets, step = row_offsets(rows, row_stride, bin_stride, AXIS, TOUCHING)
    _, body, _, tail = load_bins(pointer, offsets, live, step, 1.0, BINS, BODY, AXIS)
    peak = tl.max(body, axis=AXIS)
    if BODY < BINS:
        peak = tl.maximum(peak, tail)
    return body - tl.expand_dims(peak, AXIS), tail - peak


@triton.jit
def store_rows(
    pointer, body, tail, rows, live, row_stride, bin_stride,
    BINS: tl.constexpr, BODY: tl.constexpr, AXIS: tl.constexpr, TOUCHING: tl.constexpr,
):  # fmt: skip
    """The way back, rounded to the dtype of the memory."""
    offsets, step = row_offsets(rows, row_stride, bin_stride, AXIS, TOUCHING)
    bins = tl.expand_dims(tl.arange(0, BODY), 1 - AXIS)
    mask = (bins < BINS) & tl.expand_dims(live, AXIS)
    tl.store(pointer + (tl.expand_dims(offsets, AXIS) + bins * step), body.to(pointer.dtype.element_ty), mask=mask)
    if BODY < BINS:
        tl.store(pointer + (offsets + BODY * step), tail.to(pointer.dtype.element_ty), mask=live)


def shape_of_rows(sizes: Sequence[Sequence[tuple[int, int]]], logits: Tensor, *others: Tensor) -> dict[str, Any]:
    """Constants and options of a kernel over rows: they depend on R and on the memory layout, never on a size.

    Args:
        sizes: for AXIS 0 and 1, pairs in ascending order: the most bins of a tile, and the rows of a program then.
        logits: (N, R); the order of its dimensions in memory is the tile's.
        others: what else the kernel reads or writes in that shape.
    """
    bins = logits.shape[1]
    body = body_of(bins)
    axis = int(logits.stride(1) < logits.stride(0))
    rows = next(rows for most, rows in sizes[axis] if body <= most)
    return {
        "BINS": bins,
        "BODY": body,
        "AXIS": axis,
        "TOUCHING": all(tensor.stride(axis) == 1 for tensor in (logits, *others)),
        "BLOCK": _ROWS_INTERPRETED if INTERPRETED else rows,
        "num_warps": 4,
        "enable_fp_fusion": True,  # said aloud: Triton's default for it differs between versions
    }
