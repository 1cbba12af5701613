"""What the kernels share: the table of levels that travels with a launch, and how a program finds its place in it.

Every kernel covers all levels of the whole batch in one launch. Programs are numbered image-major; within an image each
level has ceil(count / BLOCK) of them, one after the other, so that no block spans two levels.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

# Triton decides this when a kernel is decorated, that is at this import.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
MAX_LEVELS = 8

# Columns of the table: sizes in cells, strides in elements.
WIDTH = tl.constexpr(0)
COUNT = tl.constexpr(1)
IMAGE_STRIDE = tl.constexpr(2)
SIDE_STRIDE = tl.constexpr(3)
BIN_STRIDE = tl.constexpr(4)
ROW_STRIDE = tl.constexpr(5)
COLUMN_STRIDE = tl.constexpr(6)

# Triton ignores `do_not_specialize` inside a tuple: a 1 there becomes a constant and a multiple of 16 an attribute, so
# that almost every image size would compile the kernel anew. Sealed integers are odd and never 1, and wider than 32
# bits, so that their type does not change with their size either.
SEAL = tl.constexpr((1 << 40) + 1)


def seal(value: int) -> int:
    """An integer as it travels in a tuple of kernel arguments; a kernel reads it as ``(value - SEAL) >> 1``."""
    return 2 * value + SEAL.value


def level_table(tensors: Sequence[Tensor]) -> tuple[tuple[int, ...], ...]:
    """The kernel's table for levels (B, 4·R, H_l, W_l), or for [rows (M, 4, R)], which are one level of width M."""
    return tuple(tuple(seal(value) for value in _describe(tensor)) for tensor in tensors)


def _describe(tensor: Tensor) -> tuple[int, ...]:
    """(width, count, image, side, bin, row, column stride) of one level."""
    if tensor.dim() == 3:
        rows = tensor.shape[0]
        row, side, bin_ = tensor.stride()
        return rows, rows, 0, side, bin_, 0, row
    _, channels, height, width = tensor.shape
    image, channel, row, column = tensor.stride()
    return width, height * width, image, (channels // 4) * channel, channel, row, column


def pointers(tensors: Sequence[Tensor]) -> list[Tensor | None]:
    """The levels as ``MAX_LEVELS`` kernel arguments.

    They are arguments of their own, not a tuple: only so can Triton be kept from specialising on their alignment.
    """
    return [*tensors, *[None] * (MAX_LEVELS - len(tensors))]


def blocks_of(tensors: Sequence[Tensor], block: int) -> int:
    """Programs that one image needs."""
    return sum(-(-_describe(tensor)[1] // block) for tensor in tensors)


def bins_are_last(tensors: Sequence[Tensor]) -> bool:
    """Whether neighbouring bins lie closer in memory than neighbouring cells do, judged by the largest level."""
    width, _, _, _, bin_, row, column = max((_describe(tensor) for tensor in tensors), key=lambda level: level[1])
    # In a level one cell wide the next cell is in the next row; rows have no second dimension (row stride 0).
    return bin_ < (row if width == 1 and row else column)


def neighbours_touch(tensors: Sequence[Tensor], bins_last: bool) -> bool:
    """Whether the tile's last dimension, bins or cells, is without gaps in every level: its stride is a constant 1.

    Only from a constant can Triton tell which dimension to spread over the threads of a warp: with strides that it does
    not know, versions differ in what they choose.
    """
    return all(_touch(*_describe(tensor), bins_last) for tensor in tensors)


def _touch(width: int, count: int, _: int, __: int, bin_: int, row: int, column: int, bins_last: bool) -> bool:
    if bins_last:
        return bin_ == 1
    one_row = count == width
    return count <= 1 or ((column == 1 or width == 1) and (row == width or one_row))


def device_of(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Triton launches on the current device and its current stream: make the tensor's device the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


@triton.jit
def pick(values, index, COUNT_OF: tl.constexpr):
    """``values[index]`` among the first COUNT_OF of a tuple, for an index known only at run time."""
    chosen = values[0]
    for candidate in tl.static_range(1, COUNT_OF):
        chosen = tl.where(index == candidate, values[candidate], chosen)
    return chosen


@triton.jit
def pick_column(table, level, COLUMN: tl.constexpr):
    """One column of the table of levels at a level known only at run time."""
    chosen = table[0][COLUMN]
    for candidate in tl.static_range(1, len(table)):
        chosen = tl.where(level == candidate, table[candidate][COLUMN], chosen)
    return (chosen - SEAL) >> 1


@triton.jit
def find_level(table, block, BLOCK: tl.constexpr):
    """Where block number ``block`` of an image lies: its level, that level's first block and its first point."""
    level = 0
    first_block = block * 0
    first_point = first_block.to(tl.int64)
    end_block = first_block
    end_point = first_point
    for candidate in tl.static_range(len(table)):
        # An empty level has no block: the next one begins where it does and takes over.
        reached = block >= end_block
        level = tl.where(reached, candidate, level)
        first_block = tl.where(reached, end_block, first_block)
        first_point = tl.where(reached, end_point, first_point)
        count = (table[candidate][COUNT] - SEAL) >> 1
        end_block += ((count + BLOCK - 1) // BLOCK).to(tl.int32)
        end_point += count
    return level, first_block, first_point


@triton.jit
def cell_offsets(table, level, image, cells, TOUCHING: tl.constexpr):
    """Offsets of cells (flat indices y·W + x, int32) of one image in their level's tensor, and their y and x.

    TOUCHING: the cells lie in memory without gaps.
    """
    width = pick_column(table, level, WIDTH).to(tl.int32)
    y = cells // width
    x = cells - y * width
    offsets = image.to(tl.int64) * pick_column(table, level, IMAGE_STRIDE)
    if TOUCHING:
        offsets += cells
    else:
        offsets += y.to(tl.int64) * pick_column(table, level, ROW_STRIDE)
        offsets += x.to(tl.int64) * pick_column(table, level, COLUMN_STRIDE)
    return offsets, y, x
