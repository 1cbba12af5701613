"""Rows (N, R) of any strides in Triton: a program takes BLOCK of them, which are the cells of `gflv2.kernels.bins`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from gflv2.kernels.bins import body_of, load_bins, shift_bins
from gflv2.kernels.launching import INTERPRETED, OPTIONS
from gflv2.kernels.levels import Map

_ROWS_INTERPRETED = 1024


@triton.jit
def rows_of_program(count, BLOCK: tl.constexpr):
    """The rows of this program, int64, and which of them exist."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return rows, rows < count


@triton.jit
def open_rows(pointer, rows, row_stride, bin_stride, TOUCHING: tl.constexpr, tile):
    """Where the rows lie. TOUCHING: the stride of the tile's last dimension is 1, here a constant."""
    if TOUCHING:
        if tile.axis == 0:
            row_stride = 1
        else:
            bin_stride = 1
    return Map(pointer, rows * row_stride, 0, bin_stride)


@triton.jit
def load_shifted_rows(pointer, rows, live, row_stride, bin_stride, TOUCHING: tl.constexpr, tile):
    """z − max z in float32, of the tile (−∞ in masked bins) and of the last bin."""
    logits = open_rows(pointer, rows, row_stride, bin_stride, TOUCHING, tile)
    _, body, _, tail = load_bins(logits, 0, live, 1.0, tile)
    return shift_bins(body, tail, tile)


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
    return {
        "BINS": bins,
        "BODY": body,
        "AXIS": axis,
        "TOUCHING": all(tensor.stride(axis) == 1 for tensor in (logits, *others)),
        "BLOCK": _ROWS_INTERPRETED if INTERPRETED else next(rows for most, rows in sizes[axis] if body <= most),
        **OPTIONS,
    }
