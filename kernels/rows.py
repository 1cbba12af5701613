"""Rows of box logits in Triton: the bins of one side of a block of cells as a tile, and its softmax.

R is n + 1 with n nearly always a power of two. A tile of the next power of two would be almost half empty (32 for
R = 17), so the last bin is kept beside a tile of n bins: BODY = n < BINS. For any other R the tile is the next power of
two, masked, and there is nothing beside it. AXIS is the tile's dimension of the bins: 0 with the cells last (NCHW), 1
with the bins last.
"""

from __future__ import annotations

import triton
import triton.language as tl


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
